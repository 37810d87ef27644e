"""A quickstart: accuracy of each method, its training, and what its policy wrote."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import binomtest

from tokencredit.report import figures
from tokencredit.report.figures import Figure
from tokencredit.report.page import Page
from tokencredit.testbed.arms import KEY_FOCUS_HEADS
from tokencredit.testbed.runs import RunFolder

CURVES = {
    "accuracy": ("Greedy accuracy on held-out problems", "accuracy"),
    "reward": ("Mean reward of the rollouts", "reward"),
    "length": ("Completion length", "tokens"),
    "credit/gini": ("Gini of the credit", "Gini"),
    "credit/effective_ratio": ("Effective ratio of the credit", "effective ratio"),
}
SHARES = ("accuracy", "credit/gini", "credit/effective_ratio")
"""Curves between 0 and 1."""
_DIAGNOSTICS = ("gini", "effective_ratio", "broadcast", "sparse", "sign_flip", "no_answer", "seconds")


def page_of(run: Path) -> Page:
    """
    Raises:
        ValueError: no method of the run is finished.
    """
    folder = RunFolder(run)
    config, results = folder.config, folder.results
    if not results["methods"]:
        raise ValueError(f"{run} has no finished method to report on")
    metrics = [row for row in folder.rows("metrics") if row["method"] in results["methods"]]
    budget = config["budget"]
    groups = [_accuracy(results), _training(results, metrics), _cost(results, metrics)]
    if "heads" in results:
        groups.append(figures.group("heads", "Heads", [figures.head_map(results["heads"], KEY_FOCUS_HEADS)]))
    return Page(
        title=f"Where the credit went: {config['task']}",
        facts=[
            ("command", "quickstart"),
            ("task", config["task"]),
            ("seed", str(config["seed"])),
            ("GRPO steps", str(budget["steps"])),
            ("completions a step", str(budget["prompts"] * budget["group_size"])),
            ("methods", ", ".join(results["methods"])),
        ],
        traces=sorted(folder.rows("traces"), key=lambda row: row["source"] == "uniform"),
        groups=groups,
    )


def _accuracy(results: dict[str, Any]) -> Figure:
    measured = {"before": results["before"], **{name: found["after"] for name, found in results["methods"].items()}}
    charts = [
        figures.intervals(
            title,
            "accuracy",
            [
                figures.interval(name, a[kind]["value"], a[kind]["low"], a[kind]["high"], muted=name == "before")
                for name, a in measured.items()
            ],
            bounds=figures.SHARE,
        )
        for kind, title in (("greedy", "Greedy accuracy"), ("sampled", "Accuracy at temperature 1"))
    ]
    note = (
        f"{results['before']['greedy']['count']} held-out problems, none of them trained on. 95 % Wilson intervals; "
        "they cover the choice of problems, not of seeds: this is one seed a method."
    )
    return figures.group("accuracy", "Accuracy", charts, note)


def _training(results: dict[str, Any], metrics: list[dict[str, Any]]) -> Figure:
    charts = []
    for key, (title, y) in CURVES.items():
        series: dict[str, list[list[Any]]] = {name: [] for name in results["methods"]}
        for row in metrics:
            if key in row:
                value = figures.share(row[key]) if key in SHARES else row[key]
                series[row["method"]].append([row["step"], value])
        if key == "accuracy":
            series = {name: _with_intervals(results["before"]["greedy"], points) for name, points in series.items()}
        if any(series.values()):
            bounds = figures.SHARE if key in SHARES else None
            charts.append(figures.lines(title, "GRPO step", y, series, bounds=bounds))
    return figures.group("training", "Training", charts)


def _with_intervals(before: dict[str, Any], points: list[list[Any]]) -> list[list[Any]]:
    count = before["count"]
    found = [(step, accuracy, binomtest(round(accuracy * count), count)) for step, accuracy in points]
    intervals = [(step, a, test.proportion_ci(0.95, method="wilson")) for step, a, test in found]
    return [
        [0, before["value"], before["low"], before["high"]],
        *([step, accuracy, float(ci.low), float(ci.high)] for step, accuracy, ci in intervals),
    ]


def _cost(results: dict[str, Any], metrics: list[dict[str, Any]]) -> Figure:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in metrics:
        for name in _DIAGNOSTICS:
            if f"credit/{name}" in row:
                values[row["method"]][name].append(row[f"credit/{name}"])
    rows = [
        [
            f"{name} (LoRA)" if found["adapter"] else name,
            *(_mean(d, values[name][d]) for d in _DIAGNOSTICS),
            found["seconds"],
            found["tokens"],
        ]
        for name, found in results["methods"].items()
    ]
    columns = ["method", *(name.replace("_", " ") for name in _DIAGNOSTICS), "seconds in all", "tokens trained on"]
    note = (
        "Means over training. Gini 0 and effective ratio 1 are uniform credit; broadcast and sparse are the shares of "
        "completions whose credit is as good as uniform (Gini below 0.02) or held by few tokens (ratio below 0.1). "
        "Seconds are spent on credit, a step."
    )
    return figures.group("cost", "The credit and its cost", [figures.table("", columns, rows)], note)


def _mean(diagnostic: str, values: list[float]) -> float | None:
    """A diagnostic over training. All but the seconds are shares."""
    if not values:
        return None
    return mean(values) if diagnostic == "seconds" else figures.share(mean(values))
