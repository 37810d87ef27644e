"""Read signals from the live policy: one forward pass, and one with the adapter off where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import probe_answer_rows
from tokencredit.signals.types import Needs, Signals


def collect(
    policy: nn.Module,
    rollouts: Rollouts,
    needs: Needs,
    reward_model: nn.Module | None = None,
    *,
    batch_size: int | None = None,
) -> Signals:
    """Read what `needs` names, for every completion, from the policy as it is now.

    The policy is left as it was found: dropout is off only while it is read, its attention implementation is restored
    (also after an error), and no gradient is recorded.

    Args:
        policy: a transformers causal LM, or a PEFT model around one; not wrapped for distributed training.
        needs: usually `method.needs`, or the union of several (`a.needs | b.needs`).
        reward_model: for methods that read a reward model; no method does yet.
        batch_size: how many completions one forward pass takes; all by default. It does not change the signals.

    Raises:
        ValueError: the policy cannot give what is asked for (no adapter, no such layer, attention that cannot be
            read), or `answer_start` is missing where it is needed.
    """
    if not needs:
        return Signals()
    if needs.answer_attention:
        rollouts.has_answer  # noqa: B018 - raises where the spans are not marked
    _check_adapter(policy, needs)
    size = batch_size or max(1, len(rollouts))
    if size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    starts = range(0, max(1, len(rollouts)), size)
    with _reading(policy):
        parts = [_collect(policy, rollouts.rows(slice(start, start + size)), needs) for start in starts]
    return Signals.concatenate(parts)


def _collect(policy: nn.Module, rollouts: Rollouts, needs: Needs) -> Signals:
    prompt_length = rollouts.prompt_ids.shape[1]
    rows = _answer_rows(rollouts) if needs.answer_attention else None
    with probe_answer_rows(_causal_lm(policy), needs.answer_attention, rows) as attention:
        hidden = _hidden_states(policy, rollouts)
    residual = None
    if needs.adapter_residual:
        with policy.disable_adapter():  # type: ignore[operator]  # _check_adapter saw it
            base = _hidden_states(policy, rollouts)
        # Aligned with log-probs: token t is read at the position that predicts it.
        predicts = slice(prompt_length - 1, -1)
        norm = (hidden[:, predicts].float() - base[:, predicts].float()).norm(dim=-1)
        residual = torch.where(rollouts.completion_mask, norm.to(rollouts.completion_mask.device), 0.0)
    device = rollouts.completion_ids.device
    return Signals(
        answer_attention={layer: a[..., prompt_length:].to(device) for layer, a in attention.items()},
        adapter_residual=residual,
    )


def _answer_rows(rollouts: Rollouts) -> Tensor:
    """(B, N) bool: the answer tokens on the grid of prompt and completion."""
    return torch.cat([torch.zeros_like(rollouts.prompt_mask), rollouts.answer_mask], 1)


def _hidden_states(policy: nn.Module, rollouts: Rollouts) -> Tensor:
    """(B, N, D): the states that enter the LM head, after the final norm."""
    decoder = _causal_lm(policy).get_decoder()
    device = next(decoder.parameters()).device
    return decoder(
        input_ids=rollouts.input_ids.to(device),
        attention_mask=rollouts.attention_mask.long().to(device),
        position_ids=rollouts.position_ids.to(device),
        use_cache=False,
    ).last_hidden_state


def _causal_lm(policy: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself. Its LoRA layers stay active."""
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    if not hasattr(model, "get_decoder"):
        raise ValueError(
            f"cannot read signals from {type(policy).__name__}: pass a transformers causal LM, or a PEFT model around "
            "one, without a distributed wrapper (accelerator.unwrap_model(model) removes it)"
        )
    return model


def _check_adapter(policy: nn.Module, needs: Needs) -> None:
    if needs.adapter and not hasattr(policy, "disable_adapter"):
        raise ValueError(
            f"this method reads what a LoRA adapter changes, but {type(policy).__name__} has none: train with a PEFT "
            "adapter (peft_config=LoraConfig(...)), or choose another method"
        )


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
