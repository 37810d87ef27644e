"""An audit in pictures: a leaderboard with intervals, and one trace under every method, beside the truth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tokencredit.report.charts import COLOURS, STYLE, as_svg
from tokencredit.report.render import visible

TITLES = {
    "essential_auroc": "essential steps, AUROC",
    "step_ranking": "step ranking accuracy",
    "step_ranking_direct": "step ranking, read by the answer",
    "step_ranking_indirect": "step ranking, not read by the answer",
    "error_auroc": "first error, AUROC",
    "error_auroc_results": "first error among results, AUROC",
    "error_hit_1": "first error, hit@1",
    "error_hit_5": "first error, hit@5",
    "error_reciprocal_rank": "first error, reciprocal rank",
    "advantage_signed": "Monte-Carlo advantage, Spearman",
    "advantage_linear": "Monte-Carlo advantage, Pearson",
    "advantage_size": "size of the advantage, Spearman",
    "replacement": "replaced tokens, AUROC",
}
_SHOWN = ("step_ranking", "error_auroc", "advantage_linear", "replacement")


def write_charts(found: dict[str, Any], folder: Path) -> list[str]:
    """A leaderboard a policy, and its traces, as SVG files; their names."""
    written: list[str] = []
    for name, policy in found["policies"].items():
        stem = re.sub(r"\W+", "-", name).strip("-")
        charts = {f"leaderboard-{stem}.svg": leaderboard(policy)}
        charts |= {f"trace-{stem}-{i}.svg": trace_strips(t) for i, t in enumerate(policy["traces"], start=1)}
        for file, svg in charts.items():
            (folder / file).write_text(svg, encoding="utf-8")
        written += charts
    return written


def leaderboard(policy: dict[str, Any]) -> str:
    """An `<svg>` element: each credit's score with its interval; filled where it is informative.

    Args:
        policy: one policy of an audit's JSON.
    """
    shown = [m for m in _SHOWN if any(m in row["scores"] for row in policy["rows"])]
    rows = [row for row in policy["rows"] if not row["name"].endswith((", shuffled", ", by token"))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 2.4 * len(shown), 1.0 + 0.24 * len(rows)), layout="constrained")
        grid = figure.subplots(1, max(1, len(shown)), sharey=True, squeeze=False)[0]
        for axes, measure in zip(grid, shown, strict=False):
            _panel(axes, rows, measure)
        grid[0].set_yticks(range(len(rows)), [row["name"] for row in rows], parse_math=False)
        grid[0].invert_yaxis()
        return as_svg(figure)


def _panel(axes: Any, rows: Sequence[dict[str, Any]], measure: str) -> None:
    for y, row in enumerate(rows):
        score = row["scores"].get(measure)
        if score is None:
            continue
        estimate, colour = score["estimate"], COLOURS[0] if row["kind"] == "method" else "#888888"
        if estimate["low"] is not None:
            axes.plot([estimate["low"], estimate["high"]], [y, y], color=colour, linewidth=1.2)
        axes.plot(
            estimate["value"],
            y,
            marker="o",
            markersize=4,
            color=colour,
            mfc=colour if score["informative"] else "white",
        )
    chance = 0.0 if measure.startswith("advantage") else 0.5
    axes.axvline(chance, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_title(TITLES[measure], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def trace_strips(trace: dict[str, Any]) -> str:
    """An `<svg>` element: the tokens of one completion, a row a method, each scaled to its own largest credit.

    Args:
        trace: `tokens`, `correct`, `truth` and `credit` (name -> (T,)), as an audit's JSON has them.
    """
    rows = {"truth": trace["truth"], **trace["credit"]}
    tokens = [visible(token) for token in trace["tokens"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 0.19 * len(tokens), 1.1 + 0.24 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        values = [[abs(v) / max(1e-12, *map(abs, row)) for v in row] for row in rows.values()]
        axes.imshow(values, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_yticks(range(len(rows)), list(rows), parse_math=False, fontsize=8)
        axes.set_xticks(range(len(tokens)), tokens, parse_math=False, fontsize=7, rotation=90)
        axes.set_title("a correct completion" if trace["correct"] else "a wrong completion", fontsize=9)
        return as_svg(figure)
