"""Intervals over completions: the tokens of one completion are no independent observations, completions are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_RESAMPLES = 2000


def bootstrap_interval(
    columns: Tensor, statistic: Callable[[Tensor], Tensor], generator: torch.Generator
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a statistic of column means.

    Args:
        columns: (B, C) float64, what each completion contributes.
        statistic: (R, C) means of R resamples -> (R,). Resamples for which it is not finite do not count.

    Returns:
        None for fewer than two completions, which tell nothing of the spread.
    """
    count = len(columns)
    if count < 2:
        return None
    # One resample at a time: all at once would take memory of resamples times completions.
    means = [columns[torch.randint(count, (count,), generator=generator)].mean(0) for _ in range(_RESAMPLES)]
    values = statistic(torch.stack(means))
    values = values[values.isfinite()]
    if len(values) == 0:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
