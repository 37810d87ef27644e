"""A comparison: learning curves, areas under them, and the gain over uniform credit, pair by pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokencredit.report import figures
from tokencredit.report.figures import Figure
from tokencredit.report.page import Page
from tokencredit.report.sources.quickstart import CURVES, SHARES
from tokencredit.testbed.curves import ArmSummary, Interval, at_best_rates, summarise


def page_of(run: Path) -> Page:
    """
    Raises:
        ValueError: the sweep is not finished.
    """
    file = run / "compare.json"
    if not file.is_file():
        raise ValueError(
            f"{run} is not finished: give the same `tokencredit compare` command again, with --out {run} --resume"
        )
    found = json.loads(file.read_text("utf-8"))
    config, runs, target = found["config"], found["runs"], found["target"]
    best = at_best_rates(runs, target)
    facts = [
        ("command", "compare"),
        ("task", config["task"]),
        ("runs", str(len(runs))),
        ("checkpoints", str(len(config["checkpoints"]))),
        ("seeds", str(len(config["seeds"]))),
        ("learning rates", ", ".join(f"{rate:g}" for rate in config["learning_rates"])),
        ("GRPO steps", str(config["budget"]["steps"])),
    ]
    return Page(
        title=f"Which credit trains better? {config['task']}",
        facts=facts,
        traces=[],
        groups=[_at_best(best, target), _curves(runs, best), _rates(runs, target, config["learning_rates"])],
    )


def _at_best(best: Sequence[ArmSummary], target: float) -> Figure:
    columns = ["arm", "rate", "runs", "collapsed", "reached", "steps to target", "length", "share of credit"]
    rows = [
        [s.arm, s.learning_rate, s.runs, s.collapsed, s.reached, s.steps_to_target, s.length, s.credit_share]
        for s in best
    ]
    charts = [
        _of("Area under the learning curve", "mean accuracy", best, lambda s: s.area, bounds=figures.SHARE),
        _of("Gain in area over uniform credit", "difference, paired", best, lambda s: s.area_gain, 0.0),
        _of("Gain in area over its own credit, shuffled", "difference, paired", best, lambda s: s.over_shuffled, 0.0),
        _of("Final accuracy", "accuracy", best, lambda s: s.final, bounds=figures.SHARE),
        figures.table("Collapse, speed, length and cost", columns, rows, f"Target: accuracy {target:g}."),
    ]
    note = (
        "Each arm at the learning rate of its largest area, and uniform at its own: both chosen by looking. 95 % "
        "intervals (Student's t) over checkpoints, of which each counts once."
    )
    shown = [chart for chart in charts if chart["rows"]]
    return figures.group("best", "At the best learning rate", shown, note)


def _of(
    title: str,
    x: str,
    best: Sequence[ArmSummary],
    figure: Callable[[ArmSummary], Interval | None],
    reference: float | None = None,
    bounds: figures.Bounds | None = None,
) -> Figure:
    """A row an arm that has the figure; filled where the interval leaves the reference out."""
    rows = [
        figures.interval(
            s.arm, found.mean, found.low, found.high, filled=reference is None or _beyond(found, reference)
        )
        for s in best
        if (found := figure(s)) is not None
    ]
    return figures.intervals(title, x, sorted(rows, key=lambda row: -row["value"]), reference=reference, bounds=bounds)


def _beyond(interval: Interval, reference: float) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= reference <= interval.high


def _curves(runs: Sequence[dict[str, Any]], best: Sequence[ArmSummary]) -> Figure:
    chosen = {s.arm: [r for r in runs if (r["arm"], r["learning_rate"]) == (s.arm, s.learning_rate)] for s in best}
    accuracy = {}
    for arm, found in chosen.items():
        curves = [{0: run["before"], **{int(step): a for step, a in run["accuracy"].items()}} for run in found]
        accuracy[arm] = [[step, *_band([curve[step] for curve in curves])] for step in curves[0]]
    charts = [figures.lines(CURVES["accuracy"][0], "GRPO step", "accuracy", accuracy, bounds=figures.SHARE)]
    for key in ("reward", "length", "gini", "effective_ratio"):
        name = key if key in CURVES else f"credit/{key}"
        title, y = CURVES[name]
        series = {arm: _points([run[key] for run in found]) for arm, found in chosen.items()}
        if name in SHARES:
            series = {
                arm: [[step, *map(figures.share, band)] for step, *band in points] for arm, points in series.items()
            }
        bounds = figures.SHARE if name in SHARES else None
        charts.append(figures.lines(title, "GRPO step", y, series, bounds=bounds))
    return figures.group(
        "curves", "Learning curves", charts, "Means over runs, with 95 % intervals (Student's t) over them."
    )


def _points(runs: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """[step, mean, low, high] over the runs that have a value, for every step at which one has."""
    known = [[value for value in values if value is not None] for values in zip(*runs, strict=True)]
    return [[step, *_band(values)] for step, values in enumerate(known, start=1) if values]


def _band(values: Sequence[float]) -> list[float | None]:
    found = Interval.of(values)
    return [found.mean, found.low, found.high]


def _rates(runs: Sequence[dict[str, Any]], target: float, rates: Sequence[float]) -> Figure:
    summaries = {(s.arm, s.learning_rate): s for s in summarise(runs, target)}
    arms = list(dict.fromkeys(arm for arm, _ in summaries))
    charts = [
        figures.matrix(
            title,
            arms,
            [f"{rate:g}" for rate in rates],
            [[value(summaries[arm, rate]) if (arm, rate) in summaries else None for rate in rates] for arm in arms],
            names=True,
            high=1.0,
        )
        for title, value in (
            ("Area under the learning curve", lambda s: s.area.mean),
            ("Share of runs that collapse", lambda s: s.collapsed / s.runs),
        )
    ]
    return figures.group("rates", "Every learning rate", charts, "An adapter trains at ten times the rate named.")
