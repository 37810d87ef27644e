"""Problems for training and for evaluation, which never meet: a hash of the prompt decides which side one is on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

from tokencredit.tables import read_each
from tokencredit.testbed.tasks import Problem, Task

HELD_OUT_SHARE = 5
"""One problem in this many is held out."""


def is_held_out(problem: Problem) -> bool:
    """Equal problems have equal prompts, so none is on both sides."""
    return hashlib.blake2b(problem.prompt.encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def generate_problems(task: Task, count: int, *, held_out: bool, seed: int) -> list[Problem]:
    """`count` problems of one side; held-out ones are distinct.

    Raises:
        ValueError: the task does not have that many distinct problems to hold out.
    """
    rng = Random(f"{task.name}-{held_out}-{seed}")
    found: list[Problem] = []
    seen: set[str] = set()
    for _ in range(1000 + 200 * count):
        problem = task.problem(rng)
        if is_held_out(problem) == held_out and not (held_out and problem.prompt in seen):
            found.append(problem)
            seen.add(problem.prompt)
        if len(found) == count:
            return found
    raise ValueError(f"{task.name} at level {task.level} has fewer than {count} distinct held-out problems")


def load_problems(task: Task, path: Path | str) -> tuple[list[Problem], list[Problem]]:
    """Problems of a user's file (see `tokencredit.tables`), split into training and held-out ones; repeats are dropped.

    Raises:
        ValueError: a row is broken (its place is named), or one of the two sides is empty.
    """
    found: dict[str, Problem] = {}
    for problem in read_each(path, task.parse, typed=("nums", "target"), content="problem"):
        found.setdefault(problem.prompt, problem)
    training = [p for p in found.values() if not is_held_out(p)]
    held_out = [p for p in found.values() if is_held_out(p)]
    if not training or not held_out:
        raise ValueError(
            f"{path} has {len(found)} distinct problems, of which {len(held_out)} are held out (one in "
            f"{HELD_OUT_SHARE}, by a hash of the prompt): both sides need at least one; add problems"
        )
    return training, held_out
