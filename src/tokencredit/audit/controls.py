"""Credit that knows nothing, or everything: what a method is compared with. Weights (B, T), as a method's."""

from __future__ import annotations

import torch
from torch import Tensor

from tokencredit.audit.truth import Truth


def later(mask: Tensor) -> Tensor:
    """The later a token, the more."""
    return mask.double().cumsum(1) / mask.sum(1, keepdim=True).clamp(min=1) * mask


def earlier(mask: Tensor) -> Tensor:
    """The earlier a token, the more."""
    return (1 + 1 / mask.sum(1, keepdim=True).clamp(min=1) - later(mask)) * mask


def step_length(mask: Tensor, truth: Truth) -> Tensor:
    """As many tokens as the step has that a token lies in; 0 outside the steps."""
    index = truth.step_index
    steps = int(index.max()) + 1
    inside = torch.where(mask & (index >= 0), index, steps)
    count = torch.zeros(len(index), steps + 1, dtype=torch.float64).scatter_add(
        1, inside, torch.ones_like(inside).double()
    )
    count[:, steps] = 0
    return count.gather(1, inside) * mask


def oracle(mask: Tensor, truth: Truth) -> Tensor:
    """All credit on the essential steps of a correct completion, all blame on the first error of a wrong one."""
    essential = torch.nn.functional.pad(truth.essential, (0, 1))
    of_step = essential.gather(1, torch.where(truth.step_index >= 0, truth.step_index, truth.essential.shape[1]))
    return torch.where(truth.correct[:, None], of_step, truth.error).double() * mask


def by_token(weights: Tensor, ids: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """What the same token gets on average in completions of other problems: all that the kind of token tells.

    Args:
        weights: (B, T). ids: (B, T) token ids. group: (B,) long.
    """
    token, rows = ids[mask].unique(return_inverse=True)[1], mask.nonzero()[:, 0]
    problem = group.unique(return_inverse=True)[1][rows]
    kinds, problems = int(token.max()) + 1, int(problem.max()) + 1
    cell, values = problem * kinds + token, weights[mask].double()

    def sums(of: Tensor) -> Tensor:
        return torch.zeros(problems * kinds, dtype=torch.float64).index_add_(0, cell, of).view(problems, kinds)

    total, count = sums(values), sums(torch.ones_like(values))
    total, count = total.sum(0) - total, count.sum(0) - count
    everywhere = values.mean()
    mean = torch.where(count > 0, total / count.clamp(min=1), everywhere)
    found = torch.zeros(mask.shape, dtype=torch.float64)
    found[mask] = mean[problem, token]
    return found


def shuffled(credit: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """The same values in each completion, dealt out to its tokens at random."""
    random = torch.rand(credit.shape, generator=generator).masked_fill(~mask, 2.0)
    # Real tokens are at the front of a row, and so are the least random numbers: an order of real tokens only.
    return credit.gather(1, random.argsort(1)) * mask
