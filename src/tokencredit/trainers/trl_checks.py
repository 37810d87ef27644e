"""What would go wrong in a TRL run, mostly found at its start."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name, is_async_callable

from tokencredit.prompts import render_chat
from tokencredit.rewards.base import checked_values
from tokencredit.signals import ModelLayers, Needs
from tokencredit.signals.layers import text_config
from tokencredit.signals.placement import has_varying_heads

TRUNCATED_BATCHES = 3
"""So many generation batches in a row, from the start, may hold nothing but cut-off completions of equal reward."""

BATCHES_WITHOUT_CORRECT = 5
"""After so many generation batches without a correct completion the user is warned."""

_RATES = ("dropout", "attention_dropout")


class RunError(ValueError):
    """A run has to end for a reason that its message explains in full, so that no traceback is needed."""


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
    """A reward function that says which one it is when it raises, and whose values are checked (`checked_values`).

    Models are returned as they are.
    """
    if not callable(reward) or isinstance(reward, nn.Module):
        return reward
    name = get_callable_name(reward)

    if is_async_callable(reward):

        @wraps(reward, updated=())
        async def checked(*args: Any, **kwargs: Any) -> Any:
            with _named(name):
                return _checked(await reward(*args, **kwargs), name, len(kwargs["completions"]))
    else:

        @wraps(reward, updated=())
        def checked(*args: Any, **kwargs: Any) -> Any:
            with _named(name):
                return _checked(reward(*args, **kwargs), name, len(kwargs["completions"]))

    checked.__name__ = name
    return checked


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        error.add_note(f"raised by the reward function {name}")
        raise


def _checked(values: Any, name: str, count: int) -> list[float | None]:
    try:
        return checked_values(values, name, count)
    except ValueError as error:
        raise RunError(str(error)) from None


def check_rewards(rewards: Tensor, names: list[str], *, none_at_all: bool) -> None:
    """Raise a ValueError where a completion has no finite reward; (B, F) of all processes, NaN for None.

    Args:
        none_at_all: a completion may go without any, as long as some have one.
    """
    unscored = rewards.isnan().all(1)
    if rewards.isinf().any() or unscored.all() or (unscored.any() and not none_at_all):
        row = int((rewards.isinf().any(1) | unscored).nonzero()[0, 0])
        given = ", ".join(f"{name} {value:g}" for name, value in zip(names, rewards[row].tolist(), strict=True))
        raise RunError(f"completion {row} of a generation batch has no finite reward: {given} (nan: None or NaN)")


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


def check_parallelism(parallelism: Any, method: Any) -> None:
    """Raise a ValueError where attention heads lie on several processes, and `method` reads attention.

    Args:
        parallelism: accelerate's ParallelismConfig, or None.
    """
    needs = method.needs
    if getattr(parallelism, "tp_size", 1) > 1 and (needs.answer_attention or needs.answer_heads or needs.distances):
        raise ValueError(
            f"{method.name} reads attention, but with tensor parallelism (parallelism_config.tp_size="
            f"{parallelism.tp_size}) each process has a part of the heads: use tp_size=1, or a method that reads none"
        )


def check_heads(policy: Any, needs: Needs) -> None:
    """Raise a ValueError where a method reads a layer or an attention head that the policy does not have."""
    pairs = [*needs.answer_heads, *(pair for need in needs.distances for pair in need.heads or ())]
    if not (pairs or needs.answer_attention or needs.distances):
        return
    layers, config = ModelLayers.of(policy), text_config(policy)
    for layer in (*needs.answer_attention, *(layer for layer, _ in pairs)):
        layers.index(layer)
    for need in needs.distances:
        layers.sample(need)
    count = getattr(config, "num_attention_heads", None)
    if not isinstance(count, int) or has_varying_heads(config):
        return
    for layer, head in pairs:
        if not -count <= head < count:
            raise ValueError(
                f"the credit method reads head {head} of layer {layer}, but the policy has {count} heads per layer: "
                f"use {-count} to {count - 1}"
            )


def check_correct_reward(named: str | None, functions: Sequence[str], method: Any) -> None:
    """Raise a ValueError where it is not known which reward function says whether an answer is correct.

    Args:
        named: the setting `credit_correct_reward`. functions: the names of the reward functions.
    """
    if named is not None and named not in functions:
        raise ValueError(f"credit_correct_reward {named!r} is none of the reward functions: {', '.join(functions)}")
    if named is None and len(functions) > 1 and method.needs.group:
        raise ValueError(
            f"{method.name} reads which answers are correct, and there are {len(functions)} reward functions: name the "
            f"one that says so, credit_correct_reward= one of {', '.join(functions)}"
        )


class CorrectnessWatch:
    """Warns once when none of a run's first completions is correct."""

    def __init__(self, method: str, threshold: float) -> None:
        self._method, self._threshold = method, threshold
        self._batches = 0

    def __call__(self, correct: Tensor) -> None:
        """Look at a generation batch; `correct` is (N,) bool."""
        if self._batches == BATCHES_WITHOUT_CORRECT:
            return
        self._batches = BATCHES_WITHOUT_CORRECT if correct.any() else self._batches + 1
        if self._batches == BATCHES_WITHOUT_CORRECT and not correct.any():
            warnings.warn(
                f"no completion of the first {self._batches} generation batches is correct, which {self._method} "
                f"reads: none has a reward of credit_correct_threshold={self._threshold:g} or more. Lower the "
                "threshold if the reward of a correct answer is smaller, or name another credit_correct_reward",
                UserWarning,
                stacklevel=2,
            )


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
            raise RunError(
                f"in the first {self._batches} generation batches every completion was cut off at "
                f"max_completion_length={self._limit} and all rewards were {float(rewards[0]):g}, so there is nothing "
                "to learn from: raise max_completion_length, start from a model that ends its answers, or set "
                "credit_stop_if_truncated=False to train on"
            )
