"""Entropy-reduction credit: a token matters as much as it settles what comes next (eq. 12, 13 of arXiv 2606.00257)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative, salience_weights
from tokencredit.methods.base import check_number
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class EntropyReduction:
    """Salience max(0, H_t - H_{t+1}), 0 at the last token; weights of mean one."""

    eps: float = 1e-6
    name: ClassVar[str] = "entropy_reduction"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("eps", self.eps, 0, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(logits=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        assert signals.entropy is not None
        followed = rollouts.completion_mask[:, 1:]
        salience = torch.zeros_like(signals.entropy)
        salience[:, :-1] = torch.where(followed, signals.entropy[:, :-1] - signals.entropy[:, 1:], 0.0).clamp(min=0)
        return multiplicative(rollouts, advantages, salience_weights(salience, rollouts.completion_mask, self.eps))
