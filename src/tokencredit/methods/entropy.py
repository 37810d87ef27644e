"""Entropy credit: more weight on the tokens at which the policy was least sure (rhythm's "entropy" baseline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import check_number, top_mask
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class Entropy:
    """w[t] = amplification on the completion's top q tokens by entropy H_t, else 1."""

    q: float = 0.4
    amplification: float = 1.5
    name: ClassVar[str] = "entropy"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("q", self.q, 0, 1, open_low=True)
        check_number("amplification", self.amplification, 0)

    @property
    def needs(self) -> Needs:
        return Needs(logits=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        assert signals.entropy is not None
        top = top_mask(signals.entropy, rollouts.completion_mask, self.q)
        return multiplicative(rollouts, advantages, torch.where(top, self.amplification, 1.0))
