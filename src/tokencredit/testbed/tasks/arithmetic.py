"""Arithmetic of digits modulo 10, with a teacher's misconceptions: what leaves room for RL to improve."""

from __future__ import annotations

from functools import cache
from random import Random

OPERATORS = "+-*"


def compute(x: int, operator: str, y: int) -> int:
    """x operator y, modulo 10."""
    return {"+": x + y, "-": x - y, "*": x * y}[operator] % 10


@cache
def misconceptions(share: float, seed: int) -> dict[tuple[int, str, int], int]:
    """A fixed wrong result for a `share` of all facts. Random slips would average out; a fixed belief is learnt."""
    rng = Random(seed)
    facts = [(x, operator, y) for operator in OPERATORS for x in range(10) for y in range(10)]
    return {f: (compute(*f) + rng.randrange(1, 10)) % 10 for f in facts if rng.random() < share}


def teacher_result(x: int, operator: str, y: int, beliefs: dict[tuple[int, str, int], int], rng: Random) -> int:
    """What the teacher writes: the wrong belief with probability 0.6 where there is one, else the truth."""
    fact = (x, operator, y)
    return beliefs[fact] if fact in beliefs and rng.random() < 0.6 else compute(*fact)
