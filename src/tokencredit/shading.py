"""Credit in a notebook: completions as text, each token shaded by its advantage. Text is escaped; nothing runs."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from torch import Tensor

from tokencredit.rollouts import Rollouts
from tokencredit.token_text import PART, PART_TITLE, TokenTexts

MOST_COMPLETIONS, MOST_TOKENS, MOST_LETTERS = 8, 2000, 300
_MORE, _LESS = "86,180,233", "230,159,0"
_NAMED = {"\n": "⏎\n", "\t": "⇥", " ": " "}
_CELL = "\u2002"
# Letters and marks by their category, and yet nothing to be seen.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


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
    if not hasattr(credit, "advantages") or not isinstance(rollouts, Rollouts):
        given = ", ".join(type(each).__name__ for each in (credit, rollouts, tokenizer))
        raise ValueError(f"the order is tc.show(credit, rollouts, tokenizer); got {given}")
    if credit.advantages.shape != rollouts.completion_mask.shape:
        raise ValueError(
            f"credit of {tuple(credit.advantages.shape)} is not of rollouts of {tuple(rollouts.completion_mask.shape)}"
        )
    texts_of, lengths = TokenTexts(tokenizer), rollouts.lengths.tolist()
    ids = rollouts.completion_ids[:MOST_COMPLETIONS]
    texts = [texts_of(row[:n].tolist()) for row, n in zip(ids, lengths, strict=False)]
    partial = [set(row.partial) for row in texts]
    return Shaded(shaded_html(credit.advantages, credit.weights, [row.texts for row in texts], partial))


def shaded_html(
    advantages: Tensor,
    weights: Tensor | None,
    texts: Sequence[Sequence[str]] | None = None,
    partial: Sequence[Collection[int]] | None = None,
) -> str:
    """The first completions, each scaled to its own largest credit: blue where it is positive, orange where negative.

    Args:
        advantages: (B, T). weights: (B, T), for multiplicative methods.
        texts: of each completion its tokens. Without them cells of equal width, padding among them.
        partial: of each completion the positions of tokens that end within a character.

    Raises:
        ValueError: an advantage is NaN or infinite.
    """
    if not advantages.isfinite().all():
        raise ValueError("credit is not finite: some of it is NaN or infinite")
    rows = advantages[:MOST_COMPLETIONS, :MOST_TOKENS].tolist()
    scales = [None] * len(rows) if weights is None else weights[:MOST_COMPLETIONS, :MOST_TOKENS].tolist()
    lines = []
    for i, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        tokens = [_CELL] * len(row) if texts is None else [_cut(text) for text in texts[i][:MOST_TOKENS]]
        parts = () if partial is None else partial[i]
        tokens = [f"{token}{PART}" if t in parts else token for t, token in enumerate(tokens)]
        more = (advantages.shape[1] if texts is None else len(texts[i])) - len(tokens)
        largest = max(map(abs, row), default=0.0) or 1.0
        spans = [
            _span(token, _title(t, value, scale, t in parts), value / largest)
            for t, (token, value) in enumerate(zip(tokens, row, strict=False))
        ]
        rest = f" … {more} more tokens" if more else ""
        lines.append(f'<div style="margin:.4em 0">{"".join(spans)}{rest}</div>')
    if len(advantages) > len(rows):
        lines.append(f"<div>… {len(advantages) - len(rows)} more completions</div>")
    style = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<div dir="ltr" style="{style}">{"".join(lines)}</div>'


def _span(token: str, title: str, share: float) -> str:
    """Half of full strength at most, so that text stands out on it, on light paper and on dark."""
    colour = f"rgba({_MORE if share > 0 else _LESS},{abs(share) / 2:.2f})"
    return f'<span title="{title}" style="unicode-bidi:isolate;background:{colour}">{escape(token)}</span>'


def visible(text: str) -> str:
    """Text with everything that would not show, or would rearrange what shows, spelt out: controls, zero-width and
    direction marks, odd spaces, fillers, lone surrogates. A mark gets a circle to sit on."""
    shown = "".join(_NAMED.get(c) or (f"⟨U+{ord(c):04X}⟩" if _unseen(c) else c) for c in text)
    return f"◌{shown}" if shown and unicodedata.category(shown[0])[0] == "M" else shown


def _unseen(character: str) -> bool:
    return unicodedata.category(character)[0] in "CZ" or character in _FILLERS or 0xFE00 <= ord(character) <= 0xFE0F


def _cut(text: str) -> str:
    return visible(text) if len(text) <= MOST_LETTERS else f"{visible(text[:MOST_LETTERS])}… ({len(text):,} characters)"


def _title(t: int, advantage: float, weights: list[float] | None, part: bool) -> str:
    weight = "" if weights is None else f", weight {weights[t]:.3f}"
    return f"token {t}{weight}, advantage {advantage:+.3f}{f', {PART_TITLE}' if part else ''}"
