"""What a verl run logs of credit, and warns of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokencredit.credit import Credit
from tokencredit.diagnostics import means_with_loss
from tokencredit.notices import inactive


def diagnostic_means(credit: Credit, carrying: Tensor, real: Tensor) -> dict[str, float]:
    """`means_with_loss` of the completions that verl has not added as padding.

    Args:
        carrying: (B,) bool, see `tokencredit.diagnostics.carrying_loss`. real: (B,) bool, those completions.
    """
    return means_with_loss({name: values[real] for name, values in credit.diagnostics.items()}, carrying[real])


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
