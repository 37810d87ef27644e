"""ARCA: adapter-residual credit. A token matters as much as the LoRA adapter changes the state that predicts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from tokencredit.credit import Credit, multiplicative, salience_weights
from tokencredit.methods.base import all_zero, check_number
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class ARCA:
    """Salience ||h_adapted[t] - h_base[t]||_2, h the state that enters the LM head, adapter on and off (eq. 8 and 15
    of arXiv 2606.00257); weights of mean one.

    Needs a PEFT policy. While the adapter is as initialised (B = 0) every residual is 0 and the weights are uniform. In
    bfloat16 weights a residual below about a hundredth of the state is mostly rounding.
    Own diagnostics: `residual_mean` and `residual_max`, over the completion's tokens; `no_residual`, 1 where all are 0.
    """

    eps: float = 1e-6
    name: ClassVar[str] = "arca"
    sign_only: ClassVar[bool] = True
    uniform_because: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"no_residual": "the adapter does not change their states: its B matrices are 0 until the first update"}
    )

    def __post_init__(self) -> None:
        check_number("eps", self.eps, 0, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(adapter_residual=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        residual = signals.adapter_residual
        assert residual is not None
        mask = rollouts.completion_mask
        return multiplicative(
            rollouts,
            advantages,
            salience_weights(residual, mask, self.eps),
            residual_mean=(residual * mask).sum(1) / rollouts.lengths.clamp(min=1),
            residual_max=(residual * mask).amax(1),
            no_residual=all_zero(residual, mask),
        )
