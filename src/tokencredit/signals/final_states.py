"""The states that enter the LM head, and how far an adapter moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals.placement import input_device


def pass_inputs(model: Any, rollouts: Rollouts) -> dict[str, Any]:
    """What a transformers causal LM is given for a pass over prompts and completions, where it takes its input."""
    device = input_device(model, rollouts.input_ids.device)
    return {
        "input_ids": rollouts.input_ids.to(device),
        "attention_mask": rollouts.attention_mask.long().to(device),
        "position_ids": rollouts.position_ids.to(device),
        "use_cache": False,
    }


def final_states(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The states of one forward pass of a transformers causal LM, and its own logits of the last position.

    The states are what the model gives to its LM head, whatever stands before it. The head is then given the last
    position alone, because logits of all positions would take the most memory of the whole pass.

    Returns:
        (B, N, D) and (B, 1, V).

    Raises:
        ValueError: the model does not call its LM head.
    """
    states: list[Tensor] = []

    def keep_last(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        states.append(given[0].detach())
        return (given[0][:, -1:], *given[1:])

    hook = _head(model).register_forward_pre_hook(keep_last)
    try:
        logits = model(**batch).logits
    finally:
        hook.remove()
    if len(states) != 1:
        raise ValueError(
            f"{type(model).__name__} calls its LM head {len(states)} times in a forward pass, where once is expected: "
            "its final states cannot be read"
        )
    return states[0], logits


@contextmanager
def watch_final_states(model: Any) -> Iterator[list[Tensor]]:
    """While open, each forward pass of the transformers model `model` leaves its final states, detached.

    They are (B, n, D), of the last n positions of the pass: those of which it makes logits. A pass that multiplies with
    the weights of its LM head without calling it (fused kernels) leaves what its decoder returns, of all positions.
    """
    states: list[Tensor] = []
    behind_decoder = False

    def after_decoder(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal behind_decoder
        if isinstance(state := getattr(output, "last_hidden_state", None), Tensor):
            states.append(state.detach())
            behind_decoder = True

    def before_head(module: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal behind_decoder
        if behind_decoder:
            states.pop()
        states.append(given[0].detach())
        behind_decoder = False

    hooks = [_head(model).register_forward_pre_hook(before_head)]
    if (decoder := _decoder(model)) is not None:
        hooks.append(decoder.register_forward_hook(after_decoder))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _head(model: Any) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no LM head that can be found: pass a causal LM")
    return head


def _decoder(model: Any) -> nn.Module | None:
    """What `get_decoder` finds, unless it finds the whole model (Llama 4) or the LM head (ModernBertDecoder)."""
    for decoder in (model.get_decoder(), getattr(model, "model", None)):
        if isinstance(decoder, nn.Module) and decoder is not model and decoder is not _head(model):
            return decoder
    return None


def predicting(hidden: Tensor, rollouts: Rollouts) -> Tensor:
    """(B, T, D): of (B, n, D) states of the last n > T positions, those that predict each completion token."""
    return hidden[:, -1 - rollouts.completion_ids.shape[1] : -1]


def state_distance(states: Tensor, base: Tensor, rollouts: Rollouts) -> Tensor:
    """(B, T) float32: the Euclidean distance of two (B, T, D), 0 on padding."""
    norm = (states.float() - base.float()).norm(dim=-1)
    return torch.where(rollouts.completion_mask, norm.to(rollouts.completion_mask.device), 0.0)
