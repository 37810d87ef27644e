"""What a verl run logs of credit, and warns of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokencredit.credit import Credit
from tokencredit.diagnostics import WITH_LOSS
from tokencredit.notices import inactive


def diagnostic_means(credit: Credit, carrying: Tensor, real: Tensor) -> dict[str, float]:
    """The mean of each diagnostic over the completions that carry loss, and their share as `WITH_LOSS`.

    The others, such as those of groups with equal rewards, would hide what credit does to the rest. Where no completion
    carries loss there is the share alone.

    Args:
        carrying: (B,) bool, see `carrying_loss`. real: (B,) bool, the completions that verl has not added as padding.
    """
    share = {WITH_LOSS: (carrying & real).sum().item() / max(1, int(real.sum()))}
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
