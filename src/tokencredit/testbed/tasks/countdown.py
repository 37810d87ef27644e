"""countdown: reach a target with some numbers, each used once (TinyZero's layout, `nums` and `target`).

    3,5,8=16?     <think>(5-3)+8=2+8=10no;(5-3)*8=2*8=16ok;</think>\\boxed{(5-3)*8}

A step is an attempt: an expression, worked out, and a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from tokencredit.testbed.tasks.arithmetic import OPERATORS
from tokencredit.testbed.tasks.base import (
    BOXED,
    END_THINK,
    THINK,
    Labels,
    Step,
    answer_offset,
    boxed_answer,
    check_level,
    first_difference,
    segments,
)
from tokencredit.testbed.tasks.expressions import evaluate, numbers, parse_expression

LEVELS = {1: (3, 7), 2: (3, 9), 3: (4, 9)}
"""Level -> how many numbers, and the largest."""

_MAX_VALUE = 99
_ATTEMPT = re.compile(r"(?P<expression>[-+*/()0-9]+)=.*?(?P<verdict>ok|no);?")


@dataclass(frozen=True)
class CountdownProblem:
    """`nums` in ascending order."""

    nums: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        return f"{','.join(map(str, self.nums))}={self.target}?\n"

    @property
    def answer(self) -> str:
        return str(self.target)


@dataclass(frozen=True)
class Countdown:
    """The countdown task. The teacher tries at random, finds the target now and then, and slips in 3 % of its sums."""

    level: int = 2
    name: ClassVar[str] = "countdown"
    planted: ClassVar[float] = 0.6
    slip: ClassVar[float] = 0.03

    def __post_init__(self) -> None:
        check_level(self.level, LEVELS)

    @property
    def max_new_tokens(self) -> int:
        return 120 if LEVELS[self.level][0] == 3 else 200

    def problem(self, rng: Random) -> CountdownProblem:
        count, largest = LEVELS[self.level]
        while True:
            nums = tuple(sorted(rng.randint(1, largest) for _ in range(count)))
            target = _attempt(nums, rng)[1]
            if 1 <= target <= _MAX_VALUE:
                return CountdownProblem(nums, target)

    def parse(self, record: Mapping[str, Any]) -> CountdownProblem:
        """From {"nums": [3, 5, 8], "target": 16}: two to six whole numbers, and a whole target."""
        nums, target = record.get("nums"), record.get("target")
        whole = isinstance(nums, list) and all(type(n) is int and 0 <= n <= 999 for n in nums)
        if not whole or not 2 <= len(nums) <= 6:  # type: ignore[arg-type]
            raise ValueError(f'"nums" must be a list of 2 to 6 whole numbers from 0 to 999; got {nums!r:.80}')
        if type(target) is not int or not 0 <= target <= 9999:
            raise ValueError(f'"target" must be a whole number from 0 to 9999; got {target!r:.80}')
        return CountdownProblem(tuple(sorted(nums)), target)  # type: ignore[arg-type]

    def teach(self, problem: CountdownProblem, rng: Random) -> str:
        attempts = [_attempt(problem.nums, rng)[0] for _ in range(rng.randint(1, 4))]
        if rng.random() < self.planted and (solution := _solve(problem, rng)):
            attempts[rng.randrange(len(attempts))] = solution
        text = THINK
        for attempt in attempts:
            parts = _worked(attempt)
            reached = int(parts[-1])
            if rng.random() < self.slip:
                reached = max(0, reached + rng.choice((-2, -1, 1, 2)))
            found = reached == problem.target
            text += f"{'='.join([*parts[:-1], str(reached)])}{'ok' if found else 'no'};"
            if found:
                break
        return f"{text}{END_THINK}{BOXED}{attempt}}}"

    def verify(self, problem: CountdownProblem, completion: str) -> bool:
        """The boxed expression uses every number exactly once and is worth the target."""
        boxed = boxed_answer(completion)
        return boxed is not None and _reaches(boxed, problem)

    def label(self, problem: CountdownProblem, completion: str) -> Labels:
        """Essential, in a correct completion: the first attempt that the answer repeats. First error, in a wrong one:
        the earliest wrong character in an attempt that was right or that the answer repeats; else giving up."""
        spans, reasoning_end = segments(completion)
        boxed = boxed_answer(completion)
        correct = self.verify(problem, completion)
        essential: int | None = None
        errors: list[int] = []
        for k, (start, end) in enumerate(spans):
            attempt = _ATTEMPT.fullmatch(completion, start, end)
            if not attempt:
                continue
            expression = attempt["expression"]
            if expression == boxed and essential is None:
                essential = k
            if expression == boxed or _reaches(expression, problem):
                error = _attempt_error(completion[start:end].rstrip(";"), expression, problem, start)
                errors += [] if error is None else [error]
        last = max(0, len(completion.removesuffix("<eos>")) - 1)
        return Labels(
            correct=correct,
            steps=tuple(Step(start, end, correct and k == essential) for k, (start, end) in enumerate(spans)),
            first_error=None if correct else min([*errors, min(reasoning_end, last)]),
            answer=answer_offset(completion, reasoning_end),
        )


def _attempt(nums: tuple[int, ...], rng: Random) -> tuple[str, int]:
    """A random left-nested expression over the numbers whose values stay within 0..99, and its value."""
    for _ in range(10_000):
        first, *rest = rng.sample(nums, len(nums))
        text, value = str(first), first
        for i, n in enumerate(rest):
            operator = rng.choice(OPERATORS)
            value = value + n if operator == "+" else value - n if operator == "-" else value * n
            if not 0 <= value <= _MAX_VALUE:
                break
            text = f"({text})" if i else text
            text = f"{text}{operator}{n}"
        else:
            return text, value
    raise ValueError(f"found no expression over {nums} with values from 0 to {_MAX_VALUE}")


def _solve(problem: CountdownProblem, rng: Random, tries: int = 300) -> str | None:
    for _ in range(tries):
        text, value = _attempt(problem.nums, rng)
        if value == problem.target:
            return text
    return None


def _worked(expression: str) -> list[str]:
    """The expression, then after each operation from the inside out, down to its value.

    Raises ValueError for what is not a left-nested expression of whole values, or past the parser's bounds.
    """
    parse_expression(expression)
    parts = [expression]
    while not re.fullmatch(r"-?[0-9]+", parts[-1]):
        inner = re.search(r"\(([^()]*)\)", parts[-1])
        span = inner.span() if inner else (0, len(parts[-1]))
        value = evaluate(parse_expression(inner[1] if inner else parts[-1]))
        if value.denominator != 1 or value < 0:
            raise ValueError(f"{expression} has a value that is not a whole number")
        parts.append(parts[-1][: span[0]] + str(value) + parts[-1][span[1] :])
    return parts


def _reaches(expression: str, problem: CountdownProblem) -> bool:
    try:
        parsed = parse_expression(expression)
        return sorted(numbers(parsed)) == list(problem.nums) and evaluate(parsed) == problem.target
    except ValueError:
        return False


def _attempt_error(written: str, expression: str, problem: CountdownProblem, start: int) -> int | None:
    try:
        parts = _worked(expression)
        used = sorted(numbers(parse_expression(expression))) == list(problem.nums)
    except ValueError:
        return start
    verdict = "ok" if used and int(parts[-1]) == problem.target else "no"
    return first_difference(written, "=".join(parts) + verdict, offset=start)
