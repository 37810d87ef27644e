"""Credit: what a method returns, in the two forms that methods take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokencredit import diagnostics as diag
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.shading import shaded_html


@dataclass(frozen=True, eq=False)
class Credit:
    """Per-token credit on the completion grid: float32, detached, 0 on padding.

    Attributes:
        advantages: (B, T), what the loss takes.
        weights: (B, T) for multiplicative methods (A[t] = A * w[t]), else None.
        bonus: (B, T) for additive methods (A[t] = A + b[t]), else None.
        diagnostics: name -> (B,) float32. Always `gini`, `effective_ratio`, `broadcast`, `sparse` (see
            `diagnostics`), `sign_flip`, `no_answer` (1 where no answer span is marked); a method adds its own.
    """

    advantages: Tensor
    weights: Tensor | None
    bonus: Tensor | None
    diagnostics: dict[str, Tensor]

    def _repr_html_(self) -> str:
        """In a notebook: a strip a completion, a cell a token; `tokencredit.show` has the text."""
        return shaded_html(self.advantages, self.weights)


def multiplicative(rollouts: Rollouts, advantages: Tensor, weights: Tensor, **own: Tensor) -> Credit:
    """Credit A[t] = A * w[t].

    Args:
        advantages: (B,) outcome advantages.
        weights: (B, T), non-negative; what stands on padding is ignored.
        own: the method's own diagnostics, (B,) each.
    """
    weights = _on_tokens(weights, rollouts)
    per_token = _outcome(advantages, rollouts)[:, None] * weights
    return _credit(rollouts, advantages, per_token, weights=weights, bonus=None, concentrate=weights, own=own)


def additive(rollouts: Rollouts, advantages: Tensor, bonus: Tensor, **own: Tensor) -> Credit:
    """Credit A[t] = A + b[t]; arguments as in `multiplicative`. Concentration is that of |A[t]|."""
    bonus = _on_tokens(bonus, rollouts)
    per_token = _on_tokens(_outcome(advantages, rollouts)[:, None] + bonus, rollouts)
    return _credit(rollouts, advantages, per_token, weights=None, bonus=bonus, concentrate=per_token.abs(), own=own)


def salience_weights(salience: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Weights of mean one from a non-negative salience: w[t] = T_i * (a[t] + eps) / sum(a + eps).

    The mean-one form of ARCA's eq. 8, so that uniform salience gives w = 1. (B, T) in, (B, T) out; 0 on padding.
    """
    raised = (widened(salience) + eps) * mask
    return divided(mask.sum(1, keepdim=True) * raised, by=raised.sum(1, keepdim=True), otherwise=0.0).float()


def _on_tokens(values: Tensor, rollouts: Rollouts) -> Tensor:
    """`values` (B, T) as float32, detached, 0 on padding."""
    assert values.shape == rollouts.completion_mask.shape, (values.shape, rollouts.completion_mask.shape)
    return torch.where(rollouts.completion_mask, values.detach().float(), 0.0)


def _outcome(advantages: Tensor, rollouts: Rollouts) -> Tensor:
    if tuple(advantages.shape) != (len(rollouts),):
        raise ValueError(f"advantages must be ({len(rollouts)},), one a completion; got {tuple(advantages.shape)}")
    if not torch.isfinite(advantages).all():
        raise ValueError("advantages must be finite: some are NaN or infinite")
    return advantages.detach().float()


def _credit(
    rollouts: Rollouts,
    advantages: Tensor,
    per_token: Tensor,
    *,
    weights: Tensor | None,
    bonus: Tensor | None,
    concentrate: Tensor,
    own: dict[str, Tensor],
) -> Credit:
    if not torch.isfinite(per_token).all():
        raise ValueError("credit is not finite: the model produced NaN or infinite signals for these rollouts")
    mask = rollouts.completion_mask
    no_answer = mask.new_ones(len(rollouts)) if rollouts.answer_start is None else ~rollouts.has_answer
    diagnostics = {
        **diag.concentration(concentrate, mask),
        "sign_flip": diag.sign_flip(per_token, advantages, mask),
        "no_answer": no_answer.float(),
        **{name: value.detach().float() for name, value in own.items()},
    }
    return Credit(per_token, weights, bonus, diagnostics)
