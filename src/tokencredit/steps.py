"""Where the reasoning ends, and how it splits into steps.

A splitter is a function from text to the character offsets at which its steps start, so a user's own is one line:
`lambda text: [m.end() for m in re.finditer(";", text)]`. Steps tile the reasoning exactly, token for token: a token
belongs to the step in which its first character lies.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from tokencredit.phrases import split_phrases
from tokencredit.rollouts import Rollouts, numbered

Splitter = Callable[[str], Iterable[int]]

BOXED = "\\boxed{"


def split_newline(text: str) -> list[int]:
    """A step a line; empty lines belong to the line before them."""
    return [m.end() for m in re.finditer(r"\n+", text)]


def split_paragraph(text: str) -> list[int]:
    """A step a paragraph: text between empty lines."""
    return [m.end() for m in re.finditer(r"\n[ \t]*(?:\n[ \t]*)+", text)]


SPLITTERS: dict[str, Splitter] = {
    "phrases": split_phrases,
    "newline": split_newline,
    "paragraph": split_paragraph,
}


def mark_spans(
    rollouts: Rollouts,
    tokenizer: Any,
    splitter: str | Splitter = "phrases",
    *,
    end_of_reasoning: str = "</think>",
    answer: str = "auto",
) -> Rollouts:
    """Fill `answer_start` and `step_index` by reading the completions.

    The reasoning runs up to and including the first `end_of_reasoning`, which may be one token or several, or share a
    token with what follows; the answer is every token after it. Models without a reasoning format never write it: with
    `answer="auto"`, the answer of such a completion starts at its last `\\boxed{`. A completion without an answer gets
    `answer_start` -1 and no steps.

    Args:
        tokenizer: the transformers tokenizer of the completions.
        splitter: "phrases", "newline", "paragraph", or a function from text to the offsets where steps start.
        answer: "auto"; "end_of_reasoning", for nothing else than the text behind it; or a regular expression, at whose
            last match the answer starts.

    Raises:
        ValueError: the splitter is unknown, it returns offsets outside the text, `end_of_reasoning` is empty, or
            `answer` is no regular expression.
    """
    if isinstance(splitter, str) and splitter not in SPLITTERS:
        raise ValueError(f"unknown splitter {splitter!r}: use {', '.join(sorted(SPLITTERS))}, or a function")
    if not end_of_reasoning:
        raise ValueError("end_of_reasoning must be some text, such as </think>")
    check_answer(answer)
    split = SPLITTERS[splitter] if isinstance(splitter, str) else splitter
    pieces = TokenPieces(tokenizer)
    answer_start = torch.full((len(rollouts),), -1)
    step_index = torch.full(rollouts.completion_ids.shape, -1)
    for i, (ids, length) in enumerate(zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True)):
        texts = pieces(ids[:length])
        start = find_answer(texts, end_of_reasoning, answer)
        if start >= 0:
            answer_start[i] = start
            step_index[i, :start] = torch.tensor(_step_numbers(texts[:start], split), dtype=torch.long)
    device = rollouts.completion_ids.device
    return replace(rollouts, answer_start=answer_start.to(device), step_index=step_index.to(device))


def check_answer(answer: str) -> None:
    """Raise a ValueError unless `answer` is one of the rules of `mark_spans`."""
    try:
        re.compile(answer)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"answer must be auto, end_of_reasoning, or a regular expression at whose last match the answer starts; "
            f"got {answer!r}: {error}"
        ) from None
    if not answer:
        raise ValueError("answer must be auto, end_of_reasoning, or a regular expression; got an empty text")


def find_answer(pieces: list[str], end_of_reasoning: str = "</think>", answer: str = "auto") -> int:
    """Index of the first token of the answer, by the rules of `mark_spans`, or -1 where there is none."""
    offset = _answer_offset("".join(pieces), end_of_reasoning, answer)
    return -1 if offset is None else next((t for t, start in enumerate(_starts(pieces)) if start >= offset), -1)


def _answer_offset(text: str, end_of_reasoning: str, answer: str) -> int | None:
    """The character at which the answer starts."""
    if answer not in ("auto", "end_of_reasoning"):
        return max((match.start() for match in re.finditer(answer, text)), default=None)
    end = text.find(end_of_reasoning)
    if end >= 0:
        return end + len(end_of_reasoning)
    boxed = text.rfind(BOXED) if answer == "auto" else -1
    return boxed if boxed >= 0 else None


class TokenPieces:
    """Token ids to the text each contributes. Joined, the pieces have the text's ASCII characters in order.

    A character whose bytes are spread over several tokens shows as replacement characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: list[int]) -> list[str]:
        for token in set(ids) - self._known.keys():
            # Decoded behind itself: SentencePiece drops a leading space at the start of a text.
            once, twice = self._decode([token]), self._decode([token, token])
            self._known[token] = twice[len(once) :]
        return [self._known[token] for token in ids]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _step_numbers(pieces: list[str], split: Splitter) -> list[int]:
    """The step of each token of a reasoning: 0, 1, ... without gaps."""
    text = "".join(pieces)
    starts = sorted(set(split(text)))
    if starts and not 0 <= starts[0] <= starts[-1] <= len(text):
        raise ValueError(f"the splitter returned offsets outside the text (0 to {len(text)}): {starts}")
    return numbered(bisect_right(starts, offset) for offset in _starts(pieces))


def _starts(pieces: list[str]) -> list[int]:
    return [0, *accumulate(map(len, pieces))][: len(pieces)]
