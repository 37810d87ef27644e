"""Does credit discriminate between tokens, and by how much? (ARCA, arXiv 2606.00257, Gini and effective tokens.)"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokencredit.precision import divided, widened

WITH_LOSS = "with_loss"
"""The name under which trainers log the share of completions that carry loss."""
BROADCAST_GINI = 0.02
"""Below this Gini the weights are as good as uniform."""
SPARSE_RATIO = 0.1
"""Below this effective-token ratio a few tokens hold nearly all credit."""


def gini(weights: Tensor, mask: Tensor) -> Tensor:
    """Gini coefficient of each completion's weights over its real tokens.

    G = 2 * sum(i * p_(i)) / n - (n + 1) / n, p the normalised weights in ascending order, i from 1.

    Args:
        weights: (B, T), non-negative.
        mask: (B, T) bool, the real tokens.

    Returns:
        (B,) float32: 0 is uniform, (n - 1) / n all on one token. All-zero weights and no tokens give 0.
    """
    p, count = _shares(weights, mask)
    ascending = p.masked_fill(~mask, -1.0).sort(1).values.clamp(min=0)
    padding = mask.shape[1] - count
    rank = (torch.arange(1, mask.shape[1] + 1, device=p.device) - padding[:, None]).clamp(min=0)
    n = count.clamp(min=1)
    g = 2 * (rank * ascending).sum(1) / n - (n + 1) / n
    return torch.where(p.sum(1) > 0, g, 0.0).clamp(min=0).float()


def effective_ratio(weights: Tensor, mask: Tensor) -> Tensor:
    """Effective number of credited tokens over the number of tokens, 1 / (n * sum p^2).

    Shapes as in `gini`. 1 is uniform, 1/n all on one token. All-zero weights and no tokens give 1.
    """
    p, count = _shares(weights, mask)
    square = (p**2).sum(1)
    return divided(torch.ones_like(square), by=count * square, otherwise=1.0).float()


def sign_flip(advantages: Tensor, outcome: Tensor, mask: Tensor) -> Tensor:
    """Share of a completion's tokens whose advantage has the sign opposite to its outcome advantage.

    Args:
        advantages: (B, T), per token.
        outcome: (B,), per completion.
        mask: (B, T) bool.

    Returns:
        (B,) float32 in 0..1; 0 where there are no tokens.
    """
    flipped = (advantages * outcome[:, None] < 0) & mask
    return (flipped.sum(1) / mask.sum(1).clamp(min=1)).float()


def carrying_loss(advantages: Tensor, outcome: Tensor, mask: Tensor) -> Tensor:
    """Which completions carry loss: those with tokens, and with an advantage other than 0.

    Args:
        advantages: (B, T), per token. outcome: (B,), per completion.
        mask: (B, T) bool, the tokens that count.

    Returns:
        (B,) bool. A completion counts where its outcome advantage or that of any of its tokens is not 0.
    """
    return mask.any(1) & ((outcome != 0) | (advantages != 0).any(1))


def means_with_loss(diagnostics: Mapping[str, Tensor], carrying: Tensor) -> dict[str, float]:
    """The mean of each diagnostic over the completions that carry loss, and their share as `WITH_LOSS`.

    The others, such as those of groups with equal rewards, would hide what credit does to the rest. Where no completion
    carries loss there is the share alone.

    Args:
        diagnostics: name -> (B,). carrying: (B,) bool, see `carrying_loss`.
    """
    share = {WITH_LOSS: carrying.sum().item() / max(1, len(carrying))}
    if not carrying.any():
        return share
    return {name: values[carrying].mean().item() for name, values in diagnostics.items()} | share


def concentration(weights: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`gini` and `effective_ratio`, with their flags `broadcast` and `sparse` (1.0 where credit has degenerated)."""
    g, ratio = gini(weights, mask), effective_ratio(weights, mask)
    return {
        "gini": g,
        "effective_ratio": ratio,
        "broadcast": (g < BROADCAST_GINI).float(),
        "sparse": (ratio < SPARSE_RATIO).float(),
    }


def _shares(weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """p = w / sum(w) over the real tokens in float64 (B, T), and the number of tokens (B,)."""
    w = widened(weights) * mask
    return divided(w, by=w.sum(1, keepdim=True), otherwise=0.0), mask.sum(1)
