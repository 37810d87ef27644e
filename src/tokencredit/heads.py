"""What attention heads do: which read the essential steps (AttnPO), which look near and far (rhythm)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokencredit.head_files import HeadRank
from tokencredit.inputs import as_tensor, check_model
from tokencredit.methods.base import check_number, step_means
from tokencredit.methods.rhythm import nearest_and_furthest
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals import DistanceNeed, ModelLayers, Needs, causal_lm, collect

Heads = tuple[tuple[int, int], ...]
"""(layer, head) pairs."""


class HeadStability(NamedTuple):
    """`correlation`: Pearson's, of a head's step scores under two checkpoints; 0 where one of them does not vary."""

    layer: int
    head: int
    correlation: float


def rank_heads(
    policy: nn.Module,
    rollouts: Rollouts,
    essential: Any,
    mask: Any = None,
    *,
    batch_size: int | None = None,
) -> list[HeadRank]:
    """Rank every head by how often it attends more to an essential than to a redundant step of the same completion.

    The heads are those of the layers that have attention, by the model's own layer numbers.

    Args:
        rollouts: with `answer_start` and `step_index`; usually correct completions.
        essential: (B, K) bool, for each step; a tensor, an array or a list.
        mask: (B, K) bool, the steps whose label counts; by default all that have tokens.

    Returns:
        Best first; ties count half.

    Raises:
        ValueError: steps are not marked, shapes disagree, or no completion has a pair to order.
    """
    check_model(policy, rollouts, "tc.rank_heads(policy, rollouts, essential)")
    essential = as_tensor("essential", essential)
    mask = torch.ones_like(essential, dtype=torch.bool) if mask is None else as_tensor("mask", mask).bool()
    scores, exists = step_scores(policy, rollouts, batch_size=batch_size)
    steps = exists.shape[1]
    # Labels are often read from a file, and so on the CPU, whatever device the rollouts are on.
    essential, mask = essential.to(exists.device), mask.to(exists.device)
    if essential.ndim != 2 or essential.shape[0] != len(rollouts) or essential.shape[1] < steps:
        raise ValueError(f"essential must be ({len(rollouts)}, K) with K >= {steps}; got {tuple(essential.shape)}")
    if mask.shape != essential.shape:
        raise ValueError(f"mask must have the shape of essential; got {tuple(mask.shape)}")
    known = exists & mask[:, :steps]
    is_essential = essential[:, :steps].bool()
    pairs = (known & is_essential)[:, :, None] & (known & ~is_essential)[:, None, :]
    count = int(pairs.sum())
    if count == 0:
        raise ValueError("no completion with an answer has both an essential and a redundant step to compare")
    ranks = []
    for layer, of_layer in scores.items():
        for head, score in enumerate(of_layer.unbind(1)):
            apart = score[:, :, None] - score[:, None, :]
            right = (apart > 0).double() + 0.5 * (apart == 0)
            ranks.append(HeadRank(layer, head, float(right[pairs].mean()), count))
    return sorted(ranks, key=lambda r: (-r.sra, r.layer, r.head))


def head_stability(
    policy: nn.Module, other: nn.Module, rollouts: Rollouts, *, batch_size: int | None = None
) -> list[HeadStability]:
    """Do heads keep their role? Each head's step scores under two checkpoints of one model, on the same completions.

    Args:
        rollouts: with `answer_start` and `step_index`.

    Returns:
        In the order of layers and heads; over all steps of the completions that have an answer.

    Raises:
        ValueError: the models have other layers or heads, steps are not marked, or fewer than two are there.
    """
    first, exists = step_scores(policy, rollouts, batch_size=batch_size)
    second, _ = step_scores(other, rollouts, batch_size=batch_size)
    if {layer: s.shape for layer, s in first.items()} != {layer: s.shape for layer, s in second.items()}:
        raise ValueError("the two models differ in layers or heads: stability is between checkpoints of one model")
    if int(exists.sum()) < 2:
        raise ValueError("stability needs two steps at least, in completions with an answer")
    found = []
    for layer, a in first.items():
        b = second[layer]
        for head in range(a.shape[1]):
            x, y = (v[:, head][exists] - v[:, head][exists].mean() for v in (a, b))
            correlation = divided((x * y).sum(), by=(x.norm() * y.norm()), otherwise=0.0)
            found.append(HeadStability(layer, head, float(correlation)))
    return found


def step_scores(
    policy: nn.Module, rollouts: Rollouts, *, batch_size: int | None = None
) -> tuple[dict[int, Tensor], Tensor]:
    """The attention that the answer pays to each step.

    Returns:
        Layer -> (B, H, K), for the layers that have attention, by the model's own numbers: mean over the answer's rows
        of the attention of a head, mean over the step's tokens; and (B, K) bool, the steps that have tokens, in
        completions that have an answer.

    Raises:
        ValueError: answers or steps are not marked.
    """
    if rollouts.step_index is None:
        raise ValueError("heads are scored on steps: call tc.mark_spans(rollouts, tokenizer) first")
    layers = ModelLayers.of(causal_lm(policy)).attending
    read = collect(policy, rollouts, Needs(answer_attention=frozenset(layers)), batch_size=batch_size)
    inside = torch.where(rollouts.reasoning_mask, rollouts.step_index, -1)
    scores, exists = {}, torch.zeros(0)
    for layer in layers:
        parts = [step_means(head, inside) for head in widened(read.answer_attention[layer]).unbind(1)]
        scores[layer] = torch.stack([means for means, _ in parts], 1)
        exists = parts[0][1]
    return scores, exists


def group_heads(
    policy: nn.Module,
    rollouts: Rollouts,
    layers: str | tuple[int, ...] = "middle",
    head_fraction: float = 0.3,
    *,
    batch_size: int | None = None,
) -> tuple[Heads, Heads]:
    """Local and global heads for `rhythm`, fixed once: by their mean look-back distance over some completions.

    Args:
        layers: as in `Rhythm`, or the layers themselves, by the model's own numbers.
        head_fraction: the share of their heads in each group, in (0, 1].

    Returns:
        `local_heads` and `global_heads`, as the method takes them.

    Raises:
        ValueError: no completion has a token, or an argument is out of range.
    """
    check_number("head_fraction", head_fraction, 0, 1, open_low=True)
    wanted = DistanceNeed(layers if isinstance(layers, str) else tuple(layers))
    sampled = sorted(set(ModelLayers.of(causal_lm(policy)).sample(wanted)))
    need = DistanceNeed(tuple(sampled))
    read = collect(policy, rollouts, Needs(distances=frozenset({need})), batch_size=batch_size).distances[need]
    spoken = rollouts.lengths > 0
    if not spoken.any():
        raise ValueError("no completion has a token to group heads by")
    look_back = widened(read.look_back)[spoken].mean(0, keepdim=True)
    count = look_back.shape[1] // len(sampled)
    nearest, furthest = nearest_and_furthest(look_back, head_fraction)
    local, remote = (
        tuple((sampled[i // count], i % count) for i in group[0].tolist()) for group in (nearest, furthest)
    )
    return local, remote
