"""What a credit is judged by. A measure turns signed credit and truth into a statistic over completions.

Signed credit is that of the outcome advantage +1 in correct and -1 in wrong completions: (B, T), 0 on padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokencredit.audit.ranking import correlation, first_found, ordered_pairs, rank_correlation
from tokencredit.audit.truth import Truth
from tokencredit.diagnostics import effective_ratio, gini
from tokencredit.methods.base import step_means


class Statistic(Protocol):
    """A figure over completions, as a function of how often each of them counts."""

    @property
    def tells(self) -> Tensor:
        """(B,) bool: the completions that have anything to say."""
        ...

    def __call__(self, counts: Tensor) -> Tensor:
        """(R, B) counts -> (R,); NaN where no completion that says something is counted."""
        ...


@dataclass(frozen=True, eq=False)
class Ratio:
    """The sum of `part` over the sum of `whole`, (B,) each."""

    part: Tensor
    whole: Tensor

    @property
    def tells(self) -> Tensor:
        return self.whole > 0

    def __call__(self, counts: Tensor) -> Tensor:
        return (counts @ self.part) / (counts @ self.whole)


@dataclass(frozen=True, eq=False)
class PooledAUROC:
    """How often a positive scores above another one, over all pairs of all completions; ties half.

    `scores`, `positive`, `row`: (n,), one an item, and the completion, of `count`, that it is of.
    """

    scores: Tensor
    positive: Tensor
    row: Tensor
    count: int

    @property
    def tells(self) -> Tensor:
        known = torch.zeros(self.count, dtype=torch.bool)
        known[self.row] = bool(self.positive.any()) and not bool(self.positive.all())
        return known

    def __call__(self, counts: Tensor) -> Tensor:
        levels, level = self.scores.unique(return_inverse=True)
        weight = counts[:, self.row]

        def per_level(chosen: Tensor) -> Tensor:
            return torch.zeros(len(counts), len(levels), dtype=counts.dtype).index_add_(
                1, level[chosen], weight[:, chosen]
            )

        above, other = per_level(self.positive), per_level(~self.positive)
        below = other.cumsum(1) - other / 2
        return (above * below).sum(1) / (above.sum(1) * other.sum(1))


Measure = Callable[[Tensor, Tensor, Truth], Statistic | None]
"""(signed credit, (B, T) bool completion mask, truth) -> statistic; None where the truth is not known."""


def essential_auroc(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """AUROC of per-step credit, essential against redundant, over the steps of all correct completions."""
    scores, known = _steps(credit, truth)
    positive = truth.essential[:, : scores.shape[1]]
    rows = torch.arange(len(scores))[:, None].expand_as(scores)
    return PooledAUROC(scores[known], positive[known], rows[known], len(scores))


def step_ranking(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Step ranking accuracy: of all pairs of one form within a correct completion, how many are ordered rightly."""
    return _ranking(credit, truth, torch.zeros_like(truth.essential))


