"""Outcome advantages: one number per completion, from the rewards of its group.

Inside a trainer the trainer's own outcome advantage is redistributed; these serve where there is none.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from tokencredit.inputs import as_tensor
from tokencredit.precision import widened
from tokencredit.rollouts import exactly, group_numbers


def grpo(rewards: Any, group: Any, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) within each group, std with ddof=1 (GRPO, arXiv 2402.03300, as TRL and verl have it).

    Args:
        rewards: (B,) float, finite; a tensor, an array or a list.
        group: (B,) long, which prompt a completion answers; a list may hold texts, of which equal ones are one group.

    Returns:
        (B,) float32. A group of one gives 0.
    """
    centred, size, index = _centre(rewards, group)
    variance = _group_sum(centred**2, index) / (size - 1).clamp(min=1)
    return (centred / (variance.sqrt()[index] + eps)).float()


def dr_grpo(rewards: Any, group: Any) -> Tensor:
    """r - mean within each group (Dr. GRPO, arXiv 2503.20783). (B,) float32; a group of one gives 0."""
    return _centre(rewards, group)[0].float()


def rloo(rewards: Any, group: Any) -> Tensor:
    """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740).

    Returns:
        (B,) float32. A group of one has no others: it gives the reward itself, with a warning.
    """
    centred, size, index = _centre(rewards, group)
    alone = size[index] == 1
    if alone.any():
        warnings.warn(
            f"rloo: {int(alone.sum())} completions are alone in their group; their advantage is their plain reward",
            stacklevel=2,
        )
    # r - (sum - r) / (K - 1) = (r - mean) * K / (K - 1)
    leave_one_out = centred * (size / (size - 1).clamp(min=1))[index]
    return torch.where(alone, widened(as_tensor("rewards", rewards, alone.device)), leave_one_out).float()


def _centre(rewards: Any, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards minus their group's mean (B,) in float64, the group sizes (G,) and each completion's group index (B,)."""
    rewards = as_tensor("rewards", rewards, group.device if isinstance(group, Tensor) else None)
    group = group_numbers(group, rewards.device)
    if rewards.ndim != 1 or group.shape != rewards.shape:
        raise ValueError(f"rewards and group must both be (B,); got {tuple(rewards.shape)} and {tuple(group.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite; got {rewards[~torch.isfinite(rewards)].tolist()}")
    if group.isnan().any():
        raise ValueError("group is NaN for some completions, so that it is not known which group they belong to")
    index = torch.unique(exactly("group", group, torch.long), return_inverse=True)[1]
    values = widened(rewards)
    size = _group_sum(torch.ones_like(values), index)
    mean = _group_sum(values, index) / size
    # Equal rewards must give exactly 0, whatever the rounding of their mean.
    low, high = _group_extreme(values, index, "amin"), _group_extreme(values, index, "amax")
    return torch.where((low == high)[index], torch.zeros_like(values), values - mean[index]), size, index


def _group_sum(values: Tensor, index: Tensor) -> Tensor:
    groups = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(groups).index_add(0, index, values)


def _group_extreme(values: Tensor, index: Tensor, reduce: str) -> Tensor:
    groups = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(groups).scatter_reduce(0, index, values, reduce, include_self=False)
