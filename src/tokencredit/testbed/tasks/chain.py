"""chain: assignments that build on each other modulo 10, among distractors, down to one asked value.

    Q:a=6,b=a-5,c=a*a,d=c+1?d     <think>c=a*a:6*6=6;d=c+1:6+1=7;</think>\\boxed{7}

The answer reads the last step alone: position guesses the essential steps well, attention adds nothing.
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

LEVELS = {1: ((2, 1), (3, 1)), 2: ((3, 1), (4, 2), (5, 2)), 3: ((6, 3), (7, 3))}
"""Level -> the (essential, distractor) numbers of definitions a problem may have, besides the root."""

_PROMPT = re.compile(r"Q:([a-z]=\d(?:,[a-z]=(?:[a-z][+*-][a-z0-9]|\d))*)\?([a-z])\n?", re.ASCII)
_STEP = re.compile(r"(?:wait)*(?P<body>(?P<name>[a-z])=[a-z][+*-][a-z0-9]:\d[+*-]\d=(?P<result>\d));?", re.ASCII)

Expression = tuple[str, str, str]
"""(name, operator, name or digit)."""


@dataclass(frozen=True)
class ChainProblem:
    """`definitions`: name -> a digit, or an expression over earlier names."""

    definitions: Mapping[str, int | Expression]
    asked: str

    @property
    def prompt(self) -> str:
        definitions = ",".join(f"{v}={d if isinstance(d, int) else ''.join(d)}" for v, d in self.definitions.items())
        return f"Q:{definitions}?{self.asked}\n"

    @property
    def answer(self) -> str:
        value: dict[str, int] = {}
        for v, d in self.definitions.items():
            value[v] = d if isinstance(d, int) else compute(value[d[0]], d[1], _operand(d[2], value))
        return str(value[self.asked])

    def needed(self) -> set[str]:
        """The names that the asked value rests on, itself included."""
        needed: set[str] = set()
        stack = [self.asked]
        while stack:
            if (v := stack.pop()) not in needed:
                needed.add(v)
                stack += self.inputs(v)
        return needed

    def inputs(self, name: str) -> list[str]:
        """The names that a definition reads."""
        d = self.definitions[name]
        return [] if isinstance(d, int) else [v for v in (d[0], d[2]) if v.isalpha()]


@dataclass(frozen=True)
class Chain:
    """The chain task. The teacher believes 35 % of the arithmetic facts wrongly."""

    level: int = 2
    name: ClassVar[str] = "chain"
    distractor: ClassVar[float] = 0.5
    recheck: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        check_level(self.level, LEVELS)

    @property
    def max_new_tokens(self) -> int:
        return 20 + 18 * max(sum(sizes) for sizes in LEVELS[self.level])

    def problem(self, rng: Random) -> ChainProblem:
        essential, distractors = rng.choice(LEVELS[self.level])
        names = "abcdefghijklmnopqrstuvwxyz"
        kinds = [True] * essential + [False] * distractors
        rng.shuffle(kinds)
        definitions: dict[str, int | Expression] = {names[0]: rng.randrange(10)}
        chain = [names[0]]
        for v, is_essential in zip(names[1:], kinds, strict=False):
            first = chain[-1] if is_essential else rng.choice(list(definitions))
            pool = chain if is_essential else list(definitions)
            second = str(rng.randrange(10)) if rng.random() < 0.7 else rng.choice(pool)
            definitions[v] = (first, rng.choice(OPERATORS), second)
            if is_essential:
                chain.append(v)
        return ChainProblem(definitions, chain[-1])

    def parse(self, record: Mapping[str, Any]) -> ChainProblem:
        """From {"prompt": "Q:a=6,b=a-5,c=b*a?c"}: each name rests on names before it; the asked one is worked out."""
        match = _PROMPT.fullmatch(str(record.get("prompt", "")))
        if not match:
            raise ValueError('expected {"prompt": "Q:a=6,b=a-5,c=b*a?c"}: a digit, definitions, then the asked name')
        definitions: dict[str, int | Expression] = {}
        for name, body in (part.split("=") for part in match[1].split(",")):
            if name in definitions:
                raise ValueError(f"{name} is defined twice")
            if missing := sorted({c for c in body if c.isalpha()} - definitions.keys()):
                raise ValueError(f"{name} uses {', '.join(missing)} before it is defined")
            definitions[name] = int(body) if body.isdigit() else (body[0], body[1], body[2])
        if len(definitions) > (most := 1 + max(map(sum, LEVELS[self.level]))):
            raise ValueError(
                f"{len(definitions)} definitions; level {self.level} has completions long enough for {most}"
            )
        if isinstance(definitions.get(match[2], 0), int):
            raise ValueError(f"the asked name {match[2]} must be defined by an operation")
        return ChainProblem(definitions, match[2])

    def teach(self, problem: ChainProblem, rng: Random) -> str:
        beliefs = misconceptions(0.35, seed=1234)
        text, value = THINK, {}
        worked = problem.needed()
        for v, d in problem.definitions.items():
            if isinstance(d, int):
                value[v] = d
                continue
            possible = all(u in value for u in problem.inputs(v))
            if v not in worked and not (possible and rng.random() < self.distractor):
                continue
            x, y = value[d[0]], _operand(d[2], value)
            for prefix in ("", "wait"):
                if not prefix or rng.random() < self.recheck:
                    value[v] = teacher_result(x, d[1], y, beliefs, rng)
                    text += f"{prefix}{v}={''.join(d)}:{x}{d[1]}{y}={value[v]};"
        return f"{text}{END_THINK}{BOXED}{value[problem.asked]}}}"

    def verify(self, problem: ChainProblem, completion: str) -> bool:
        return boxed_answer(completion) == problem.answer

    def label(self, problem: ChainProblem, completion: str) -> Labels:
        """Essential: the backward slice from the asked name, through the values that each step read when it was
        written. A re-check that repeats a value is redundant, one that changes it takes over. First error: the
        earliest wrong character in the slice; else a missing step; else a wrong character of the answer."""
        spans, reasoning_end = segments(completion)
        value = {v: d for v, d in problem.definitions.items() if isinstance(d, int)}
        source: dict[str, int] = {}
        reads: dict[int, list[int]] = {}
        errors: dict[int, int | None] = {}
        for k, (start, end) in enumerate(spans):
            step = _STEP.fullmatch(completion, start, end)
            name = step["name"] if step else ""
            if not step or isinstance(problem.definitions.get(name, 0), int):
                continue
            result = int(step["result"])
            if value.get(name) != result:
                reads[k] = [source[v] for v in problem.inputs(name) if v in source]
                errors[k] = first_difference(step["body"], _worked(problem, name, value), offset=step.start("body"))
                source[name], value[name] = k, result
        essential = _slice(source.get(problem.asked), reads)
        return Labels(
            correct=(correct := self.verify(problem, completion)),
            steps=tuple(Step(start, end, k in essential) for k, (start, end) in enumerate(spans)),
            first_error=None
            if correct
            else first_error(
                completion,
                in_steps=[errors[k] for k in essential],
                complete=problem.asked in source,
                reasoning_end=reasoning_end,
                answer=problem.answer,
            ),
            answer=answer_offset(completion, reasoning_end),
        )


def _operand(operand: str, value: Mapping[str, int]) -> int:
    return int(operand) if operand.isdigit() else value[operand]


def _worked(problem: ChainProblem, name: str, value: Mapping[str, int]) -> str:
    """How the step should read, given the values so far; empty if it reads a value that is not there yet."""
    d = problem.definitions[name]
    assert not isinstance(d, int)
    if any(v not in value for v in problem.inputs(name)):
        return ""
    x, y = value[d[0]], _operand(d[2], value)
    return f"{name}={''.join(d)}:{x}{d[1]}{y}={compute(x, d[1], y)}"


def _slice(last: int | None, reads: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    stack = [] if last is None else [last]
    while stack:
        if (k := stack.pop()) not in found:
            found.add(k)
            stack += reads[k]
    return found
