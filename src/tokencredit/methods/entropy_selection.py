"""Entropy selection: only the tokens at which the policy was least sure learn (the 80/20 rule, arXiv 2506.01939)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import check_number, top_mask
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class EntropySelection:
    """w[t] = 1 on the completion's top q tokens by entropy H_t, else 0."""

    q: float = 0.2
    name: ClassVar[str] = "entropy_selection"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("q", self.q, 0, 1, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(logits=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        assert signals.entropy is not None
        return multiplicative(rollouts, advantages, top_mask(signals.entropy, rollouts.completion_mask, self.q))
