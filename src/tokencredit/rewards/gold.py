"""Does a reward know the right answers when it sees them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokencredit.rewards import Reward
from tokencredit.rewards.base import BOXED, END_THINK, as_completion, ground_truth


@dataclass(frozen=True)
class GoldMiss:
    """A problem whose own answer does not score 1; `why` is the reward's error, or the score."""

    row: int
    answer: str
    why: str


def gold_misses(
    problems: Iterable[Mapping[str, Any]], reward: Reward, *, on_progress: Callable[[int], None] | None = None
) -> list[GoldMiss]:
    """The problems whose own `answer`, boxed behind empty reasoning, does not score 1: no model could solve them.

    Args:
        problems: rows with `prompt`, `answer` (text), and whatever else the reward reads.
        on_progress: called with the number of problems done.
    """
    missed = []
    for row, problem in enumerate(problems):
        gold, prompt = ground_truth(problem["answer"]), problem["prompt"]
        completion = as_completion(prompt, f"<think>{END_THINK}{BOXED}{gold}}}")
        columns = {name: [value] for name, value in problem.items() if name != "prompt"}
        try:
            score = reward(prompts=[prompt], completions=[completion], completion_ids=[[]], **columns)[0]
            why = f"scores {score}"
        except ValueError as error:
            score, why = None, str(error)
        if score != 1:
            missed.append(GoldMiss(row, gold, why))
        if on_progress is not None:
            on_progress(row + 1)
    return missed
