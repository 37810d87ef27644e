"""Credit: what a method returns, in the two forms that methods take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokencredit import diagnostics as diag
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.shading import shaded_html

BUILT_IN = ("gini", "effective_ratio", "broadcast", "sparse", "sign_flip", "no_answer")
"""The diagnostics of every method; others are its own."""


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
        advantages: (B,) outcome advantages, finite.
        weights: (B, T), finite and non-negative; what stands on padding is ignored.
        own: the method's own diagnostics, (B,) each, finite, by names that `Credit.diagnostics` does not have yet.

    Raises:
        ValueError: one of them is not so.
    """
    weights = _on_tokens("weights", weights, rollouts)
    per_token = _outcome(advantages, rollouts)[:, None] * weights
    return _credit(rollouts, advantages, per_token, weights=weights, bonus=None, concentrate=weights, own=own)


def additive(rollouts: Rollouts, advantages: Tensor, bonus: Tensor, **own: Tensor) -> Credit:
    """Credit A[t] = A + b[t]; arguments as in `multiplicative`. Concentration is that of |A[t]|."""
    bonus = _on_tokens("bonus", bonus, rollouts)
    per_token = _on_tokens("credit", _outcome(advantages, rollouts)[:, None] + bonus, rollouts)
    return _credit(rollouts, advantages, per_token, weights=None, bonus=bonus, concentrate=per_token.abs(), own=own)


def salience_weights(salience: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Weights of mean one from a non-negative salience: w[t] = T_i * (a[t] + eps) / sum(a + eps).

    The mean-one form of ARCA's eq. 8, so that uniform salience gives w = 1. (B, T) in, (B, T) out; 0 on padding, where
    the salience is ignored.

    Raises:
        ValueError: shapes disagree, or the salience of a token is negative, NaN or infinite.
    """
    if salience.shape != mask.shape:
        raise ValueError(f"salience must have the mask's shape, {tuple(mask.shape)}; got {tuple(salience.shape)}")
    mask = mask.bool()
    allowed = (salience >= 0) & (salience < torch.inf) | ~mask
    if not allowed.all():
        raise ValueError(f"salience must be finite and not negative: {_first(~allowed, salience)}")
    raised = torch.where(mask, widened(salience) + eps, 0.0)
    return divided(mask.sum(1, keepdim=True) * raised, by=raised.sum(1, keepdim=True), otherwise=0.0).float()


def _on_tokens(name: str, values: Tensor, rollouts: Rollouts) -> Tensor:
    """`values` (B, T) as float32, detached, 0 on padding."""
    shape = tuple(rollouts.completion_mask.shape)
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        raise ValueError(f"{name} must be {shape}, one number per token of the completions; got {_described(values)}")
    return torch.where(rollouts.completion_mask, values.detach().float(), 0.0)


def _outcome(advantages: Tensor, rollouts: Rollouts) -> Tensor:
    if not isinstance(advantages, Tensor) or tuple(advantages.shape) != (len(rollouts),):
        raise ValueError(f"advantages must be ({len(rollouts)},), one per completion; got {_described(advantages)}")
    if not torch.isfinite(advantages).all():
        raise ValueError("advantages must be finite: some are NaN or infinite")
    return advantages.detach().float()


def _own(given: dict[str, Tensor], rollouts: Rollouts) -> dict[str, Tensor]:
    """A method's own diagnostics as float32, detached."""
    for name, value in given.items():
        if name in BUILT_IN:
            raise ValueError(f"{name} is a diagnostic of every method: give your own another name")
        if not isinstance(value, Tensor) or tuple(value.shape) != (len(rollouts),):
            raise ValueError(
                f"diagnostic {name} must be ({len(rollouts)},), one number per completion; got {_described(value)}"
            )
    return {name: value.detach().float() for name, value in given.items()}


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _first(bad: Tensor, values: Tensor) -> str:
    """Where the first of the `bad` (B, T) values is."""
    row, token = bad.nonzero()[0].tolist()
    return f"completion {row}, token {token} has {values[row, token].item():g}"


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
    own = _own(own, rollouts)
    allowed = torch.isfinite(per_token) if weights is None else torch.isfinite(per_token) & (weights >= 0)
    defined = [torch.isfinite(value).to(allowed.device) for value in own.values()]
    if not torch.cat([allowed.flatten(), *defined]).all():  # in one check, since each waits for the device
        _refuse(per_token, weights, own)
    mask = rollouts.completion_mask
    no_answer = mask.new_ones(len(rollouts)) if rollouts.answer_start is None else ~rollouts.has_answer
    diagnostics = {
        **diag.concentration(concentrate, mask),
        "sign_flip": diag.sign_flip(per_token, advantages, mask),
        "no_answer": no_answer.float(),
        **own,
    }
    return Credit(per_token, weights, bonus, diagnostics)


def _refuse(per_token: Tensor, weights: Tensor | None, own: dict[str, Tensor]) -> None:
    """Raise the ValueError that says what of these is not finite, or negative where it must not be."""
    if weights is not None and (weights < 0).any():
        raise ValueError(f"weights must not be negative: {_first(weights < 0, weights)}")
    if not torch.isfinite(per_token).all():
        where = _first(~torch.isfinite(per_token), per_token)
        raise ValueError(
            f"credit is not finite: the model produced NaN or infinite signals for these rollouts; {where}"
        )
    undefined = [name for name, value in own.items() if not torch.isfinite(value).all()]
    raise ValueError(f"diagnostics must be finite; NaN or infinite: {', '.join(undefined)}")
