r"""Word problems in plain sentences, with worked solutions by a teacher who makes slips, for a small language model.

    Ben has 17 books. Ben buys 12 more, then gives 4 to Mia. How many books does Ben have now?
    After buying 12 more there are 17 + 12 = 29 books. Giving away 4 leaves 29 - 4 = 25. The answer is \boxed{25}.

A slip is a wrong result of one step; later steps go on from it, so where the first error lies is known exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

_NAMES = ("Tom", "Anna", "Sara", "Ben", "Mia", "Leo", "Emma", "Jack", "Nora", "Sam")
_THINGS = ("apples", "pens", "books", "coins", "stickers", "marbles", "cookies", "shells")
_SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class _Step:
    """`left` and `right` name numbers of the problem, or results of earlier steps: r1, r2. `{sum}` in a wording becomes
    the calculation, such as `17 + 12 = 29`."""

    left: str
    operator: str
    right: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class _Kind:
    """`numbers`: the range of each number, both ends included, such that no result is negative."""

    numbers: dict[str, tuple[int, int]]
    questions: tuple[str, ...]
    steps: tuple[_Step, ...]


@dataclass(frozen=True)
class WordProblem:
    question: str
    answer: int
    words: dict[str, Any]
    steps: tuple[_Step, ...]


@dataclass(frozen=True)
class Solution:
    """`first_error`: the number of the first step with a slip, or None."""

    steps: list[str]
    answer: str
    first_error: int | None

    @property
    def text(self) -> str:
        return "".join(self.steps) + self.answer


_KINDS = (
    _Kind(
        {"a": (10, 40), "b": (3, 30), "c": (2, 9)},
        (
            "{name} has {a} {things}. {name} buys {b} more, then gives {c} to {friend}. How many {things} does {name} "
            "have now?",
            "{name} buys {b} {things} and already had {a}. Then {friend} gets {c} of them. How many are left for "
            "{name}?",
        ),
        (
            _Step("a", "+", "b", ("After buying {b} more there are {sum} {things}.", "First add: {sum}.")),
            _Step("r1", "-", "c", ("Giving away {c} leaves {sum}.", "Then {c} go to {friend}: {sum}.")),
        ),
    ),
    _Kind(
        {"a": (3, 9), "b": (2, 9), "c": (2, 9)},
        (
            "A box holds {a} {things}. {name} has {b} boxes and {c} loose {things}. How many {things} does {name} have "
            "in total?",
            "{name} has {c} loose {things} and {b} full boxes with {a} in each box. How many {things} are there?",
        ),
        (
            _Step("a", "*", "b", ("The boxes hold {sum} {things}.", "{b} boxes of {a}: {sum}.")),
            _Step("r1", "+", "c", ("With the {c} loose ones that is {sum}.", "Add the loose ones: {sum}.")),
        ),
    ),
    _Kind(
        {"a": (5, 40), "b": (3, 30), "c": (2, 9)},
        (
            "{name} reads {a} pages on Monday, {b} on Tuesday and {c} on Wednesday. How many pages is that?",
            "On three days {name} reads {a}, {b} and {c} pages. How many pages does {name} read altogether?",
        ),
        (
            _Step("a", "+", "b", ("The first two days give {sum} pages.", "Start with {sum}.")),
            _Step("r1", "+", "c", ("The last day makes it {sum}.", "Add {c} more: {sum}.")),
        ),
    ),
    _Kind(
        {"a": (50, 90), "b": (2, 9), "c": (2, 5)},
        (
            "{name} has {a} dollars and buys {c} tickets for {b} dollars each. How much is left?",
            "A ticket costs {b} dollars. {name} takes {c} tickets and pays from {a} dollars. How many dollars remain?",
        ),
        (
            _Step("c", "*", "b", ("The tickets cost {sum} dollars.", "{c} tickets at {b}: {sum}.")),
            _Step("a", "-", "r1", ("So {sum} dollars remain.", "Subtract: {sum}.")),
        ),
    ),
    _Kind(
        {"a": (3, 9), "b": (2, 5), "c": (2, 9)},
        (
            "{name} has {a} {things}. {friend} has {b} times as many and finds {c} more. How many do they have "
            "together?",
        ),
        (
            _Step("a", "*", "b", ("At first {friend} has {sum}.", "{b} times {a} is {sum}.")),
            _Step("r1", "+", "c", ("Finding {c} makes {sum}.", "With the new ones: {sum}.")),
            _Step("r2", "+", "a", ("Together they have {sum} {things}.", "Add those of {name}: {sum}.")),
        ),
    ),
)


def word_problem(rng: Random) -> WordProblem:
    """A random problem, whose answer is the result of its last step."""
    kind = rng.choice(_KINDS)
    name, friend = rng.sample(_NAMES, 2)
    words: dict[str, Any] = {"name": name, "friend": friend, "things": rng.choice(_THINGS)}
    words |= {number: rng.randint(*limits) for number, limits in kind.numbers.items()}
    results = dict(words)
    for i, step in enumerate(kind.steps, start=1):
        results[f"r{i}"] = _result(step, results)
    answer = results[f"r{len(kind.steps)}"]
    return WordProblem(rng.choice(kind.questions).format(**words), answer, words, kind.steps)


def solve(problem: WordProblem, rng: Random, slips: float = 0.0) -> Solution:
    """A worked solution in randomly chosen words, each step of which is wrong with probability `slips`."""
    known, steps, first_error = dict(problem.words), [], None
    for i, step in enumerate(problem.steps, start=1):
        result = _result(step, known)
        if rng.random() < slips:
            result = rng.choice([wrong for slip in _SLIPS if (wrong := result + slip) >= 0])
            first_error = i - 1 if first_error is None else first_error
        calculation = f"{known[step.left]} {step.operator} {known[step.right]} = {result}"
        steps.append(rng.choice(step.wordings).format(**known, sum=calculation) + " ")
        known[f"r{i}"] = result
    return Solution(steps, f"The answer is \\boxed{{{known[f'r{len(problem.steps)}']}}}.", first_error)


def write_word_problems(
    folder: Path, *, lessons: int = 960, problems: int = 512, held_out: int = 128, slips: float = 0.25, seed: int = 0
) -> None:
    """Three files: `lessons.jsonl` (problems with the teacher's solutions, to imitate), `train.jsonl` (problems with
    answers, for RL) and `heldout.jsonl` (problems with answers that are in neither of the others).

    Raises:
        ValueError: a number is too small, or `slips` is no probability.
    """
    if min(lessons, problems, held_out) < 1 or not 0 <= slips <= 1:
        raise ValueError(
            "expected at least one lesson, problem and held-out problem, and slips between 0 and 1; got "
            f"lessons={lessons}, problems={problems}, held_out={held_out}, slips={slips}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Random(f"teacher-{seed}")
    taught = [(problem, solve(problem, teacher, slips)) for problem in _stream(f"lessons-{seed}", lessons, False)]
    _write(folder / "lessons.jsonl", [{"prompt": p.question, "completion": s.text} for p, s in taught])
    for name, count, apart in (("train", problems, False), ("heldout", held_out, True)):
        rows = [{"prompt": p.question, "answer": str(p.answer)} for p in _stream(f"{name}-{seed}", count, apart)]
        _write(folder / f"{name}.jsonl", rows)


def is_held_out(problem: WordProblem) -> bool:
    """One problem in five, by its question: the same ones for every seed."""
    return hashlib.sha256(problem.question.encode()).digest()[0] % 5 == 0


def _stream(seed: str, count: int, held_out: bool) -> Iterator[WordProblem]:
    """`count` problems, no two alike."""
    rng, seen = Random(seed), set[str]()
    while len(seen) < count:
        problem = word_problem(rng)
        if is_held_out(problem) == held_out and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _result(step: _Step, numbers: dict[str, Any]) -> int:
    left, right = numbers[step.left], numbers[step.right]
    return {"+": left + right, "-": left - right, "*": left * right}[step.operator]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
