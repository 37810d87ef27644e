"""Does a reward know the right answers when it sees them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokencredit.rewards import Reward
from tokencredit.rewards.base import BOXED, END_THINK, as_completion, checked_values, ground_truth, name_of


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

    Raises:
        ValueError: the reward returns no list of one number (or None).
    """
    missed = []
    for row, problem in enumerate(problems):
        gold, prompt = ground_truth(problem["answer"]), problem["prompt"]
        completion = as_completion(prompt, f"<think>{END_THINK}{BOXED}{gold}}}")
        columns = {name: [value] for name, value in problem.items() if name != "prompt"}
        try:
            values = reward(prompts=[prompt], completions=[completion], completion_ids=[[]], **columns)
        except ValueError as error:
            score, why = None, str(error)
        else:
            (score,) = checked_values(values, name_of(reward), 1)
            why = f"scores {score}"
        if score != 1:
            missed.append(GoldMiss(row, gold, why))
        if on_progress is not None:
            on_progress(row + 1)
    return missed
