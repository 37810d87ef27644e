"""What would go wrong in a TRL run, mostly found at its start."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.prompts import render_chat

TRUNCATED_BATCHES = 3
"""So many generation batches in a row, from the start, may hold nothing but cut-off completions of equal reward."""

DEGENERATE = 0.9
"""Share of completions whose credit is flagged from which on the user is told."""


def check_prompts(dataset: Any, tokenizer: Any, **template: Any) -> None:
    """Raise a ValueError where a dataset has no prompts, or its first is chat messages that cannot be rendered.

    Args:
        dataset: of the `datasets` library; of a stream only the first row is looked at.
        template: as in `render_chat`.
    """
    first = next(iter(islice(dataset, 1)), None)
    if first is None:
        raise ValueError("the training data holds no problem")
    if "prompt" not in first:
        raise ValueError(
            f"the training data has no column prompt; there are {', '.join(first)}. Rename one, or read it with "
            "tokencredit.data.load_problems, which knows the usual layouts"
        )
    prompt = first["prompt"]
    if not isinstance(prompt, str) and prompt[-1].get("role") != "assistant":
        render_chat(prompt, tokenizer, **template)


def checked_reward(reward: Any) -> Any:
    """A reward function that says which one it is when it raises, and refuses to give NaN or infinity.

    None, by which a function has nothing to say, is let through. So are models and coroutines, as they are.
    """
    if not callable(reward) or isinstance(reward, nn.Module) or _is_coroutine(reward):
        return reward
    name = getattr(reward, "__name__", type(reward).__name__)

    @wraps(reward, updated=())
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            values = list(reward(*args, **kwargs))
        except Exception as error:
            error.add_note(f"raised by the reward function {name}")
            raise
        for i, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"the reward function {name} gave {float(value)} for completion {i}: give a finite number, or None "
                    "where it has nothing to say"
                )
        return values

    checked.__name__ = name
    return checked


def check_rewards(rewards: Tensor, names: list[str]) -> None:
    """Raise a ValueError where a completion has no finite reward; (B, F) of all processes, NaN for None."""
    if rewards.isinf().any() or rewards.isnan().all(1).any():
        row = int((rewards.isinf().any(1) | rewards.isnan().all(1)).nonzero()[0, 0])
        given = ", ".join(f"{name} {value:g}" for name, value in zip(names, rewards[row].tolist(), strict=True))
        raise ValueError(f"completion {row} of a generation batch has no finite reward: {given} (nan: None or NaN)")


def warn_if_degenerate(name: str, means: dict[str, float]) -> bool:
    for flag, what in (("broadcast", "as good as uniform"), ("sparse", "on a few tokens only")):
        if means[flag] >= DEGENERATE:
            warnings.warn(
                f"the credit of {name} is {what} in {means[flag]:.0%} of the completions (credit/{flag}; "
                f"{means['no_answer']:.0%} have no answer span): it hardly tells tokens apart",
                UserWarning,
                stacklevel=2,
            )
            return True
    return False


def refuse_bases(trainer: type) -> None:
    for base in trainer.__mro__:
        if base.__name__ in ("RLOOTrainer", "GMPOTrainer"):
            raise ValueError(
                f"{base.__name__} has a loss per sequence, which cannot take credit per token: use CreditGRPOTrainer "
                '(credit_outcome="rloo" gives it leave-one-out advantages)'
            )


def dropout(policy: nn.Module) -> str | None:
    """The name of a module with dropout, if there is one."""
    rate = {
        name: m.p if isinstance(m, nn.Dropout) else getattr(m, "attention_dropout", None)
        for name, m in policy.named_modules()
    }
    return next((name for name, p in rate.items() if p), None)


class TruncationWatch:
    """Tells, batch after batch, whether the run can learn anything at its maximum length."""

    def __init__(self, max_completion_length: int | None) -> None:
        self._limit = max_completion_length
        self._batches: int | None = 0

    def __call__(self, truncated: float, rewards: Tensor) -> None:
        """Raise a ValueError after `TRUNCATED_BATCHES` such batches; after any other batch there is no more to watch.

        Args:
            truncated: share of the completions that are cut off. rewards: (B,).
        """
        if self._batches is None:
            return
        if truncated < 1 or not torch.equal(rewards, rewards[:1].expand_as(rewards)):
            self._batches = None
            return
        self._batches += 1
        if self._batches >= TRUNCATED_BATCHES:
            raise ValueError(
                f"in the first {self._batches} generation batches every completion was cut off at "
                f"max_completion_length={self._limit} and all rewards were {float(rewards[0]):g}, so there is nothing "
                "to learn from: raise max_completion_length, or start from a model that ends its answers"
            )


def _is_coroutine(function: Callable[..., Any]) -> bool:
    return any(inspect.iscoroutinefunction(f) for f in (function, type(function).__call__))
