"""Credit in a notebook: completions as text, each token shaded by its advantage. Text is escaped; nothing runs."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape
from typing import Any

from torch import Tensor

from tokencredit.rollouts import Rollouts
from tokencredit.steps import TokenPieces

MOST_COMPLETIONS, MOST_TOKENS = 8, 2000
_MORE, _LESS = "86,180,233", "230,159,0"
_NAMED = {"\n": "⏎\n", "\t": "⇥", " ": " "}
_CELL = "\u2002"


class Shaded:
    """Shows itself in a notebook."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def show(credit: Any, rollouts: Rollouts, tokenizer: Any) -> Shaded:
    """The completions of a `Credit` as shaded text, in a notebook; `tokencredit score` makes a whole page.

    Raises:
        ValueError: the credit is not of these rollouts.
    """
    if credit.advantages.shape != rollouts.completion_mask.shape:
        raise ValueError(
            f"credit of {tuple(credit.advantages.shape)} is not of rollouts of {tuple(rollouts.completion_mask.shape)}"
        )
    pieces_of, lengths = TokenPieces(tokenizer), rollouts.lengths.tolist()
    ids = rollouts.completion_ids[:MOST_COMPLETIONS]
    texts = [pieces_of(row[:n].tolist()) for row, n in zip(ids, lengths, strict=False)]
    return Shaded(shaded_html(credit.advantages, credit.weights, texts))


def shaded_html(advantages: Tensor, weights: Tensor | None, texts: Sequence[Sequence[str]] | None = None) -> str:
    """The first completions, each scaled to its own largest credit: blue where it is positive, orange where negative.

    Args:
        advantages: (B, T). weights: (B, T), for multiplicative methods.
        texts: of each completion its tokens; cells of equal width without them.
    """
    rows = advantages[:MOST_COMPLETIONS, :MOST_TOKENS].tolist()
    scales = [None] * len(rows) if weights is None else weights[:MOST_COMPLETIONS, :MOST_TOKENS].tolist()
    lines = []
    for i, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        tokens = [_CELL] * len(row) if texts is None else [visible(text) for text in texts[i][:MOST_TOKENS]]
        largest = max(map(abs, row), default=0.0) or 1.0
        spans = (
            f'<span title="{_title(t, value, scale)}" style="background:rgba({_MORE if value > 0 else _LESS},'
            f'{abs(value) / largest / 2:.2f})">{escape(token)}</span>'
            for t, (token, value) in enumerate(zip(tokens, row, strict=False))
        )
        lines.append(f'<div style="margin:.4em 0;unicode-bidi:isolate">{"".join(spans)}</div>')
    if len(advantages) > len(rows):
        lines.append(f"<div>… {len(advantages) - len(rows)} more completions</div>")
    style = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<div dir="ltr" style="{style}">{"".join(lines)}</div>'


def visible(text: str) -> str:
    """Text with everything that would not show, or would rearrange what shows, spelt out: controls, zero-width and
    direction marks, odd spaces, lone surrogates."""
    return "".join(_NAMED.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c)[0] in "CZ" else c) for c in text)


def _title(t: int, advantage: float, weights: list[float] | None) -> str:
    weight = "" if weights is None else f", weight {weights[t]:.3f}"
    return f"token {t}{weight}, advantage {advantage:+.3f}"
