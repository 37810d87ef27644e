"""Intervals over completions: the tokens of one completion are no independent observations, completions are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_RESAMPLES = 2000
FEWEST = 8
"""Independent observations from which on a bootstrap interval is given: from fewer it is far too narrow."""
_ROUNDING = 1e-12
"""Relative differences up to this are rounding: means of equal values, summed in another order."""


def bootstrap_interval(
    columns: Tensor, statistic: Callable[[Tensor], Tensor], generator: torch.Generator
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a statistic of column means.

    Args:
        columns: (B, C) float64, what each completion contributes.
        statistic: (R, C) means of R resamples -> (R,). Resamples for which it is not finite do not count.

    Returns:
        None where the completions tell too little of the spread: where there are fewer than 8, from which the bootstrap
        gives intervals that are far too narrow, or where the statistic is the same for every resample, whose interval
        would have no width.
    """
    count = len(columns)
    if count < FEWEST:
        return None
    # One resample at a time: all at once would take memory of resamples times completions.
    means = [columns[torch.randint(count, (count,), generator=generator)].mean(0) for _ in range(_RESAMPLES)]
    values = statistic(torch.stack(means))
    values = values[values.isfinite()]
    if len(values) == 0 or values.max() - values.min() <= _ROUNDING * values.abs().max():
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
