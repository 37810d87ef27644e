"""Read signals from the live policy: one forward pass, and one with the adapter off where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import probe_attention
from tokencredit.signals.attention_kernels import kernels_named
from tokencredit.signals.attention_plan import AttentionPlan
from tokencredit.signals.final_states import final_states, pass_inputs, predicting, state_distance
from tokencredit.signals.identity import check_models
from tokencredit.signals.layers import ModelLayers
from tokencredit.signals.logits import check_head, logprob_and_entropy
from tokencredit.signals.micro_batches import joined, left_padding_matters, micro_batches, trimmed
from tokencredit.signals.placement import input_device, refuse_fsdp, refuse_tensor_parallel
from tokencredit.signals.policy import adapter_off, causal_lm, check_adapter, reading
from tokencredit.signals.reward_attribution import attribute_reward
from tokencredit.signals.reward_model import RewardModel
from tokencredit.signals.types import Needs, Signals


def collect(
    policy: nn.Module,
    rollouts: Rollouts,
    needs: Needs,
    reward_model: Any = None,
    *,
    reference_model: nn.Module | None = None,
    batch_size: int | None = None,
    kernels: str = "torch",
    on_progress: Callable[[int], None] = lambda done: None,
) -> Signals:
    """Read what `needs` names, for every completion, from the policy as it is now.

    The policy is left as it was found, also after an error: dropout is off only while it is read, and no gradient is
    recorded.

    Args:
        policy: a transformers causal LM, or a PEFT model around one; not wrapped for distributed training.
        needs: usually `method.needs`, or the union of several (`a.needs | b.needs`).
        reward_model: for methods that read one: a transformers classifier with the policy's tokenizer, a function from
            embeddings to rewards, or a `RewardModel`.
        reference_model: what `reference_logprob` is read from; by default the policy with its adapter off.
        batch_size: how many completions one forward pass takes; all by default. It does not change the signals.
            Completions of similar length share a pass, which is as wide as its longest prompt and completion.
        kernels: what computes attention statistics: `torch`; `fused`, faster under SDPA on a CPU, signals equal up to
            rounding; `triton`, on a GPU.
        on_progress: called after each forward pass, with the number of completions that have been read.

    Raises:
        ValueError: the policy cannot give what is asked for (no adapter, no such layer, attention or logits that
            cannot be read, weights or heads spread over processes), `answer_start` is missing where it is needed, or
            there are no such kernels.
    """
    chosen = kernels_named(kernels)
    if not needs:
        return Signals()
    if needs.answer_attention or needs.answer_heads:
        rollouts.has_answer  # noqa: B018 - raises where the spans are not marked
    check_adapter(policy, needs, reference_model)
    check_models(policy, needs)
    scorer = reward_model_for(needs, reward_model)
    size = max(1, len(rollouts)) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    given = {"the policy": policy, "the reference model": reference_model, "the reward model": scorer and scorer.module}
    models = {name: model for name, model in given.items() if isinstance(model, nn.Module)}
    for name, model in models.items():
        refuse_fsdp(model, name)
    if needs.attention:
        refuse_tensor_parallel(causal_lm(policy))
        chosen.check(input_device(causal_lm(policy), rollouts.completion_ids.device))
    passes = [model for model in (policy, reference_model) if model is not None and needs.policy]
    padding_matters = any(left_padding_matters(causal_lm(model), rollouts.input_ids.shape[1]) for model in passes)
    batches = micro_batches(rollouts, size, equal_prompts=padding_matters)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(reading(model))
        parts: list[Signals] = []
        done = 0
        for rows in batches:
            parts.append(_collect(policy, trimmed(_rows(rollouts, rows)), needs, reference_model, scorer, kernels))
            done += len(rows)
            on_progress(done)
    return joined(parts, batches, rollouts.completion_ids.shape[1])


def _rows(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    whole = torch.equal(rows, torch.arange(len(rollouts)))
    return rollouts if whole else rollouts.rows(rows.to(rollouts.completion_ids.device))


def _collect(
    policy: nn.Module,
    rollouts: Rollouts,
    needs: Needs,
    reference_model: nn.Module | None,
    reward_model: RewardModel | None,
    kernels: str,
) -> Signals:
    found = _read_policy(policy, rollouts, needs, reference_model, kernels) if needs.policy else {}
    if reward_model is not None:
        found["reward"] = {
            need: attribute_reward(reward_model, rollouts, need, causal_lm(policy)) for need in needs.reward
        }
    return Signals(**found)


def _read_policy(
    policy: nn.Module, rollouts: Rollouts, needs: Needs, reference_model: nn.Module | None, kernels: str
) -> dict[str, Any]:
    """The fields of `Signals` that come from the policy and its reference."""
    model = causal_lm(policy)
    plan = AttentionPlan(rollouts, needs, ModelLayers.of(model), kernels)
    found: dict[str, Any] = {}
    hidden = torch.empty(0)
    stop = not (needs.logits or needs.adapter_residual)
    with probe_attention(model, plan.asked, stop=stop, tell=plan.tell) as probe:
        hidden = _hidden_states(model, rollouts, check_logits=needs.logits)
    found |= plan.signals(probe)
    if needs.logits:
        found["logprob"], found["entropy"] = logprob_and_entropy(model, hidden, rollouts)
    if needs.reference_logprob and reference_model is not None:
        reference = causal_lm(reference_model)
        states = _hidden_states(reference, rollouts, check_logits=True)
        found["reference_logprob"], _ = logprob_and_entropy(reference, states, rollouts)
    by_adapter = needs.reference_logprob and reference_model is None
    if by_adapter or needs.adapter_residual:
        with adapter_off(policy):
            base = _hidden_states(model, rollouts, check_logits=by_adapter)
            if by_adapter:
                found["reference_logprob"], _ = logprob_and_entropy(model, base, rollouts)
        if needs.adapter_residual:
            on, off = (predicting(states, rollouts) for states in (hidden, base))
            found["adapter_residual"] = state_distance(on, off, rollouts)
    return found


def reward_model_for(needs: Needs, given: Any) -> RewardModel | None:
    """`given` as a RewardModel where `needs` reads one. Raises a ValueError where there is none, or it is no such."""
    if not needs.reward:
        return None
    if given is None:
        raise ValueError(
            "this method reads a reward model: pass reward_model=, a transformers sequence classifier with one label, "
            "a process reward model (token classifier), or a function from embeddings to rewards; see tc.RewardModel"
        )
    return RewardModel.of(given)


def _hidden_states(model: Any, rollouts: Rollouts, *, check_logits: bool) -> Tensor:
    """(B, N, D): the states that enter the LM head, after the final norm.

    With `check_logits` our reading of the head is checked against the logits that the model makes of the last position:
    what a model does to its logits is its own business, and must not go wrong silently.
    """
    states, logits = final_states(model, pass_inputs(model, rollouts))
    if check_logits:
        check_head(model, states[:, -1:], logits)
    return states
