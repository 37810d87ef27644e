"""Key-focus heads: which attention heads read the essential steps while the answer is written (AttnPO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokencredit.methods.base import step_means
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, causal_lm, collect


class HeadRank(NamedTuple):
    """`sra`: the step ranking accuracy of a head, over `pairs` of an essential and a redundant step."""

    layer: int
    head: int
    sra: float
    pairs: int


def rank_heads(
    policy: nn.Module,
    rollouts: Rollouts,
    essential: Tensor,
    mask: Tensor | None = None,
    *,
    batch_size: int | None = None,
) -> list[HeadRank]:
    """Rank every head by how often it attends more to an essential than to a redundant step of the same completion.

    Args:
        rollouts: with `answer_start` and `step_index`; usually correct completions.
        essential: (B, K) bool, for each step.
        mask: (B, K) bool, the steps whose label counts; by default all that have tokens.

    Returns:
        Best first; ties count half.

    Raises:
        ValueError: steps are not marked, shapes disagree, or no completion has a pair to order.
    """
    if rollouts.step_index is None:
        raise ValueError("rank_heads needs step_index: call tc.mark_spans(rollouts, tokenizer) first")
    layers = causal_lm(policy).get_decoder().config.num_hidden_layers
    steps = int(rollouts.step_index.max()) + 1
    mask = torch.ones_like(essential, dtype=torch.bool) if mask is None else mask.bool()
    if essential.ndim != 2 or essential.shape[0] != len(rollouts) or essential.shape[1] < steps:
        raise ValueError(f"essential must be ({len(rollouts)}, K) with K >= {steps}; got {tuple(essential.shape)}")
    if mask.shape != essential.shape:
        raise ValueError(f"mask must have the shape of essential; got {tuple(mask.shape)}")
    needs = Needs(answer_attention=frozenset(range(layers)))
    attention = collect(policy, rollouts, needs, batch_size=batch_size).answer_attention
    counted = rollouts.has_answer[:, None]
    ranks = []
    for layer in range(layers):
        for head in range(attention[layer].shape[1]):
            score, exists = step_means(attention[layer][:, head].double(), rollouts.step_index)
            known = exists & mask[:, : score.shape[1]] & counted
            is_essential = essential[:, : score.shape[1]].bool()
            pairs = (known & is_essential)[:, :, None] & (known & ~is_essential)[:, None, :]
            apart = score[:, :, None] - score[:, None, :]
            right = (apart > 0).double() + 0.5 * (apart == 0)
            count = int(pairs.sum())
            if count == 0:
                raise ValueError("no completion with an answer has both an essential and a redundant step to compare")
            ranks.append(HeadRank(layer, head, float(right[pairs].mean()), count))
    return sorted(ranks, key=lambda r: (-r.sra, r.layer, r.head))
