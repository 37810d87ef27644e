"""Position credit: a ramp over the reasoning, blind to what it says. The control for attention-based methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import check_choice, check_number
from tokencredit.notices import NO_ANSWER
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals

SHAPES = ("linear", "exponential", "sigmoid", "zero")


@dataclass(frozen=True)
class Position:
    """w[t] = floor + (1 - floor) * ramp[t] on reasoning tokens, 1 on answer tokens.

    ramp over the n reasoning tokens: `linear` t / (n-1); `exponential` 0.995^(n-1-t); `sigmoid`
    sigmoid(3 * temperature * (2t/(n-1) - 1)), rescaled to exactly 0..1; `zero` 0. A single reasoning token counts as
    the last (ramp 1; `zero` 0). A completion without an answer stays uniform.
    """

    shape: str = "linear"
    floor: float = 0.0
    temperature: float = 2.0
    name: ClassVar[str] = "position"
    sign_only: ClassVar[bool] = True
    uniform_because: ClassVar[Mapping[str, str]] = MappingProxyType({"no_answer": NO_ANSWER})

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_number("floor", self.floor, 0, 1)
        check_number("temperature", self.temperature, 0, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        reasoning = rollouts.reasoning_mask
        weights = torch.ones_like(reasoning, dtype=torch.float32)
        for i, n in enumerate(reasoning.sum(1).tolist()):
            if n:
                weights[i, :n] = self.floor + (1 - self.floor) * self._ramp(n).to(weights)
        return multiplicative(rollouts, advantages, weights)

    def _ramp(self, n: int) -> Tensor:
        """(n,) float64."""
        t = torch.arange(n, dtype=torch.float64)
        if self.shape == "zero":
            return torch.zeros_like(t)
        if n == 1:
            return torch.ones_like(t)
        if self.shape == "linear":
            return t / (n - 1)
        if self.shape == "exponential":
            return 0.995 ** (n - 1 - t)
        y = torch.sigmoid(3 * self.temperature * (2 * t / (n - 1) - 1))
        # A temperature near 0 leaves no spread in float64; the limit is the straight line.
        return (y - y[0]) / (y[-1] - y[0]) if y[-1] > y[0] else t / (n - 1)
