"""Surprisal credit: a token matters as much as it was unlikely (eq. 10 of arXiv 2606.00257)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokencredit.credit import Credit, multiplicative, salience_weights
from tokencredit.methods.base import check_number
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class Surprisal:
    """Salience -log pi(y_t); weights of mean one."""

    eps: float = 1e-6
    name: ClassVar[str] = "surprisal"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("eps", self.eps, 0, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(logits=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        assert signals.logprob is not None
        salience = (-signals.logprob).clamp(min=0)
        return multiplicative(rollouts, advantages, salience_weights(salience, rollouts.completion_mask, self.eps))
