"""Read signals from the live policy: one forward pass, and one with the adapter off where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import probe_attention
from tokencredit.signals.attention_plan import AttentionPlan
from tokencredit.signals.logits import check_head, logprob_and_entropy
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

    Raises:
        ValueError: the policy cannot give what is asked for (no adapter, no such layer, attention or logits that
            cannot be read), or `answer_start` is missing where it is needed.
    """
    if not needs:
        return Signals()
    if needs.answer_attention:
        rollouts.has_answer  # noqa: B018 - raises where the spans are not marked
    check_adapter(policy, needs, reference_model)
    scorer = reward_model_for(needs, reward_model)
    size = max(1, len(rollouts)) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    starts = range(0, max(1, len(rollouts)), size)
    with ExitStack() as stack:
        for model in (policy, reference_model, scorer and scorer.model):
            if isinstance(model, nn.Module):
                stack.enter_context(_reading(model))
        parts = [_collect(policy, rollouts.rows(slice(i, i + size)), needs, reference_model, scorer) for i in starts]
    return Signals.concatenate(parts)


def _collect(
    policy: nn.Module,
    rollouts: Rollouts,
    needs: Needs,
    reference_model: nn.Module | None,
    reward_model: RewardModel | None,
) -> Signals:
    found = _read_policy(policy, rollouts, needs, reference_model) if needs.policy else {}
    if reward_model is not None:
        found["reward"] = {
            need: attribute_reward(reward_model, rollouts, need, causal_lm(policy)) for need in needs.reward
        }
    return Signals(**found)


def _read_policy(
    policy: nn.Module, rollouts: Rollouts, needs: Needs, reference_model: nn.Module | None
) -> dict[str, Any]:
    """The fields of `Signals` that come from the policy and its reference."""
    model = causal_lm(policy)
    plan = AttentionPlan(rollouts, needs, model.get_decoder().config.num_hidden_layers)
    found: dict[str, Any] = {}
    hidden = torch.empty(0)
    with probe_attention(model, plan.asked, stop=not (needs.logits or needs.adapter_residual)) as probe:
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
        with _adapter_off(policy):
            base = _hidden_states(model, rollouts, check_logits=by_adapter)
            if by_adapter:
                found["reference_logprob"], _ = logprob_and_entropy(model, base, rollouts)
        if needs.adapter_residual:
            found["adapter_residual"] = _residual(hidden, base, rollouts)
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


def _residual(hidden: Tensor, base: Tensor, rollouts: Rollouts) -> Tensor:
    """(B, T): the distance of two (B, N, D) at the position that predicts each token, as for log-probs."""
    predicts = slice(rollouts.prompt_ids.shape[1] - 1, -1)
    norm = (hidden[:, predicts].float() - base[:, predicts].float()).norm(dim=-1)
    return torch.where(rollouts.completion_mask, norm.to(rollouts.completion_mask.device), 0.0)


def _hidden_states(model: Any, rollouts: Rollouts, *, check_logits: bool) -> Tensor:
    """(B, N, D): the states that enter the LM head, after the final norm.

    With `check_logits` the model also makes the logits of the last position, against which our reading of its head is
    checked: what a model does to its logits is its own business, and must not go wrong silently.
    """
    decoder = model.get_decoder()
    device = next(decoder.parameters()).device
    batch = {
        "input_ids": rollouts.input_ids.to(device),
        "attention_mask": rollouts.attention_mask.long().to(device),
        "position_ids": rollouts.position_ids.to(device),
        "use_cache": False,
    }
    if not check_logits:
        return decoder(**batch).last_hidden_state
    states: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state))
    try:
        logits = model(**batch, logits_to_keep=1).logits
    finally:
        hook.remove()
    check_head(model, states[0][:, -1:], logits)
    return states[0]


def causal_lm(policy: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself. Its LoRA layers stay active."""
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    if not hasattr(model, "get_decoder"):
        raise ValueError(
            f"cannot read signals from {type(policy).__name__}: pass a transformers causal LM, or a PEFT model around "
            "one, without a distributed wrapper (accelerator.unwrap_model(model) removes it)"
        )
    return model


def check_adapter(policy: nn.Module, needs: Needs, reference_model: nn.Module | None = None) -> None:
    """Raise a ValueError where `needs` compares with an adapter that is off, and the policy has none."""
    if hasattr(policy, "disable_adapter"):
        _check_adapter_state(policy, needs)
        return
    if needs.adapter_residual:
        raise ValueError(
            f"this method reads what a LoRA adapter changes, but {type(policy).__name__} has none: train with a PEFT "
            "adapter (peft_config=LoraConfig(...)), or choose another method"
        )
    if needs.reference_logprob and reference_model is None:
        raise ValueError(
            f"this method compares the policy with a reference, and {type(policy).__name__} has no adapter to switch "
            "off: pass reference_model=, or train with a PEFT adapter (peft_config=LoraConfig(...))"
        )


def _check_adapter_state(policy: Any, needs: Needs) -> None:
    # A policy with an adapter is peft's own, so peft is there; it is an extra of this package.
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(config.is_prompt_learning for config in policy.peft_config.values()):
        raise ValueError("a prompt-learning adapter cannot be read: its virtual tokens are not in the rollouts")
    if not needs.adapter:
        return
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer) and (module.disable_adapters or module.merged):
            state = "switched off" if module.disable_adapters else "merged into the weights"
            raise ValueError(f"this method compares the adapter on and off, but the adapter is {state}")


@contextmanager
def _adapter_off(policy: Any) -> Iterator[None]:
    """PEFT makes an adapter trainable again when it switches it back on; a frozen one stays frozen here."""
    trainable = [(p, p.requires_grad) for p in policy.parameters()]
    try:
        with policy.disable_adapter():
            yield
    finally:
        for p, requires_grad in trainable:
            p.requires_grad_(requires_grad)


@contextmanager
def _reading(policy: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's training flag is restored."""
    in_training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in in_training:
            module.training = True