def step_ranking_direct(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """`step_ranking` of the essential steps that the answer itself reads, against the redundant ones."""
    return None if truth.indirect is None else _ranking(credit, truth, truth.indirect)


def step_ranking_indirect(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """`step_ranking` of the essential steps that only other steps rest on, against the redundant ones."""
    return None if truth.indirect is None else _ranking(credit, truth, truth.essential & ~truth.indirect)


def error_auroc(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean AUROC of blame over the tokens of a wrong completion: the first error against all others."""
    return _mean_auroc(-credit, truth.error, mask)


def error_auroc_results(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """`error_auroc` among the tokens that state a result, where the error is one of them."""
    return None if truth.results is None else _mean_auroc(-credit, truth.error, mask & truth.results)


def error_hit(k: int) -> Measure:
    """How often the first error is among the k most blamed tokens of a wrong completion."""

    def measure(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
        return Ratio(first_found(-credit, truth.error, mask)[:, :k].sum(1), truth.error.any(1).double())

    return measure


def error_reciprocal_rank(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean reciprocal rank of the first error among the tokens of a wrong completion, the most blamed first."""
    chance = first_found(-credit, truth.error, mask)
    place = torch.arange(1, chance.shape[1] + 1)
    return Ratio((chance / place).sum(1), truth.error.any(1).double())


def advantage_signed(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean Spearman correlation of signed credit and Monte-Carlo advantage within a completion."""
    return None if truth.advantage is None else _mean_correlation(credit, truth.advantage, mask)


def advantage_linear(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """The same by Pearson: most tokens hardly matter, and ranks count them as much as the few that do."""
    return None if truth.advantage is None else _mean_of(*correlation(credit, truth.advantage, mask))


def advantage_size(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Spearman's of their sizes. Sizes mostly follow how likely a token was to be another, as surprise does."""
    return None if truth.advantage is None else _mean_correlation(credit.abs(), truth.advantage.abs(), mask)


def replacement(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean AUROC within a completion: the tokens whose replacement changes its success against the others."""
    return None if truth.effect is None else _mean_auroc(credit.abs(), truth.effect != 0, mask)


def concentration_gini(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean Gini coefficient of the credit's size."""
    return _mean(gini(credit.abs(), mask), mask)


def concentration_ratio(credit: Tensor, mask: Tensor, truth: Truth) -> Statistic | None:
    """Mean effective-token ratio of the credit's size."""
    return _mean(effective_ratio(credit.abs(), mask), mask)


MEASURES: dict[str, Measure] = {
    "essential_auroc": essential_auroc,
    "step_ranking": step_ranking,
    "step_ranking_direct": step_ranking_direct,
    "step_ranking_indirect": step_ranking_indirect,
    "error_auroc": error_auroc,
    "error_auroc_results": error_auroc_results,
    "error_hit_1": error_hit(1),
    "error_hit_5": error_hit(5),
    "error_reciprocal_rank": error_reciprocal_rank,
    "advantage_signed": advantage_signed,
    "advantage_linear": advantage_linear,
    "advantage_size": advantage_size,
    "replacement": replacement,
}
"""Where credit lands; the higher the better."""

CONCENTRATION: dict[str, Measure] = {"gini": concentration_gini, "effective_ratio": concentration_ratio}


def _steps(credit: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """(B, K) mean credit of each step, and which steps have a label that counts: those of correct completions."""
    scores, exists = step_means(credit.double(), truth.step_index)
    return scores, exists & truth.labelled[:, : scores.shape[1]] & truth.correct[:, None]


def _ranking(credit: Tensor, truth: Truth, left_out: Tensor) -> Statistic:
    scores, known = _steps(credit, truth)
    steps = scores.shape[1]
    form = (torch.zeros_like(truth.essential, dtype=torch.long) if truth.form is None else truth.form)[:, :steps]
    known = known & ~left_out[:, :steps]
    pairs = [ordered_pairs(scores, truth.essential[:, :steps], known & (form == kind)) for kind in form.unique()]
    return Ratio(
        sum((right for right, _ in pairs), torch.zeros(len(scores)).double()),
        sum((n for _, n in pairs), torch.zeros(len(scores)).double()),
    )


def _mean_auroc(scores: Tensor, positive: Tensor, among: Tensor) -> Ratio:
    right, pairs = ordered_pairs(scores, positive, among)
    return Ratio(torch.where(pairs > 0, right / pairs.clamp(min=1), 0.0), (pairs > 0).double())


def _mean_correlation(scores: Tensor, truth: Tensor, among: Tensor) -> Ratio:
    return _mean_of(*rank_correlation(scores, truth, among))


def _mean_of(values: Tensor, known: Tensor) -> Ratio:
    return Ratio(torch.where(known, values, 0.0), known.double())


def _mean(values: Tensor, mask: Tensor) -> Ratio:
    spoken = mask.any(1).double()
    return Ratio(values.double() * spoken, spoken)
