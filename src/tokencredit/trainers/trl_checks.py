"""What would go wrong in a TRL run, mostly found at its start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name, is_async_callable

from tokencredit.prompts import render_chat
from tokencredit.signals import Needs

TRUNCATED_BATCHES = 3
"""So many generation batches in a row, from the start, may hold nothing but cut-off completions of equal reward."""

_RATES = ("dropout", "attention_dropout")


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
    if isinstance(prompt, str):
        return
    if (
        not isinstance(prompt, Sequence)
        or not prompt
        or not all(isinstance(m, Mapping) and "role" in m for m in prompt)
    ):
        raise ValueError(
            'the prompts must be text, or chat messages like {"role": "user", "content": "..."}; the first is '
            f"{prompt!r:.80}"
        )
    render_chat(prompt, tokenizer, **template)


def check_reference(policy: Any, args: Any, needs: Needs) -> None:
    """Raise a ValueError where TRL's reference is a copy of the adapter that only TRL's own passes show."""
    copied = needs.reference_logprob and args.beta != 0.0 and "ref" in getattr(policy, "peft_config", {})
    if copied and (args.temperature != 1.0 or dropout(policy)):
        raise ValueError(
            "the reference is TRL's copy of the adapter as it was given, which only passes at temperature=1.0 and "
            "without dropout can be compared with: set them so, or beta=0.0 to compare with the adapter off"
        )


def checked_reward(reward: Any) -> Any:
    """A reward function that says which one it is when it raises, and refuses to give NaN or infinity.

    None, by which a function has nothing to say, is let through. So are models, as they are.
    """
    if not callable(reward) or isinstance(reward, nn.Module):
        return reward
    name = get_callable_name(reward)

    if is_async_callable(reward):

        @wraps(reward, updated=())
        async def checked(*args: Any, **kwargs: Any) -> Any:
            with _named(name):
                return _finite(await reward(*args, **kwargs), name)
    else:

        @wraps(reward, updated=())
        def checked(*args: Any, **kwargs: Any) -> Any:
            with _named(name):
                return _finite(reward(*args, **kwargs), name)

    checked.__name__ = name
    return checked


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the reward function {name}")
        raise


def _finite(values: Any, name: str) -> list[Any]:
    values = list(values)
    for i, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"the reward function {name} gave {float(value)} for completion {i}: give a finite number, or None "
                "where it has nothing to say"
            )
    return values


def check_rewards(rewards: Tensor, names: list[str], *, none_at_all: bool) -> None:
    """Raise a ValueError where a completion has no finite reward; (B, F) of all processes, NaN for None.

    Args:
        none_at_all: a completion may go without any, as long as some have one.
    """
    unscored = rewards.isnan().all(1)
    if rewards.isinf().any() or unscored.all() or (unscored.any() and not none_at_all):
        row = int((rewards.isinf().any(1) | unscored).nonzero()[0, 0])
        given = ", ".join(f"{name} {value:g}" for name, value in zip(names, rewards[row].tolist(), strict=True))
        raise ValueError(f"completion {row} of a generation batch has no finite reward: {given} (nan: None or NaN)")


def refuse_bases(trainer: type) -> None:
    for base in trainer.__mro__:
        if base.__name__ in ("RLOOTrainer", "GMPOTrainer"):
            raise ValueError(
                f"{base.__name__} has a loss per sequence, which cannot take credit per token: use CreditGRPOTrainer "
                '(credit_outcome="rloo" gives it leave-one-out advantages)'
            )


def dropout(policy: nn.Module) -> str | None:
    """The name of a module with dropout, if there is one."""
    for name, module in policy.named_modules():
        # Some models keep a rate as a number, and call the function.
        rates = [module.p] if isinstance(module, nn.Dropout) else [getattr(module, n, 0) for n in _RATES]
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return name or type(module).__name__
    return None


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
