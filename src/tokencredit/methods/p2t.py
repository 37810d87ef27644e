"""P2T: process to token. What a reward model says of a segment, shared out by what each token is worth to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, additive
from tokencredit.methods.base import check_choice, check_number, check_whole
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, RewardAttribution, RewardNeed, Signals


@dataclass(frozen=True)
class P2T:
    """A[t] = A_i + alpha * R_t, with R_t = R + omega * R * softmax(I)[t] over the tokens of the segment t is in.

    R is the reward of a segment: the completion (sequence classifier), or a reasoning step (process reward model;
    tokens outside the steps get no bonus). I is what a token is worth to the reward model, by its embedding's gradient:
    I[i] = grad R(E) . (e_i - e_null) ("Unlocking Token Rewards via Training-Free Reward Attribution", CVPR 2026).

    The paper says that the R_t of a segment sum to R; by its own formula, which is this one, they do not.

    Args:
        omega: how much of R varies. alpha: the weight of the bonus; the paper takes 1.0 for long chains of thought.
        null, estimator, backward, path_points: see `RewardNeed`.

    Own diagnostics: `bonus_share`, how much the bonus varies (mean |b[t] - mean b|) against mean |A[t]|;
    `softmax_effective_ratio`, mean over segments of 1 / (n * sum softmax^2), 1 where it is flat; `unscored`, the share
    of tokens outside all segments; `unmapped`, of tokens that no token of the reward model covers, whose I is 0.
    """

    omega: float = 0.6
    alpha: float = 0.1
    null: str = "pad"
    estimator: str = "taylor"
    backward: str = "single"
    path_points: int = 16
    name: ClassVar[str] = "p2t"
    sign_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("omega", self.omega, 0)
        check_number("alpha", self.alpha, 0)
        check_choice("null", self.null, ("pad", "eos", "zero", "mean"))
        check_choice("estimator", self.estimator, ("taylor", "exact", "integrated"))
        check_choice("backward", self.backward, ("single", "per_step"))
        check_whole("path_points", self.path_points, 1)

    @property
    def needs(self) -> Needs:
        return Needs(reward=frozenset({self._need}))

    @property
    def _need(self) -> RewardNeed:
        return RewardNeed(self.null, self.estimator, self.backward, self.path_points)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        read = signals.reward[self._need]
        share, flatness = _segment_softmax(read)
        reward = widened(read.reward)
        bonus = self.alpha * (reward + self.omega * reward * share)
        mask, count = rollouts.completion_mask, rollouts.lengths.clamp(min=1)
        varying = (bonus - (bonus * mask).sum(1, keepdim=True) / count[:, None]).abs() * mask
        size = (widened(advantages).to(bonus.device)[:, None] + bonus).abs() * mask
        return additive(
            rollouts,
            advantages,
            bonus,
            bonus_share=divided(varying.sum(1), by=size.sum(1), otherwise=0.0),
            softmax_effective_ratio=flatness,
            unscored=((read.segment < 0) & mask).sum(1) / count,
            unmapped=(~read.covered & mask).sum(1) / count,
        )


def _segment_softmax(read: RewardAttribution) -> tuple[Tensor, Tensor]:
    """(B, T) softmax of the influence within each segment, and (B,) its mean effective ratio (1 without segments)."""
    segments = max(1, int(read.segment.max()) + 1)
    index = torch.where(read.segment >= 0, read.segment, segments)
    influence = widened(read.influence)
    empty = torch.zeros(len(index), segments + 1, dtype=influence.dtype, device=influence.device)
    highest = (empty - torch.inf).scatter_reduce(1, index, influence, "amax").gather(1, index)
    exp = (influence - highest).exp()
    share = exp / empty.scatter_add(1, index, exp).gather(1, index)
    count = empty.scatter_add(1, index, torch.ones_like(share))[:, :segments]
    square = empty.scatter_add(1, index, share**2)[:, :segments]
    ratio = divided(torch.ones_like(count), by=count * square, otherwise=0.0).sum(1)
    flatness = divided(ratio, by=(count > 0).sum(1).to(ratio), otherwise=1.0)
    return share, flatness
