"""From a run folder to report.html. Tokens are model output, so hostile: escaped by jinja2, with nothing to run."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokencredit.report.charts import line_chart
from tokencredit.testbed.files import write_text
from tokencredit.testbed.runs import RunFolder

_DIAGNOSTICS = ("gini", "effective_ratio", "broadcast", "sparse", "no_answer", "residual_mean", "seconds")
_TRACES = 6
_NAMED = {"\n": "⏎\n", "\t": "⇥", " ": "·"}


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path.

    Raises:
        ValueError: `run` is not a run folder, or no method in it is finished.
    """
    folder = RunFolder(run)
    results = folder.results
    if not results["methods"]:
        raise ValueError(f"{run} has no finished method to report on")
    environment = Environment(
        loader=PackageLoader("tokencredit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    metrics = [row for row in folder.rows("metrics") if row["method"] in results["methods"]]
    html = environment.get_template("report.html.j2").render(
        config=folder.config,
        before=results["before"],
        methods=results["methods"],
        charts=_charts(results, metrics),
        diagnostics=_diagnostics(metrics),
        diagnostic_names=_DIAGNOSTICS,
        traces=_traces(folder.rows("traces")),
    )
    path = run / "report.html"
    write_text(path, html)
    return path


def visible(text: str) -> str:
    """Text with everything that would not show, or would rearrange what shows, spelt out: controls, zero-width and
    direction marks, lone surrogates."""
    return "".join(_NAMED.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c)[0] in "CZ" else c) for c in text)


def _charts(results: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Markup]:
    accuracy = {name: [(0.0, results["before"]["greedy"]["value"])] for name in results["methods"]}
    reward: dict[str, list[tuple[float, float]]] = {name: [] for name in results["methods"]}
    for row in metrics:
        reward[row["method"]].append((row["step"], row["reward"]))
        if "accuracy" in row:
            accuracy[row["method"]].append((row["step"], row["accuracy"]))
    # matplotlib escapes its labels, and these are method names.
    return {
        "accuracy": Markup(line_chart(accuracy, xlabel="GRPO step", ylabel="greedy accuracy, held out")),
        "reward": Markup(line_chart(reward, xlabel="GRPO step", ylabel="reward, training")),
    }


def _diagnostics(metrics: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Method -> diagnostic -> its mean over training; None where the method has none."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in metrics:
        for name in _DIAGNOSTICS:
            if f"credit/{name}" in row:
                values[row["method"]][name].append(row[f"credit/{name}"])
    return {m: {name: mean(v[name]) if v[name] else None for name in _DIAGNOSTICS} for m, v in values.items()}


def _traces(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Method -> a few traces with credit to show: of each problem the first right and the first wrong one."""
    found: dict[str, dict[tuple[int, bool], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if any(row["advantages"]):
            found[row["method"]].setdefault((row["group"], row["reward"] <= 0), row)
    return {name: [_trace(by_kind[kind]) for kind in sorted(by_kind)[:_TRACES]] for name, by_kind in found.items()}


def _trace(row: dict[str, Any]) -> dict[str, Any]:
    largest = max(map(abs, row["advantages"])) or 1.0
    weights = row["weights"] or [None] * len(row["tokens"])
    tokens = []
    for t, (text, weight, advantage) in enumerate(zip(row["tokens"], weights, row["advantages"], strict=True)):
        step = row["step_index"][t]
        essential = step >= 0 and row["essential"][step]
        tokens.append(
            {
                "text": visible(text),
                "shade": round(100 * abs(advantage) / largest),
                "sign": "plus" if advantage > 0 else "minus" if advantage < 0 else "zero",
                "essential": essential,
                "error": t == row["first_error"],
                "title": _title(t, weight, advantage, step, essential, t == row["first_error"]),
            }
        )
    return {"prompt": visible(row["prompt"].rstrip("\n")), "correct": row["reward"] > 0, "tokens": tokens}


def _title(t: int, weight: float | None, advantage: float, step: int, essential: bool, error: bool) -> str:
    parts = [f"token {t}", f"advantage {advantage:+.3f}"]
    if weight is not None:
        parts.insert(1, f"weight {weight:.3f}")
    if step >= 0:
        parts.append(f"step {step}, {'essential' if essential else 'redundant'}")
    if error:
        parts.append("first error")
    return " · ".join(parts)
