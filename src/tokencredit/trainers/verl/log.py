"""What a verl run logs of credit, and warns of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokencredit.credit import Credit
from tokencredit.notices import inactive

SHARE = "with_loss"
"""Logged beside the diagnostics: the share of the completions that carry loss."""


def carrying_loss(credit: Credit, outcome: Tensor, mask: Tensor) -> Tensor:
    """(B,) bool: the completion has tokens that count, and an advantage other than 0: its outcome advantage, or that of
    a token.

    Args:
        outcome: (B,), the outcome advantages. mask: (B, T) bool, the tokens that count.
    """
    return mask.any(1) & ((outcome != 0) | (credit.advantages != 0).any(1))


def diagnostic_means(credit: Credit, carrying: Tensor, real: Tensor) -> dict[str, float]:
    """The mean of each diagnostic over the completions that carry loss, and their share as `SHARE`.

    The others, such as those of groups with equal rewards, would hide what credit does to the rest. Where no completion
    carries loss there is the share alone.

    Args:
        carrying: (B,) bool, see `carrying_loss`. real: (B,) bool, the completions that verl has not added as padding.
    """
    share = {SHARE: (carrying & real).sum().item() / max(1, int(real.sum()))}
    rows = carrying & real
    if not rows.any():
        return share
    return {name: values[rows].mean().item() for name, values in credit.diagnostics.items()} | share


def new_notices(method: Any, credit: Credit, rows: Tensor, known: set[str]) -> list[str]:
    """A sentence for each reason for which the method left completions uniform, and that is not in `known` yet; the
    reason is added.

    Args:
        rows: (B,) bool, the completions that count.
    """
    sentences = []
    for sentence in inactive(method, {name: values[rows] for name, values in credit.diagnostics.items()}):
        reason = sentence.partition(": ")[2]
        if reason not in known:
            known.add(reason)
            sentences.append(sentence)
    return sentences
