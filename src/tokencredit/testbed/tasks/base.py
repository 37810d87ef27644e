"""What a task is, and how its labels reach tokens.

Tasks read and write text, so they work with any tokenizer. A completion is
`<think>STEP;STEP;</think>\\boxed{ANSWER}`; each task says what a step looks like.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random
from typing import Any, ClassVar, Protocol

THINK, END_THINK, BOXED, EOS = "<think>", "</think>", "\\boxed{", "<eos>"


class Problem(Protocol):
    """One problem of a task."""

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str:
        """What the box must hold; for tasks with many right answers, what it must evaluate to."""
        ...


@dataclass(frozen=True)
class Step:
    """A reasoning step: characters `start` to `end`, and whether the answer rests on it."""

    start: int
    end: int
    essential: bool


@dataclass(frozen=True)
class Labels:
    """Ground truth about one completion, in characters.

    Attributes:
        correct: the verifier accepts the answer.
        steps: in order.
        first_error: where the first error that matters to the answer lies; None in a correct completion.
        answer: where the answer starts (behind `</think>`), None where there is none.
    """

    correct: bool
    steps: tuple[Step, ...]
    first_error: int | None
    answer: int | None


@dataclass(frozen=True)
class TokenLabels:
    """`Labels` on a completion's tokens: `step_index` -1 outside the steps, `essential` one a step."""

    correct: bool
    step_index: list[int]
    essential: list[bool]
    first_error: int | None
    answer_start: int


class Task(Protocol):
    """A generator of problems, a teacher that solves them imperfectly, a verifier, and exact labels."""

    name: ClassVar[str]

    @property
    def level(self) -> int: ...

    @property
    def max_new_tokens(self) -> int:
        """Enough for any sensible completion at this level."""
        ...

    def problem(self, rng: Random) -> Problem: ...

    def parse(self, record: Mapping[str, Any]) -> Problem:
        """A problem from a user's record. Raises ValueError saying what is wrong."""
        ...

    def teach(self, problem: Any, rng: Random) -> str:
        """A completion for the warm-up: well-formed, with detours and mistakes."""
        ...

    def verify(self, problem: Any, completion: str) -> bool:
        """Is the boxed answer right? The completion is hostile text."""
        ...

    def label(self, problem: Any, completion: str) -> Labels: ...


def check_level(level: int, levels: Mapping[int, Any]) -> None:
    if level not in levels:
        raise ValueError(f"unknown level {level!r}: use {', '.join(map(str, levels))}")


def boxed_answer(completion: str) -> str | None:
    """What stands in the box of a well-formed completion, else None."""
    text = completion.removesuffix(EOS)
    start = text.find(END_THINK + BOXED)
    if not text.startswith(THINK) or start < 0 or not text.endswith("}"):
        return None
    return text[start + len(END_THINK + BOXED) : -1]


def segments(completion: str) -> tuple[list[tuple[int, int]], int]:
    """The steps of the reasoning, as (start, end) characters with their ";", and where the reasoning ends."""
    if not completion.startswith(THINK):
        return [], 0
    end = completion.find(END_THINK)
    end = len(completion) if end < 0 else end
    cuts = [len(THINK), *(m.end() for m in re.finditer(";", completion[:end])), end]
    return [(a, b) for a, b in pairwise(cuts) if a < b], end


def step_starts(text: str) -> list[int]:
    """The splitter of every task, for `mark_spans`: a step ends with ";"."""
    return [m.end() for m in re.finditer(";", text)]


def first_difference(text: str, expected: str, offset: int = 0) -> int | None:
    """Where in `text` it first departs from `expected`, plus `offset`; None where they are equal."""
    if text == expected:
        return None
    shared = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), None)
    return offset + (min(len(text), len(expected)) if shared is None else shared)


def first_error(
    completion: str, *, in_steps: Iterable[int | None], complete: bool, reasoning_end: int, answer: str
) -> int:
    """Where the first error that matters lies in a wrong completion.

    Args:
        in_steps: the error in each essential step, None where there is none.
        complete: the essential steps are all there; if not, stopping to reason is the error.
        answer: what the box should hold.
    """
    last = max(0, len(completion.removesuffix(EOS)) - 1)
    found = [error for error in in_steps if error is not None]
    if found:
        return min(found)
    if not complete:
        return min(reasoning_end, last)
    tail = completion[reasoning_end:].removesuffix(EOS)
    error = first_difference(tail, f"{END_THINK}{BOXED}{answer}}}", offset=reasoning_end)
    return min(reasoning_end if error is None else error, last)


def answer_offset(completion: str, reasoning_end: int) -> int | None:
    """Where the answer starts, given where the reasoning ends."""
    return reasoning_end + len(END_THINK) if completion.startswith(END_THINK, reasoning_end) else None


def label_tokens(labels: Labels, pieces: list[str]) -> TokenLabels:
    """Labels on tokens: a token belongs to the step, and holds the error, in which its characters lie.

    Args:
        pieces: the text of each of the completion's tokens.
    """
    starts = [0, *accumulate(map(len, pieces))][: len(pieces)]
    step_index = [-1] * len(pieces)
    for t, start in enumerate(starts):
        for k, step in enumerate(labels.steps):
            if step.start <= start < step.end:
                step_index[t] = k
    error = None
    if labels.first_error is not None and pieces:
        error = max(0, bisect_right(starts, labels.first_error) - 1)
    answer_start = -1
    if labels.answer is not None:
        answer_start = next((t for t, start in enumerate(starts) if start >= labels.answer), -1)
    return TokenLabels(labels.correct, step_index, [s.essential for s in labels.steps], error, answer_start)
