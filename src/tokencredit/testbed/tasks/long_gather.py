"""long_gather: gather with longer reasoning, where a step's place does not tell whether it is essential.

    Q:a=6+9,b=2+3,c=2+4,d=6*8?d,b     <think>c=2+4=6;hm;b=2+3=9;waitb=2+3=5;d=6*8=8;</think>\\boxed{d=8,b=5}

Balanced by construction: the values worked out, each with its re-check, and the filler come in one random order. Half
of the re-checks take a slip back, which makes the re-check essential, and half repeat the value, which makes the first
saying essential.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from tokencredit.testbed.tasks.arithmetic import misconceptions, teacher_result
from tokencredit.testbed.tasks.base import BOXED, END_THINK, THINK
from tokencredit.testbed.tasks.gather import Gather, GatherProblem

LEVELS = {1: ((4, 7), (2, 4)), 2: ((7, 10), (3, 5)), 3: ((10, 12), (5, 6))}
"""Level -> range of the number of variables, range of the number asked."""

FILLER = ("hm;", "so;", "ok;", "ok,so;", "hm,now;")
"""Steps that say nothing."""
MOST_FILLER = 5


@dataclass(frozen=True)
class LongGather(Gather):
    """The long_gather task. With more values asked, the teacher believes fewer facts wrongly: 16 %."""

    level: int = 2
    name: ClassVar[str] = "long_gather"
    levels: ClassVar[Mapping[int, tuple[tuple[int, int], tuple[int, int]]]] = LEVELS
    distractor: ClassVar[float] = 0.75
    recheck: ClassVar[float] = 0.14

    @property
    def max_new_tokens(self) -> int:
        return 40 + 16 * self.levels[self.level][0][1]

    def teach(self, problem: GatherProblem, rng: Random) -> str:
        beliefs = misconceptions(0.16, seed=4321)
        parts, value = filler(rng), {}
        for v, (x, operator, y) in problem.definitions.items():
            if v in problem.asked or rng.random() < self.distractor:
                value[v] = teacher_result(x, operator, y, beliefs, rng)
                parts.append(with_recheck(f"{v}={x}{operator}{y}=", value[v], self.recheck, rng))
        rng.shuffle(parts)
        return f"{THINK}{''.join(parts)}{END_THINK}{BOXED}{','.join(f'{v}={value[v]}' for v in problem.asked)}}}"


def filler(rng: Random) -> list[str]:
    """A few steps that say nothing."""
    return rng.choices(FILLER, k=rng.randint(1, MOST_FILLER))


def with_recheck(working: str, value: int, share: float, rng: Random) -> str:
    """The step `working` + `value`, and a re-check in a `share` of the cases: every other one takes back a slip."""
    step = f"{working}{value};"
    if rng.random() >= share:
        return step
    slip = f"{working}{(value + rng.randrange(1, 10)) % 10};"
    return f"{rng.choice((step, slip))}wait{step}"
