"""How well scores rank some tokens of a completion above the others; ties count as chance would have them."""

from __future__ import annotations

import torch
from torch import Tensor


def midranks(scores: Tensor, among: Tensor) -> Tensor:
    """(B, T) float64: the rank of each score among the tokens `among` (B, T) of its row, 1 the least; ties share."""
    values = scores.double().masked_fill(~among, torch.inf)
    ascending = values.sort(1).values
    below = torch.searchsorted(ascending, values, right=False)
    not_above = torch.searchsorted(ascending, values, right=True)
    return ((below + not_above + 1) / 2).double()


def ordered_pairs(scores: Tensor, positive: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs of a positive and another token are ordered rightly (ties half), and how many there are; (B,)."""
    positive = positive & among
    count, others = positive.sum(1).double(), (among & ~positive).sum(1).double()
    ranks = midranks(scores, among).masked_fill(~positive, 0.0).sum(1)
    return torch.where(count * others > 0, ranks - count * (count + 1) / 2, 0.0), count * others


def first_found(scores: Tensor, positive: Tensor, among: Tensor) -> Tensor:
    """(B, T): the chance that the best-placed positive token stands at place 1, 2, ... when scores are read downwards.

    Tokens of equal score come in random order. 0 throughout where there is no positive token.
    """
    positive = positive & among
    values = scores.double()
    best = values.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    above = (among & (values > best)).sum(1)
    tied_positive = (positive & (values == best)).sum(1)
    tied_other = (among & ~positive & (values == best)).sum(1)
    place = torch.arange(1, scores.shape[1] + 1, device=scores.device)[None] - above[:, None]
    later = _none_among(place, tied_positive, tied_other)
    chance = _none_among(place - 1, tied_positive, tied_other) - later
    return torch.where((place >= 1) & positive.any(1, keepdim=True), chance, 0.0)


def _none_among(drawn: Tensor, positive: Tensor, other: Tensor) -> Tensor:
    """Chance that `drawn` (B, T) of `positive` + `other` (B,) tokens are all others: C(other, n) / C(all, n)."""
    p, q = positive[:, None].double(), other[:, None].double()
    n = drawn.double().clamp(min=0)
    possible = n <= q
    n = torch.where(possible, n, 0.0)
    log = torch.lgamma(q + 1) - torch.lgamma(q - n + 1) + torch.lgamma(p + q - n + 1) - torch.lgamma(p + q + 1)
    return torch.where(possible, log.exp(), 0.0)


def rank_correlation(scores: Tensor, truth: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Spearman's correlation of each row, 0 where the scores do not vary; and whether the truth varies; (B,) each."""
    return correlation(midranks(scores, among), midranks(truth, among), among)


def correlation(scores: Tensor, truth: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation, as `rank_correlation`."""
    count = among.sum(1, keepdim=True).clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        kept = values.double().masked_fill(~among, 0.0)
        return torch.where(among, kept - kept.sum(1, keepdim=True) / count, 0.0)

    def varies(values: Tensor) -> Tensor:
        # Not by the norm: the mean of equal numbers may round apart from them.
        return values.masked_fill(~among, -torch.inf).amax(1) > values.masked_fill(~among, torch.inf).amin(1)

    a, b = centred(scores), centred(truth)
    both = varies(scores) & varies(truth)
    return torch.where(both, (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)), 0.0), varies(truth)
