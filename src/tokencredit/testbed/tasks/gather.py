"""gather: the answer lists several asked values at once, worked out in any order among distractors and re-checks.

    Q:a=6+9,b=2+3,c=2+4,d=6*8?d,b     <think>b=2+3=5;c=2+4=6;d=6*8=8;</think>\\boxed{d=8,b=5}

The answer must look back at each asked value, so attention knows the essential steps, and position does not. It names
the values, so that the policy need not learn to count them as well, which some seeds never do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from tokencredit.testbed.tasks.arithmetic import OPERATORS, compute, misconceptions, teacher_result
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
    first_error,
    segments,
)

LEVELS = {1: ((3, 4), (1, 2)), 2: ((4, 5), (2, 3)), 3: ((6, 7), (3, 4))}
"""Level -> range of the number of variables, range of the number asked."""

_PROMPT = re.compile(r"Q:((?:[a-z]=\d[+*-]\d,)*[a-z]=\d[+*-]\d)\?([a-z](?:,[a-z])*)\n?", re.ASCII)
_STEP = re.compile(r"(?:wait)*(?P<body>(?P<name>[a-z])=\d[+*-]\d=(?P<result>\d));?", re.ASCII)


@dataclass(frozen=True)
class GatherProblem:
    """`definitions`: name -> (digit, operator, digit). `asked`: names, in the order of the answer."""

    definitions: Mapping[str, tuple[int, str, int]]
    asked: tuple[str, ...]

    @property
    def prompt(self) -> str:
        definitions = ",".join(f"{v}={x}{operator}{y}" for v, (x, operator, y) in self.definitions.items())
        return f"Q:{definitions}?{','.join(self.asked)}\n"

    @property
    def answer(self) -> str:
        return ",".join(f"{v}={compute(*self.definitions[v])}" for v in self.asked)


@dataclass(frozen=True)
class Gather:
    """The gather task. The teacher believes 28 % of the arithmetic facts wrongly."""

    level: int = 2
    name: ClassVar[str] = "gather"
    levels: ClassVar[Mapping[int, tuple[tuple[int, int], tuple[int, int]]]] = LEVELS
    distractor: ClassVar[float] = 0.5
    recheck: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        check_level(self.level, self.levels)

    @property
    def max_new_tokens(self) -> int:
        return 16 + 12 * self.levels[self.level][0][1]

    def problem(self, rng: Random) -> GatherProblem:
        variables, asked = self.levels[self.level]
        names = "abcdefghijklmnopqrstuvwxyz"[: rng.randint(*variables)]
        definitions = {v: (rng.randrange(10), rng.choice(OPERATORS), rng.randrange(10)) for v in names}
        return GatherProblem(definitions, tuple(rng.sample(names, rng.randint(*asked))))

    def parse(self, record: Mapping[str, Any]) -> GatherProblem:
        """From {"prompt": "Q:a=6+9,b=2+3?b,a"}: definitions of one operation on two digits, then the asked names."""
        match = _PROMPT.fullmatch(str(record.get("prompt", "")))
        if not match:
            raise ValueError('expected {"prompt": "Q:a=6+9,b=2+3?b,a"}: definitions on digits, then the asked names')
        parts = [part.split("=") for part in match[1].split(",")]
        definitions = {name: (int(e[0]), e[1], int(e[2])) for name, e in parts}
        asked = tuple(match[2].split(","))
        if len(definitions) < len(parts):
            raise ValueError("a name is defined twice")
        if len(parts) > (most := self.levels[self.level][0][1]):
            raise ValueError(f"{len(parts)} definitions; level {self.level} has room for {most}")
        if missing := sorted(set(asked) - definitions.keys()):
            raise ValueError(f"asked but not defined: {', '.join(missing)}")
        return GatherProblem(definitions, asked)

    def teach(self, problem: GatherProblem, rng: Random) -> str:
        beliefs = misconceptions(0.28, seed=4321)
        extra = [v for v in problem.definitions if v not in problem.asked and rng.random() < self.distractor]
        order = [*dict.fromkeys(problem.asked), *extra]
        rng.shuffle(order)
        text, value = THINK, {}
        for v in order:
            x, operator, y = problem.definitions[v]
            for prefix in ("", "wait"):
                if not prefix or rng.random() < self.recheck:
                    value[v] = teacher_result(x, operator, y, beliefs, rng)
                    text += f"{prefix}{v}={x}{operator}{y}={value[v]};"
        return f"{text}{END_THINK}{BOXED}{','.join(f'{v}={value[v]}' for v in problem.asked)}}}"

    def verify(self, problem: GatherProblem, completion: str) -> bool:
        return boxed_answer(completion) == problem.answer

    def label(self, problem: GatherProblem, completion: str) -> Labels:
        """Essential: the steps that set the values which the asked names end with; a re-check that repeats a value is
        redundant, one that changes it takes over. First error: the earliest wrong character in an essential step; else
        a missing step, which is an error of `</think>`; else a wrong character of the answer."""
        spans, reasoning_end = segments(completion)
        source: dict[str, int] = {}
        value: dict[str, str] = {}
        errors: dict[int, int | None] = {}
        for k, (start, end) in enumerate(spans):
            step = _STEP.fullmatch(completion, start, end)
            if step and (name := step["name"]) in problem.definitions and value.get(name) != step["result"]:
                source[name], value[name] = k, step["result"]
                errors[k] = first_difference(step["body"], _worked(problem, name), offset=step.start("body"))
        essential = {source[v] for v in problem.asked if v in source}
        return Labels(
            correct=(correct := self.verify(problem, completion)),
            steps=tuple(Step(start, end, k in essential) for k, (start, end) in enumerate(spans)),
            first_error=None
            if correct
            else first_error(
                completion,
                in_steps=[errors[k] for k in essential],
                complete=all(v in source for v in problem.asked),
                reasoning_end=reasoning_end,
                answer=problem.answer,
            ),
            answer=answer_offset(completion, reasoning_end),
        )


def _worked(problem: GatherProblem, name: str) -> str:
    x, operator, y = problem.definitions[name]
    return f"{name}={x}{operator}{y}={compute(x, operator, y)}"
