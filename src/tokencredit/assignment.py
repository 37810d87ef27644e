"""From a policy and its rollouts to credit, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokencredit import outcome
from tokencredit.credit import Credit
from tokencredit.methods import Method, method
from tokencredit.notices import inactive
from tokencredit.rollouts import Rollouts
from tokencredit.signals import collect


def assign(
    policy: nn.Module,
    rollouts: Rollouts,
    m: str | Method,
    advantages: Tensor | None = None,
    reward_model: Any = None,
    step: int | None = None,
    *,
    reference_model: nn.Module | None = None,
    batch_size: int | None = None,
    kernels: str = "torch",
) -> Credit:
    """Collect what a method needs from the policy, and apply it.

    A UserWarning says where the method left completions uniform, why, and which option helps.

    Args:
        policy: a transformers causal LM, or a PEFT model around one.
        m: a method, or the name of one with its default parameters.
        advantages: (B,) outcome advantages; by default `outcome.grpo` of the rollouts' rewards and groups.
        reward_model: for methods that read one: a transformers classifier with the policy's tokenizer, a function from
            embeddings to rewards, or a `RewardModel`.
        step: the training step, for methods with a schedule.
        reference_model: what `divergence` compares with; by default the policy with its adapter off.
        batch_size: completions per forward pass; all by default. It does not change the credit.
        kernels: what computes attention statistics: `torch`, `fused` or `triton`, as in `collect`.

    Raises:
        ValueError: an unknown method, no completion, no advantages and no rewards to make them from, or a policy that
            cannot give the signals.
    """
    chosen = method(m) if isinstance(m, str) else m
    if not len(rollouts):
        raise ValueError("there is no completion to assign credit to: the rollouts are an empty batch")
    if advantages is None:
        if rollouts.rewards is None or rollouts.group is None:
            raise ValueError("pass advantages=, or give the rollouts both rewards and group to compute them from")
        advantages = outcome.grpo(rollouts.rewards, rollouts.group)
    signals = collect(
        policy,
        rollouts,
        chosen.needs,
        reward_model,
        reference_model=reference_model,
        batch_size=batch_size,
        kernels=kernels,
    )
    credit = chosen(rollouts, advantages, signals, step=step)
    for sentence in inactive(chosen, credit.diagnostics):
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return credit


def assignable(
    methods: Mapping[str, Method], policy: nn.Module, reward_model: Any = None
) -> tuple[dict[str, Method], dict[str, str]]:
    """Of several methods, those whose signals the policy and the reward model can give; and of the others, why not."""
    able, left_out = {}, {}
    for name, m in methods.items():
        if m.needs.adapter and not hasattr(policy, "disable_adapter"):
            left_out[name] = "it reads a LoRA adapter, and this policy has none"
        elif m.needs.reward and reward_model is None:
            left_out[name] = "it reads a reward model, and none is given"
        else:
            able[name] = m
    return able, left_out
