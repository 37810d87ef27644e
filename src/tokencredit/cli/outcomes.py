"""Which of a user's traces are correct, and the outcome advantage of each, which `score` spreads over the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokencredit.rewards.base import known_correct

if TYPE_CHECKING:
    from torch import Tensor

    from tokencredit.completions import Completions

_OF_REWARDS = ("grpo", "dr_grpo", "rloo")


def check_outcome(outcome: str, threshold: float | None) -> None:
    """
    Raises:
        ValueError: there is no such outcome, or the threshold is no number or would not be read.
    """
    if outcome != "sign" and outcome not in _OF_REWARDS:
        raise ValueError(f"unknown outcome {outcome!r}: use sign, {', '.join(_OF_REWARDS)}")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"--correct-threshold must be a finite number; got {threshold}")
    if threshold is not None and outcome != "sign":
        raise ValueError(f"--correct-threshold goes with --outcome sign; {outcome} reads the rewards themselves")


def known_outcomes(completions: Completions, threshold: float | None) -> tuple[Completions, list[str]]:
    """The completions with `correct` filled in where their rewards tell it, and what the user should be told.

    A trace's own `correct` is believed. Where it is missing but there is a reward, the reward tells: with a threshold,
    so much or more is correct; without, 1 is correct and 0 is wrong if all the rewards in question are 0 or 1.

    Raises:
        ValueError: the rewards are others than 0 and 1 and there is no threshold: which are correct would be a guess.
    """
    import torch

    otherwise = f", or --outcome {', '.join(_OF_REWARDS)} (advantages from the rewards themselves)"
    by_reward = correct_by_reward(completions.labels, threshold, "traces", otherwise)
    filled: list[dict[str, Any]] = [dict(label) for label in completions.labels]
    for i, value in by_reward.items():
        filled[i]["correct"] = value
    correct = [label["correct"] for label in filled]
    rollouts = completions.rollouts
    if None not in correct:
        rollouts = replace(rollouts, correct=torch.tensor(correct, device=rollouts.completion_ids.device))
    return completions._replace(rollouts=rollouts, labels=filled), _notes([*by_reward.values()], threshold, correct)


def correct_by_reward(
    labels: Sequence[dict[str, Any]], threshold: float | None, what: str, otherwise: str = ""
) -> dict[int, bool]:
    """The number of a completion that has a reward but no `correct` -> whether its reward makes it correct.

    Args:
        threshold: the reward from which on it does; None: 1 is correct and 0 is wrong.
        what: what an error calls the completions. otherwise: what else it advises.

    Raises:
        ValueError: the rewards are others than 0 and 1, and there is no threshold.
    """
    rewards = {i: x["reward"] for i, x in enumerate(labels) if x["correct"] is None and x["reward"] is not None}
    by_reward = known_correct([*rewards.values()]) if threshold is None else [r >= threshold for r in rewards.values()]
    known = {i: value for i, value in zip(rewards, by_reward, strict=True) if value is not None}
    if len(known) < len(rewards):
        raise ValueError(
            f"{len(rewards)} of {len(labels)} {what} have a reward but do not say whether they are correct, and not "
            "all of these rewards are 0 or 1: give --correct-threshold X (a reward of X or more is correct)"
            f"{otherwise}"
        )
    return known


def _notes(told: list[bool], threshold: float | None, correct: list[bool | None]) -> list[str]:
    notes = []
    total, unknown = len(correct), correct.count(None)
    if told:
        rule = "1 is correct, 0 is wrong" if threshold is None else f"{threshold:g} or more is correct"
        notes.append(
            f"{len(told)} of {total} traces do not say whether they are correct; their reward does ({rule}): "
            f"{told.count(True)} correct, {told.count(False)} wrong"
        )
    if unknown:
        notes.append(
            f"{unknown} of {total} traces do not say whether they are correct; their credit is shown for an advantage "
            "of +1"
        )
    return notes


def outcome_advantages(outcome: str, completions: Completions) -> Tensor:
    """(B,): with `sign` -1 for wrong completions, 1 for correct ones and for those that nothing is known of; or from
    the rewards."""
    import torch

    from tokencredit import outcome as outcomes

    if outcome == "sign":
        return torch.tensor([-1.0 if label["correct"] is False else 1.0 for label in completions.labels])
    rollouts = completions.rollouts
    if rollouts.rewards is None or rollouts.group is None:
        missing = sum(label["reward"] is None for label in completions.labels)
        raise ValueError(
            f"--outcome {outcome} needs a reward for each completion; {missing} of {len(completions.labels)} have none"
        )
    return getattr(outcomes, outcome)(rollouts.rewards, rollouts.group)
