"""What learning curves come to: figures of each run, and of each arm over its runs, paired with its baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

from scipy.stats import binomtest, t

from tokencredit.testbed.compare import Arm


@dataclass(frozen=True)
class Interval:
    """A mean over `count` runs and its 95 % interval (Student's t); None for the bounds of one run."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if not values:
            raise ValueError("an interval of no runs")
        mean, count = fmean(values), len(values)
        if count < 2:
            return cls(mean, None, None, count)
        half = float(t.ppf(0.975, count - 1)) * stdev(values) / count**0.5
        return cls(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class ArmSummary:
    """An arm at one learning rate.

    Attributes:
        area: area under the curve of held-out greedy accuracy, over its steps: a mean accuracy.
        final: accuracy after the last step. length: mean completion length of the last ten steps, in tokens.
        collapsed: runs that end below where they began; `collapse_low`, `collapse_high`: its share's Wilson interval.
        reached: runs that reach the target. steps_to_target: the median over all runs; None where half never do.
        area_gain, final_gain: over the baseline, paired by checkpoint and seed; None for a baseline.
        credit_share: seconds of credit over seconds of training.
    """

    arm: str
    learning_rate: float
    area: Interval
    final: Interval
    length: Interval
    collapsed: int
    collapse_low: float
    collapse_high: float
    reached: int
    steps_to_target: float | None
    area_gain: Interval | None
    final_gain: Interval | None
    credit_share: float


def area(run: Mapping[str, Any]) -> float:
    """The area under a run's curve by the trapezoid rule, over its steps."""
    curve = _curve(run)
    total = sum((b - a) * (y + z) / 2 for (a, y), (b, z) in pairwise(curve))
    return total / (curve[-1][0] - curve[0][0])


def final(run: Mapping[str, Any]) -> float:
    return _curve(run)[-1][1]


def steps_to(run: Mapping[str, Any], target: float) -> float:
    """The first evaluated step at which the target is reached; infinite where it never is."""
    return next((step for step, accuracy in _curve(run) if accuracy >= target), float("inf"))


def summarise(runs: Iterable[Mapping[str, Any]], target: float) -> list[ArmSummary]:
    """One summary an arm and learning rate, in the order in which they first come."""
    groups: dict[tuple[str, float], dict[tuple[int, int], Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["arm"], run["learning_rate"]), {})[run["checkpoint"], run["seed"]] = run
    return [
        _summary(name, rate, found, groups.get((Arm.parse(name).baseline, rate), {}), target)
        for (name, rate), found in groups.items()
    ]


def best(summaries: Iterable[ArmSummary]) -> list[ArmSummary]:
    """Each arm at the learning rate of its largest area: chosen by looking, which flatters all arms alike."""
    found: dict[str, ArmSummary] = {}
    for summary in summaries:
        if summary.arm not in found or summary.area.mean > found[summary.arm].area.mean:
            found[summary.arm] = summary
    return list(found.values())


def _summary(
    name: str,
    rate: float,
    found: Mapping[tuple[int, int], Mapping[str, Any]],
    baseline: Mapping[tuple[int, int], Mapping[str, Any]],
    target: float,
) -> ArmSummary:
    runs = list(found.values())
    pairs = (
        [] if name == Arm.parse(name).baseline else [(found[key], baseline[key]) for key in found if key in baseline]
    )
    collapsed = sum(final(run) < run["before"] for run in runs)
    wilson = binomtest(collapsed, len(runs)).proportion_ci(0.95, method="wilson")
    steps = [steps_to(run, target) for run in runs]
    middle = median(steps)
    return ArmSummary(
        arm=name,
        learning_rate=rate,
        area=Interval.of([area(run) for run in runs]),
        final=Interval.of([final(run) for run in runs]),
        length=Interval.of([fmean(run["length"][-10:]) for run in runs]),
        collapsed=collapsed,
        collapse_low=float(wilson.low),
        collapse_high=float(wilson.high),
        reached=sum(step < float("inf") for step in steps),
        steps_to_target=None if middle == float("inf") else middle,
        area_gain=Interval.of([area(a) - area(b) for a, b in pairs]) if pairs else None,
        final_gain=Interval.of([final(a) - final(b) for a, b in pairs]) if pairs else None,
        credit_share=sum(run["credit_seconds"] for run in runs) / sum(run["seconds"] for run in runs),
    )


def _curve(run: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, accuracy), from before the first step on. JSON has made the steps text."""
    return [(0, run["before"]), *sorted((int(step), value) for step, value in run["accuracy"].items())]
