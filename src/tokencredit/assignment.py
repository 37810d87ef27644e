"""From a policy and its rollouts to credit, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit import outcome
from tokencredit.credit import Credit
from tokencredit.inputs import as_tensor, check_model
from tokencredit.methods import Method, methods, parameters_of
from tokencredit.methods.given import method_of
from tokencredit.notices import inactive
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Signals, collect

_CALL = "tc.assign(policy, rollouts, method)"


def assign(
    policy: nn.Module | None,
    rollouts: Rollouts,
    m: str | Method,
    advantages: Any = None,
    reward_model: Any = None,
    step: int | None = None,
    *,
    reference_model: nn.Module | None = None,
    batch_size: int | None = None,
    kernels: str = "torch",
    **parameters: Any,
) -> Credit:
    """Collect what a method needs from the policy, and apply it.

    A UserWarning says where the method left completions uniform, why, and which option helps.

    Args:
        policy: a transformers causal LM, or a PEFT model around one. None for a method that reads nothing of it, such
            as `uniform`.
        m: a method; the name of one with its default parameters; or a name with parameters, "atpo:floor=0.5".
        advantages: (B,) outcome advantages, a tensor, an array or a list; by default `outcome.grpo` of the rollouts'
            rewards and groups.
        reward_model: for methods that read one: a transformers classifier with the policy's tokenizer, a function from
            embeddings to rewards, or a `RewardModel`.
        step: the training step, for methods with a schedule.
        reference_model: what `divergence` compares with; by default the policy with its adapter off.
        batch_size: completions per forward pass; all by default. It does not change the credit.
        kernels: what computes attention statistics: `torch`, `fused` or `triton`, as in `collect`.
        parameters: `assign` takes no further arguments. Give parameters of the method to the method itself:
            `tc.method("atpo", floor=0.5)`.

    Raises:
        ValueError: the policy and the rollouts are swapped, an unknown method, no completion, advantages that are not
            (B,) and finite, no advantages and no rewards to make them from, or a policy that cannot give the signals.
    """
    check_model(policy, rollouts, _CALL, optional=True)
    if parameters:
        raise ValueError(_misplaced(m, parameters))
    method = method_of(m)
    check_model(policy, rollouts, _CALL, optional=not method.needs)
    if not len(rollouts):
        raise ValueError("there is no completion to assign credit to: the rollouts are an empty batch")
    outcomes = _advantages(advantages, rollouts)
    signals = Signals()
    if policy is not None:
        signals = collect(
            policy,
            rollouts,
            method.needs,
            reward_model,
            reference_model=reference_model,
            batch_size=batch_size,
            kernels=kernels,
        )
    credit = method(rollouts, outcomes, signals, step=step)
    for sentence in inactive(method, credit.diagnostics):
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return credit


def _advantages(given: Any, rollouts: Rollouts) -> Tensor:
    """(B,): the outcome advantages, checked before a model runs."""
    if given is None:
        if rollouts.rewards is None or rollouts.group is None:
            raise ValueError("pass advantages=, or give the rollouts both rewards and group to compute them from")
        return outcome.grpo(rollouts.rewards, rollouts.group)
    advantages = as_tensor("advantages", given, rollouts.completion_ids.device)
    if tuple(advantages.shape) != (len(rollouts),):
        raise ValueError(
            f"advantages must be ({len(rollouts)},), one per completion; got shape {tuple(advantages.shape)}"
        )
    if not torch.isfinite(advantages).all():
        raise ValueError("advantages must be finite: some are NaN or infinite")
    return advantages.float()


def _misplaced(m: Any, unknown: Mapping[str, Any]) -> str:
    """What to write in place of arguments that `assign` does not have, which are usually the method's."""
    name = m.partition(":")[0].strip() if isinstance(m, str) else getattr(m, "name", "")
    valid = parameters_of(name) if name in methods() else []
    of_method = [f"{key}={value!r:.60}" for key, value in unknown.items() if key in valid]
    if len(of_method) < len(unknown) or not of_method:
        others = ", ".join(key for key in unknown if key not in valid)
        return f"tc.assign has no argument {others}" + (
            f"; the parameters of {name} are {', '.join(valid)}" * bool(valid)
        )
    belong = "is a parameter" if len(of_method) == 1 else "are parameters"
    return f'{", ".join(unknown)} {belong} of the method: pass tc.method("{name}", {", ".join(of_method)})'


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
