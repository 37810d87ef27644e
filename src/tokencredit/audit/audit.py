"""Score credit against the truth, beside controls that know nothing, with intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tokencredit.analysis.bootstrap import FEWEST
from tokencredit.audit import controls
from tokencredit.audit.measures import CONCENTRATION, MEASURES, Measure
from tokencredit.audit.ranking import rank_correlation
from tokencredit.audit.truth import Truth
from tokencredit.rollouts import Rollouts

SHUFFLES = 8
"""Draws that a shuffled control is the mean of."""
RESAMPLES = 2000
_TRIVIAL = ("later", "earlier", "step length")


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval over problems; no bounds from fewer than 8 problems."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """How a credit does by one measure.

    Attributes:
        over_shuffled: its lead over the same values dealt out at random within each completion.
        over_trivial: its lead over the best of later, earlier, and step length.
        over_token: its lead over what it gives the same token on average in other problems' completions.
        informative: all three leads are above 0, interval and all. None for controls.
        completions: how many of them the measure says something about. problems: how many different ones they answer.
    """

    estimate: Estimate
    completions: int
    problems: int
    over_shuffled: Estimate | None = None
    over_trivial: Estimate | None = None
    over_token: Estimate | None = None

    @property
    def informative(self) -> bool | None:
        leads = (self.over_shuffled, self.over_trivial, self.over_token)
        if None in leads:
            return None
        return all(lead is not None and lead.low is not None and lead.low > 0 for lead in leads)


@dataclass(frozen=True)
class AuditRow:
    """One credit: `kind` is method or control; `scores` by measure, `concentration` by name."""

    name: str
    kind: str
    scores: dict[str, Score]
    concentration: dict[str, Score]


@dataclass(frozen=True)
class Audit:
    """`agreement`: mean Spearman correlation within completions of the size of two methods' credit."""

    completions: int
    correct: int
    rows: list[AuditRow]
    agreement: dict[str, dict[str, float]]

    def row(self, name: str) -> AuditRow:
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`, null where a figure is not defined."""
        rows = [
            {
                "name": row.name,
                "kind": row.kind,
                "scores": {m: {**asdict(s), "informative": s.informative} for m, s in row.scores.items()},
                "concentration": {name: asdict(s.estimate) for name, s in row.concentration.items()},
            }
            for row in self.rows
        ]
        agreement = {
            a: {b: None if math.isnan(value) else value for b, value in others.items()}
            for a, others in self.agreement.items()
        }
        return {"completions": self.completions, "correct": self.correct, "rows": rows, "agreement": agreement}


def audit(credits: Mapping[str, Tensor], rollouts: Rollouts, truth: Truth, *, seed: int = 0) -> Audit:
    """Score every credit, and the controls, by every measure whose truth is known.

    Args:
        rollouts: with `group`, where some completions answer the same problem.
        credits: name -> (B, T) per-token advantages under the outcome advantages `signs(truth)`, as a method's
            `Credit.advantages`.
        seed: of shuffles and resamples, which all rows share.

    Raises:
        ValueError: shapes disagree, something is NaN, or there is no completion.
    """
    if not credits:
        raise ValueError("name at least one method to audit")
    scoring = Scoring.of(rollouts, truth, seed)
    return scoring.audit(
        credits, [row for name, credit in credits.items() for row in scoring.method_rows(name, credit)]
    )


@dataclass(frozen=True, eq=False)
class Scoring:
    """Completions, what is known about them, and what every credit is compared with: `of` makes one.

    Attributes:
        group: (B,) long, the problem of each completion.
        counts: (1 + R, B) float64, how often each completion counts, in the sample and in each resample.
        control: name -> the figures of a control by each measure.
    """

    rollouts: Rollouts
    truth: Truth
    seed: int
    mask: Tensor
    group: Tensor
    counts: Tensor
    control: dict[str, dict[str, _Figure]]

    @classmethod
    def of(cls, rollouts: Rollouts, truth: Truth, seed: int = 0) -> Scoring:
        """
        Raises:
            ValueError: the truth is about other rollouts, or there is no completion.
        """
        mask = rollouts.completion_mask.cpu()
        if not mask.any():
            raise ValueError("there is no completion with a token to audit credit on")
        truth.check(rollouts)
        group = torch.arange(len(mask)) if rollouts.group is None else rollouts.group.cpu()
        scoring = cls(rollouts, truth, seed, mask, group, _resamples(group, seed), {})
        for name, weights in _controls(mask, truth).items():
            scoring.control[name] = scoring._scored([scoring._sign * weights], MEASURES)
        return scoring

    def method_rows(self, name: str, given: Tensor) -> list[AuditRow]:
        """The row of a method's credit (B, T), and of the two controls that are made from its values."""
        _check(name, given, self.mask)
        # In float32, as methods give it: equal credit in float64 may have unequal means.
        credit = given.detach().cpu().float().double() * self.mask
        generator = torch.Generator().manual_seed(self.seed)
        own = self._scored([credit], MEASURES)
        dealt = self._scored([controls.shuffled(credit, self.mask, generator) for _ in range(SHUFFLES)], MEASURES)
        token_means = controls.by_token(self._sign * credit, self.rollouts.completion_ids.cpu(), self.mask, self.group)
        kind = self._scored([self._sign * token_means], MEASURES)
        scores = {
            measure: figure.score(
                over_shuffled=figure.lead(dealt[measure]),
                over_trivial=figure.lead(self._best_trivial(measure)),
                over_token=figure.lead(kind[measure]),
            )
            for measure, figure in own.items()
        }
        return [
            AuditRow(name, "method", scores, _plain(self._scored([credit], CONCENTRATION))),
            AuditRow(f"{name}, shuffled", "control", _plain(dealt), {}),
            AuditRow(f"{name}, by token", "control", _plain(kind), {}),
        ]

    def audit(self, credits: Mapping[str, Tensor], method_rows: list[AuditRow]) -> Audit:
        """All rows together, the controls last, and how far the methods agree."""
        rows = [AuditRow(name, "control", _plain(figures), {}) for name, figures in self.control.items()]
        correct = int(self.truth.correct.sum())
        return Audit(len(self.mask), correct, [*method_rows, *rows], _agreement(credits, self.mask))

    @property
    def _sign(self) -> Tensor:
        return signs(self.truth)[:, None].double()

    def _best_trivial(self, measure: str) -> _Figure:
        return max((self.control[way][measure] for way in _TRIVIAL), key=lambda figure: figure.values[0])

    def _scored(self, credits: list[Tensor], measures: Mapping[str, Measure]) -> dict[str, _Figure]:
        """The mean over several credits, by each measure that has anything to say."""
        figures = {}
        for name, measure in measures.items():
            statistics = [measure(credit, self.mask, self.truth) for credit in credits]
            known = [s for s in statistics if s is not None and s.tells.any()]
            if known:
                values = torch.stack([statistic(self.counts) for statistic in known]).mean(0)
                figures[name] = _Figure(values, known[0].tells, self.group)
        return figures


def _controls(mask: Tensor, truth: Truth) -> dict[str, Tensor]:
    return {
        "later": controls.later(mask),
        "earlier": controls.earlier(mask),
        "step length": controls.step_length(mask, truth),
        "oracle": controls.oracle(mask, truth),
    }


def signs(truth: Truth) -> Tensor:
    """(B,) float32: the outcome advantages that credit is audited under, +1 for a right and -1 for a wrong answer."""
    return torch.where(truth.correct, 1.0, -1.0)


@dataclass(frozen=True, eq=False)
class _Figure:
    """`values`: (1 + R,), of the completions as they are and of each resample. `tells`: (B,) bool, those that count."""

    values: Tensor
    tells: Tensor
    group: Tensor

    @property
    def problems(self) -> int:
        return len(self.group[self.tells].unique())

    def score(self, **leads: Estimate) -> Score:
        return Score(self.estimate(), int(self.tells.sum()), self.problems, **leads)

    def estimate(self) -> Estimate:
        resampled = self.values[1:][self.values[1:].isfinite()]
        if self.problems < FEWEST or len(resampled) == 0:
            return Estimate(float(self.values[0]), None, None)
        low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
        return Estimate(float(self.values[0]), low, high)

    def lead(self, other: _Figure) -> Estimate:
        return _Figure(self.values - other.values, self.tells, self.group).estimate()


def _resamples(group: Tensor, seed: int) -> Tensor:
    """(1 + R, B) float64: how often each completion counts, at first once each.

    Whole groups are drawn: completions of one problem are alike, and no independent observations.
    """
    problems, problem = group.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(problems), (RESAMPLES, len(problems)), generator=generator)
    times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add(1, drawn, torch.ones_like(drawn).double())
    return torch.cat([torch.ones(1, len(group), dtype=torch.float64), times[:, problem]])


def _plain(figures: Mapping[str, _Figure]) -> dict[str, Score]:
    return {name: figure.score() for name, figure in figures.items()}


def _agreement(credits: Mapping[str, Tensor], mask: Tensor) -> dict[str, dict[str, float]]:
    """Means over the completions in which both vary; NaN where there is none."""
    sizes = {name: credit.detach().cpu().double().abs() * mask for name, credit in credits.items()}

    def agree(a: Tensor, b: Tensor) -> float:
        correlation, b_varies = rank_correlation(a, b, mask)
        both = b_varies & rank_correlation(b, a, mask)[1]
        return float(correlation[both].mean())

    return {name: {other: agree(a, b) for other, b in sizes.items()} for name, a in sizes.items()}


def _check(name: str, credit: Tensor, mask: Tensor) -> None:
    if credit.shape != mask.shape:
        raise ValueError(f"the credit of {name} must be {tuple(mask.shape)}; got {tuple(credit.shape)}")
    if not torch.isfinite(credit).all():
        raise ValueError(f"the credit of {name} is NaN or infinite")
