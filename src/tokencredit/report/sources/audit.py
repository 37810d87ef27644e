"""An audit: a leaderboard a measure, how far methods agree, and traces under every method beside the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokencredit.report import figures
from tokencredit.report.figures import Figure
from tokencredit.report.page import Page
from tokencredit.testbed.arms import KEY_FOCUS_HEADS

TITLES = {
    "essential_auroc": "Essential steps, AUROC",
    "step_ranking": "Step ranking accuracy",
    "step_ranking_direct": "Step ranking, read by the answer",
    "step_ranking_indirect": "Step ranking, not read by the answer",
    "error_auroc": "First error, AUROC",
    "error_auroc_results": "First error among results, AUROC",
    "error_hit_1": "First error, hit@1",
    "error_hit_5": "First error, hit@5",
    "error_reciprocal_rank": "First error, reciprocal rank",
    "advantage_signed": "Monte-Carlo advantage, Spearman",
    "advantage_linear": "Monte-Carlo advantage, Pearson",
    "advantage_size": "Size of the advantage, Spearman",
    "replacement": "Replaced tokens, AUROC",
}
_CHANCE = {
    name: None
    if name in ("error_hit_1", "error_hit_5", "error_reciprocal_rank")
    else 0.0
    if name.startswith("advantage")
    else 0.5
    for name in TITLES
}
_FROM_OWN_VALUES = (", shuffled", ", by token")


def page_of(run: Path) -> Page:
    found = json.loads((run / "audit.json").read_text("utf-8"))
    config, policies = found["config"], found["policies"]
    facts = [("command", "audit")]
    facts += [(name, str(config[name])) for name in ("task", "seed", "model", "traces") if name in config]
    facts += [(name, f"{p['completions']} completions, {p['correct']} correct") for name, p in policies.items()]
    return Page(
        title=f"Does the credit land where it should? {config.get('task') or config.get('model')}",
        facts=facts,
        traces=[{"source": name, **trace} for name, policy in policies.items() for trace in policy["traces"]],
        groups=[_group(name, policy) for name, policy in policies.items()],
        opens_with="groups",
    )


def _group(name: str, policy: dict[str, Any]) -> Figure:
    shown = [measure for measure in TITLES if any(measure in row["scores"] for row in policy["rows"])]
    charts = [_leaderboard(measure, policy["rows"]) for measure in shown]
    charts.append(_leads(policy["rows"]))
    charts.append(_agreement(policy["agreement"]))
    if policy.get("heads"):
        charts.append(figures.head_map(policy["heads"], KEY_FOCUS_HEADS))
    if "values" in policy:
        charts.append(_ceilings(policy["values"]))
    note = (
        "95 % bootstrap intervals over problems. A filled dot leads, by its whole interval, its own values shuffled "
        "within the completion, those that it gives the same token elsewhere, and position and step length. Controls "
        "are grey."
    )
    left = "; ".join(f"{method}: {why}" for method, why in policy["left_out"].items())
    notices = [f"{sentence}." for sentences in policy.get("notices", {}).values() for sentence in sentences]
    title = f"Audit: {name}"
    return figures.group(
        re.sub(r"\W+", "-", title).strip("-").lower(),
        title,
        charts,
        " ".join([note, *([f"Left out: {left}."] if left else []), *notices]),
    )


def _leaderboard(measure: str, rows: list[dict[str, Any]]) -> Figure:
    shown = [
        figures.interval(
            row["name"],
            score["estimate"]["value"],
            score["estimate"]["low"],
            score["estimate"]["high"],
            filled=bool(score["informative"]),
            muted=row["kind"] != "method",
        )
        for row in rows
        if not row["name"].endswith(_FROM_OWN_VALUES) and (score := row["scores"].get(measure)) is not None
    ]
    shown.sort(key=lambda row: -row["value"])
    bounds = figures.CORRELATION if measure.startswith("advantage") else figures.SHARE
    return figures.intervals(TITLES[measure], "score", shown, reference=_CHANCE[measure], bounds=bounds)


def _leads(rows: list[dict[str, Any]]) -> Figure:
    """How far each method is ahead of what knows nothing, pair by pair."""
    rivals = {"over_shuffled": "its values, shuffled", "over_trivial": "position, length", "over_token": "the token"}
    told = [
        [row["name"], TITLES[measure], score["estimate"]["value"], *(_lead(score[rival]) for rival in rivals)]
        for row in rows
        if row["kind"] == "method"
        for measure, score in row["scores"].items()
    ]
    columns = ["method", "measure", "score", *(f"over {rival}" for rival in rivals.values())]
    return figures.table("Paired differences to what knows nothing", columns, told, "With 95 % intervals.")


def _lead(lead: dict[str, Any] | None) -> str:
    if lead is None:
        return ""
    bounds = "" if lead["low"] is None else f" [{lead['low']:+.2f}, {lead['high']:+.2f}]"
    return f"{lead['value']:+.2f}{bounds}"


def _agreement(agreement: dict[str, dict[str, float]]) -> Figure:
    names = list(agreement)
    values = [[agreement[a].get(b) for b in names] for a in names]
    return figures.matrix(
        "Do methods agree?",
        names,
        names,
        values,
        names=True,
        high=1.0,
        note="Mean Spearman correlation within completions of the size of their credit; orange is negative.",
    )


def _ceilings(values: dict[str, Any]) -> Figure:
    kinds = {"advantage": "ceilings", "its size": "size_ceilings"}
    series = {
        name: [[c["samples"], c["attainable"]] for c in values[key] if c["attainable"] is not None]
        for name, key in kinds.items()
    }
    return figures.lines(
        "What an exact advantage would reach against the estimate",
        "samples of each prefix",
        "correlation",
        series,
        note=f"{values['completions']} completions with Monte-Carlo values.",
        bounds=figures.CORRELATION,
    )
