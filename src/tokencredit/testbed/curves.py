"""What learning curves come to: figures of each run, and of each arm over its runs, paired with its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

from scipy.stats import binomtest, t

from tokencredit.testbed.compare import Arm

COLLAPSE = 0.1
"""So much below where it began a run must end: less is the noise of a few hundred problems."""

LAST_STEPS = 10
"""Over which what is logged at every step is averaged, to say how a run ends."""

Runs = Mapping[tuple[int, int], Mapping[str, Any]]
"""(checkpoint, seed) -> run."""
Groups = dict[tuple[str, float], dict[tuple[int, int], Mapping[str, Any]]]
"""(arm, learning rate) -> its `Runs`."""


@dataclass(frozen=True)
class Interval:
    """A mean over `count` checkpoints and its 95 % interval (Student's t); None for the bounds of a single one."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if not values:
            raise ValueError("an interval of no checkpoints")
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
        collapsed: runs that end `COLLAPSE` or more below where they began, and the Wilson interval of their share.
        reached: runs that reach the target. steps_to_target: the median over all runs; None where half never do.
        area_gain, final_gain: over the baseline, paired by checkpoint and seed; None for a baseline.
        over_shuffled: the gain in area over the arm's own credit dealt out at random, where the sweep has that arm.
        credit_share: seconds of credit over seconds of training.
    """

    arm: str
    learning_rate: float
    runs: int
    area: Interval
    final: Interval
    length: float
    collapsed: int
    collapse_low: float
    collapse_high: float
    reached: int
    steps_to_target: float | None
    area_gain: Interval | None
    final_gain: Interval | None
    over_shuffled: Interval | None
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
    """One summary an arm and learning rate, over the baseline at the same rate, in the order of the runs."""
    groups = _groups(runs)
    return [_summary(name, rate, groups, rate, target) for name, rate in groups]


def at_best_rates(runs: Iterable[Mapping[str, Any]], target: float) -> list[ArmSummary]:
    """Each arm at the rate of its largest area, over its baseline at the baseline's own: both are chosen by looking."""
    groups = _groups(runs)
    chosen: dict[str, tuple[float, float]] = {}
    for (arm, rate), found in groups.items():
        chosen[arm] = max(chosen.get(arm, (-1.0, 0.0)), (fmean(map(area, found.values())), rate))
    best = {arm: rate for arm, (_, rate) in chosen.items()}
    return [_summary(arm, rate, groups, best.get(Arm.parse(arm).baseline, rate), target) for arm, rate in best.items()]


def _groups(runs: Iterable[Mapping[str, Any]]) -> Groups:
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run["arm"], run["learning_rate"]), {})[run["checkpoint"], run["seed"]] = run
    return groups


def _summary(name: str, rate: float, groups: Groups, baseline_rate: float, target: float) -> ArmSummary:
    found = groups[name, rate]
    arm, runs = Arm.parse(name), list(found.values())
    baseline = {} if name == arm.baseline else groups.get((arm.baseline, baseline_rate), {})
    dealt = {} if arm.shuffled else groups.get((arm.shuffled_name, rate), {})
    collapsed = sum(final(run) < run["before"] - COLLAPSE for run in runs)
    wilson = binomtest(collapsed, len(runs)).proportion_ci(0.95, method="wilson")
    steps = [steps_to(run, target) for run in runs]
    middle = median(steps)
    return ArmSummary(
        arm=name,
        learning_rate=rate,
        runs=len(runs),
        area=_over_checkpoints({key: area(run) for key, run in found.items()}),
        final=_over_checkpoints({key: final(run) for key, run in found.items()}),
        length=fmean(fmean(run["length"][-LAST_STEPS:]) for run in runs),
        collapsed=collapsed,
        collapse_low=float(wilson.low),
        collapse_high=float(wilson.high),
        reached=sum(step < float("inf") for step in steps),
        steps_to_target=None if middle == float("inf") else middle,
        area_gain=_gain(area, found, baseline),
        final_gain=_gain(final, found, baseline),
        over_shuffled=_gain(area, found, dealt),
        credit_share=sum(run["credit_seconds"] for run in runs) / sum(run["seconds"] for run in runs),
    )


def _gain(figure: Callable[[Mapping[str, Any]], float], found: Runs, other: Runs) -> Interval | None:
    shared = [key for key in found if key in other]
    return _over_checkpoints({key: figure(found[key]) - figure(other[key]) for key in shared}) if shared else None


def _over_checkpoints(values: Mapping[tuple[int, int], float]) -> Interval:
    """Runs from one checkpoint are alike, so each checkpoint counts once, by its mean."""
    by_checkpoint: dict[int, list[float]] = {}
    for (checkpoint, _), value in values.items():
        by_checkpoint.setdefault(checkpoint, []).append(value)
    return Interval.of([fmean(found) for found in by_checkpoint.values()])


def _curve(run: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, accuracy), from before the first step on. JSON has made the steps text."""
    return [(0, run["before"]), *sorted((int(step), value) for step, value in run["accuracy"].items())]
