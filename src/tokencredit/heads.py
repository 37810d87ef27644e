"""What attention heads do: which read the essential steps (AttnPO), which look near and far (rhythm)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from tokencredit.head_files import HeadRank
from tokencredit.head_ranking import order_steps, step_scores
from tokencredit.inputs import as_tensor, check_model
from tokencredit.methods.base import check_number
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
        essential: (B, K) bool, for each step; a tensor, an array or a list. Numbers must be exactly 0 or 1.
        mask: (B, K) bool in the same types, the steps whose label counts; by default all that have tokens.

    Returns:
        Best first; ties count half.

    Raises:
        ValueError: steps are not marked, shapes disagree, a label is neither true nor false, or no completion has a
            pair to order.
    """
    check_model(policy, rollouts, "tc.rank_heads(policy, rollouts, essential)")
    labels = as_tensor("essential", essential)
    counted = None if mask is None else as_tensor("mask", mask)
    return order_steps(policy, rollouts, labels, counted, batch_size=batch_size).ranks()


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
