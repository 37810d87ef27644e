"""Which completions of a verl run are correct, for methods that ask.

verl has one reward function. Its score may mix correctness with other rewards and penalties, and then only one of the
values that it gives besides, named by `algorithm.credit.correct_reward`, says whether an answer is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from tokencredit.methods.base import shown

SCORE = "score"
"""As `correct_reward`, the score itself, where the reward function gives no value of that name."""

_NOT_REWARDS = ("timeout", "overlong", "overlong_reward")
"""Values that verl's reward managers add to those of the reward function."""

_SETTING = "algorithm.credit.correct_reward"


def check_correct(config: Any, name: str, correct_reward: str | None) -> None:
    """Raise a ValueError where the score of a run is known not to say which completions are correct.

    Args:
        name: the method, which asks. correct_reward: `algorithm.credit.correct_reward`.
    """
    if correct_reward is not None:
        return
    # verl moves the settings under reward_model to those under reward after it has made its trainer's configuration.
    for root in ("reward", "reward_model"):
        if OmegaConf.select(config, f"{root}.reward_kwargs.overlong_buffer_cfg.enable"):
            raise ValueError(
                f"{name} asks which completions are correct, and {root}.reward_kwargs.overlong_buffer_cfg takes a "
                f"penalty off the score of long ones: set +{_SETTING} to the value of the reward function that says it "
                "(acc, for a function that gives a plain number)"
            )
    for key in ("reward.reward_model.enable", "reward_model.enable"):
        if OmegaConf.select(config, key):
            raise ValueError(
                f"{name} asks which completions are correct, and {key}=True may make the score that of a reward model: "
                f"set +{_SETTING} to the value of the reward function that says it, or to {SCORE}, for the score itself"
            )


def correctness(
    name: str, scores: Tensor, extras: Sequence[Mapping[str, Any] | None], correct_reward: str | None
) -> Tensor:
    """(B,) float: for each completion, the value that says whether it is correct.

    Args:
        name: the method, which asks.
        scores: (B,).
        extras: `extra_fields` of the completions, with what the reward function gave besides.
        correct_reward: `algorithm.credit.correct_reward`.

    Raises:
        ValueError: it is None, and the reward function gives several numbers; or it names nothing that is a number.
    """
    given = [(extra or {}).get("reward_extra_info") or {} for extra in extras]
    if correct_reward is None:
        everywhere = [key for key in (given[0] if given else ()) if all(_is_number(info.get(key)) for info in given)]
        if len(numbers := sorted(key for key in everywhere if key not in _NOT_REWARDS)) > 1:
            raise ValueError(
                f"{name} asks which completions are correct, and the reward function gives several numbers: set "
                f"+{_SETTING} to the one that says it, of {', '.join(numbers)}"
            )
        return scores
    if correct_reward == SCORE and not any(SCORE in info for info in given):
        return scores
    for info in given:
        if correct_reward not in info:
            raise ValueError(
                f"{_SETTING}={correct_reward} is nothing that the reward function gives: "
                f"{', '.join(map(str, info)) or 'it gives a score alone'}"
            )
        if not _is_number(info[correct_reward]):
            raise ValueError(
                f"{_SETTING}={correct_reward} must be a finite number, true or false for every completion; the reward "
                f"function gave {shown(info[correct_reward])}"
            )
    return torch.tensor([float(info[correct_reward]) for info in given])


def _is_number(value: Any) -> bool:
    """A finite number, true or false, of Python or NumPy."""
    if isinstance(value, Real) or type(value).__name__ in ("bool", "bool_"):
        return math.isfinite(value)
    return False
