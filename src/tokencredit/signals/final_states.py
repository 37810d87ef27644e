"""The states that enter the LM head, and how far an adapter moves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokencredit.rollouts import Rollouts


@contextmanager
def watch_final_states(model: Any) -> Iterator[list[Tensor]]:
    """While open, each forward pass of the transformers model `model` leaves its final states, (B, N, D), detached."""
    states: list[Tensor] = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_hook(lambda module, args, out: states.append(out.last_hidden_state.detach()))
    try:
        yield states
    finally:
        hook.remove()


def predicting(hidden: Tensor, rollouts: Rollouts) -> Tensor:
    """(B, T, D): of (B, N, D) states, those that predict each completion token."""
    return hidden[:, rollouts.prompt_ids.shape[1] - 1 : -1]


def state_distance(states: Tensor, base: Tensor, rollouts: Rollouts) -> Tensor:
    """(B, T) float32: the Euclidean distance of two (B, T, D), 0 on padding."""
    norm = (states.float() - base.float()).norm(dim=-1)
    return torch.where(rollouts.completion_mask, norm.to(rollouts.completion_mask.device), 0.0)
