"""Divergence credit: a token matters as much as the policy has moved on it (eq. 14 of arXiv 2606.00257)."""

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
class Divergence:
    """Salience abs(log pi(y_t) - log pi_ref(y_t)); weights of mean one.

    The reference is the policy with its adapter switched off, or the model given as `reference_model`.
    Own diagnostic: `no_divergence`, 1 where the two agree on every token."""

    eps: float = 1e-6
    name: ClassVar[str] = "divergence"
    sign_only: ClassVar[bool] = True
    uniform_because: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"no_divergence": "policy and reference give their tokens equal log-probs, as before the first update"}
    )

    def __post_init__(self) -> None:
        check_number("eps", self.eps, 0, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(logits=True, reference_logprob=True)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        assert signals.logprob is not None
        assert signals.reference_logprob is not None
        salience = (signals.logprob - signals.reference_logprob).abs()
        mask = rollouts.completion_mask
        return multiplicative(
            rollouts, advantages, salience_weights(salience, mask, self.eps), no_divergence=all_zero(salience, mask)
        )
