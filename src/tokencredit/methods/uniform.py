"""Uniform credit: every token gets the completion's advantage, as in GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class Uniform:
    """w[t] = 1."""

    name: ClassVar[str] = "uniform"
    sign_only: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        return multiplicative(rollouts, advantages, torch.ones_like(rollouts.completion_mask, dtype=torch.float32))
