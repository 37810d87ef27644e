"""two_hop: each asked value rests on another one, which the answer itself need not read.

    Q:a=3+4,b=5*1,c=a+2,d=b-3?c     <think>b=5*1=5;a=3+4=7;hm;d=b-3:5-3=2;c=a+2:7+2=9;</think>\\boxed{c=9}

The answer copies c's value, so attention from the answer finds the step of c and has no reason to look at the step of
a, without which c is lost. Distractors are the same kinds of definition in the same kind of order: neither a step's
place nor that another step rests on it tells whether it is essential.
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
from tokencredit.testbed.tasks.long_gather import filler, with_recheck

LEVELS = {1: ((2, 3), 1), 2: ((3, 4), 2), 3: ((5, 6), 3)}
"""Level -> range of the number of families, number of asked names, each of another family.

A family is a first definition on digits and one or two that rest on it."""

_PROMPT = re.compile(r"Q:((?:[a-z]=[a-z0-9][+*-]\d,)*[a-z]=[a-z0-9][+*-]\d)\?([a-z](?:,[a-z])*)\n?", re.ASCII)
_STEP = re.compile(r"(?:wait)*(?P<body>(?P<name>[a-z])=(?:[a-z][+*-]\d:)?\d[+*-]\d=(?P<result>\d));?", re.ASCII)
_INVERTIBLE = {"+": "0123456789", "-": "0123456789", "*": "1379"}
"""Second operands with which a result changes whenever the first operand does."""

Expression = tuple[str, str, str]
"""(digit or name, operator, digit)."""


@dataclass(frozen=True)
class TwoHopProblem:
    """`definitions`: name -> (digit, operator, digit), or (name, operator, digit) over one defined so before.
    `asked`: names, in the order of the answer."""

    definitions: Mapping[str, Expression]
    asked: tuple[str, ...]

    @property
    def prompt(self) -> str:
        definitions = ",".join(f"{v}={''.join(d)}" for v, d in self.definitions.items())
        return f"Q:{definitions}?{','.join(self.asked)}\n"

    @property
    def answer(self) -> str:
        value: dict[str, int] = {}
        for v, (x, operator, y) in self.definitions.items():
            value[v] = compute(value[x] if x in value else int(x), operator, int(y))
        return ",".join(f"{v}={value[v]}" for v in self.asked)

    def rests_on(self, name: str) -> str | None:
        """The name that a definition reads, if any."""
        x = self.definitions[name][0]
        return x if x.isalpha() else None

    def needed(self) -> set[str]:
        """The names that the asked values rest on, themselves included."""
        return {*self.asked, *(u for v in self.asked if (u := self.rests_on(v)))}


@dataclass(frozen=True)
class TwoHop:
    """The two_hop task. The teacher believes 18 % of the arithmetic facts wrongly."""

    level: int = 2
    name: ClassVar[str] = "two_hop"
    sibling: ClassVar[float] = 0.2
    distractor: ClassVar[float] = 0.7
    recheck: ClassVar[float] = 0.16

    def __post_init__(self) -> None:
        check_level(self.level, LEVELS)

    @property
    def max_new_tokens(self) -> int:
        return 60 + 35 * LEVELS[self.level][0][1]

    def problem(self, rng: Random) -> TwoHopProblem:
        families, asked = LEVELS[self.level]
        # A family's first place in a random order is the definition that the others rest on.
        places = [f for f in range(rng.randint(*families)) for _ in range(3 if rng.random() < self.sibling else 2)]
        rng.shuffle(places)
        first: dict[int, str] = {}
        resting: dict[int, list[str]] = {}
        definitions: dict[str, Expression] = {}
        for v, family in zip("abcdefghijklmnopqrstuvwxyz", places, strict=False):
            operator = rng.choice(OPERATORS)
            if family in first:
                definitions[v] = (first[family], operator, rng.choice(_INVERTIBLE[operator]))
                resting.setdefault(family, []).append(v)
            else:
                definitions[v] = (str(rng.randrange(10)), operator, str(rng.randrange(10)))
                first[family] = v
        return TwoHopProblem(definitions, tuple(rng.choice(resting[f]) for f in rng.sample(sorted(resting), asked)))

    def parse(self, record: Mapping[str, Any]) -> TwoHopProblem:
        """From {"prompt": "Q:a=3+4,b=a+2?b"}: a name rests on digits, or on one that does; then asked names."""
        match = _PROMPT.fullmatch(str(record.get("prompt", "")))
        if not match:
            raise ValueError('expected {"prompt": "Q:a=3+4,b=a+2?b"}: one operation a name, then the asked names')
        definitions: dict[str, Expression] = {}
        for name, body in (part.split("=") for part in match[1].split(",")):
            if name in definitions:
                raise ValueError(f"{name} is defined twice: give every definition a name of its own")
            if body[0].isalpha() and body[0] not in definitions:
                raise ValueError(f"{name} uses {body[0]} before it is defined: define that first")
            if body[0].isalpha() and definitions[body[0]][0].isalpha():
                raise ValueError(f"{name} uses {body[0]}, which rests on another name itself: define it on digits")
            definitions[name] = (body[0], body[1], body[2])
        if len(definitions) > (most := 3 * LEVELS[self.level][0][1]):
            raise ValueError(f"{len(definitions)} definitions; level {self.level} has room for {most}")
        asked = tuple(match[2].split(","))
        if missing := sorted(set(asked) - definitions.keys()):
            raise ValueError(f"asked but not defined: {', '.join(missing)}")
        return TwoHopProblem(definitions, asked)

    def teach(self, problem: TwoHopProblem, rng: Random) -> str:
        beliefs = misconceptions(0.18, seed=2468)
        needed = problem.needed()
        value: dict[str, int] = {}
        said: dict[str, str] = {}
        for v, (x, operator, y) in problem.definitions.items():
            possible = x.isdigit() or x in value
            if v in needed or (possible and rng.random() < self.distractor):
                first = value[x] if x in value else int(x)
                value[v] = teacher_result(first, operator, int(y), beliefs, rng)
                said[v] = with_recheck(_working(problem, v, first), value[v], self.recheck, rng)
        text = _in_random_order(problem, said, filler(rng), rng)
        return f"{THINK}{text}{END_THINK}{BOXED}{','.join(f'{v}={value[v]}' for v in problem.asked)}}}"

    def verify(self, problem: TwoHopProblem, completion: str) -> bool:
        return boxed_answer(completion) == problem.answer

    def label(self, problem: TwoHopProblem, completion: str) -> Labels:
        """Essential: the steps that set the values which the asked names end with, and those that set the values which
        these read when they were written. A re-check that repeats a value is redundant, one that changes it takes over.
        First error: the earliest wrong character in an essential step; else a missing step; else in the answer."""
        trace = _Trace(problem, completion)
        hops = trace.hops()
        return Labels(
            correct=(correct := self.verify(problem, completion)),
            steps=tuple(Step(start, end, k in hops) for k, (start, end) in enumerate(trace.spans)),
            first_error=None
            if correct
            else first_error(
                completion,
                in_steps=[trace.errors[k] for k in hops],
                complete=all(v in trace.source for v in problem.asked),
                reasoning_end=trace.reasoning_end,
                answer=problem.answer,
            ),
            answer=answer_offset(completion, trace.reasoning_end),
        )

    def hops(self, problem: TwoHopProblem, completion: str) -> tuple[int | None, ...]:
        """For each step: 1 if the answer reads its value, 2 if only such a step does, None if it is redundant."""
        trace = _Trace(problem, completion)
        hops = trace.hops()
        return tuple(hops.get(k) for k in range(len(trace.spans)))


class _Trace:
    """The steps of a completion that set a value: which one each name ends with, what each read, and its error."""

    def __init__(self, problem: TwoHopProblem, completion: str) -> None:
        self.spans, self.reasoning_end = segments(completion)
        self.source: dict[str, int] = {}
        self.errors: dict[int, int | None] = {}
        self._asked = problem.asked
        self._read: dict[int, int] = {}
        value: dict[str, int] = {}
        for k, (start, end) in enumerate(self.spans):
            step = _STEP.fullmatch(completion, start, end)
            if not step or (name := step["name"]) not in problem.definitions:
                continue
            result = int(step["result"])
            if value.get(name) != result:
                if (u := problem.rests_on(name)) in self.source:
                    self._read[k] = self.source[u]
                self.errors[k] = first_difference(step["body"], _worked(problem, name, value), step.start("body"))
                self.source[name], value[name] = k, result

    def hops(self) -> dict[int, int]:
        """Essential step -> 1 if it sets an asked value, 2 if only such a step read it."""
        direct = {self.source[v] for v in self._asked if v in self.source}
        return {self._read[k]: 2 for k in direct if k in self._read} | dict.fromkeys(direct, 1)


def _working(problem: TwoHopProblem, name: str, first: int) -> str:
    """A step up to its result, given the value of its first operand."""
    x, operator, y = problem.definitions[name]
    shown = "" if x.isdigit() else f"{x}{operator}{y}:"
    return f"{name}={shown}{first}{operator}{y}="


def _worked(problem: TwoHopProblem, name: str, value: Mapping[str, int]) -> str:
    """How the step should read, given the values so far; empty if it reads a value that is not there yet."""
    x, operator, y = problem.definitions[name]
    if x.isalpha() and x not in value:
        return ""
    first = value[x] if x in value else int(x)
    return f"{_working(problem, name, first)}{compute(first, operator, int(y))}"


def _in_random_order(problem: TwoHopProblem, said: Mapping[str, str], others: list[str], rng: Random) -> str:
    """What is said about each name, and other things, with each name after the one it rests on.

    A family gets random places of one random order, and so is as early as any other. Within it, what rests on an
    essential step without being asked comes after that step, and would be late on the whole: so the asked name comes
    last in half of the completions, and at random in the others.
    """
    asked_last = rng.random() < 0.5
    family = {v: problem.rests_on(v) or v for v in said}
    members = {f: [f] for f in family.values()}
    for v in sorted(rng.sample(sorted(said), len(said)), key=lambda v: asked_last and v in problem.asked):
        if v not in members:
            members[family[v]].append(v)
    places = [*family.values(), *others]
    rng.shuffle(places)
    return "".join(said[members[p].pop(0)] if p in members else p for p in places)
