"""Scores: a user's own traces under several methods."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from tokencredit.report import figures
from tokencredit.report.page import Page
from tokencredit.steps import BOXED

CONFIG, ROWS = "config.json", "scores.jsonl"
_SHOWN = ("gini", "effective_ratio", "broadcast", "sparse", "sign_flip", "no_answer")


def page_of(run: Path) -> Page:
    config = json.loads((run / CONFIG).read_text("utf-8"))
    rows = [json.loads(line) for line in (run / ROWS).read_text("utf-8").splitlines()]
    return Page(
        title=f"Where the credit goes: {Path(config['traces']).name}",
        facts=[
            ("command", "score"),
            ("model", config["model"]),
            ("traces", f"{len(rows)}, {sum(len(row['tokens']) for row in rows):,} tokens"),
            ("advantages", config["advantages"]),
            *(("long traces", note) for note in config.get("too_long", {}).get("notes", [])),
            *(("outcomes", note) for note in config.get("notes", [])),
            ("methods", config["methods"]),
        ],
        traces=rows,
        delimiters=_delimiters(config),
        groups=[figures.group("summary", "Does the credit discriminate?", [_summary(rows)], _note(config))],
    )


def _summary(rows: list[dict[str, Any]]) -> figures.Figure:
    names = list(rows[0]["credit"])
    return figures.table(
        "",
        ["method", *(name.replace("_", " ") for name in _SHOWN)],
        [
            [name, *(figures.share(mean(row["credit"][name]["diagnostics"][d] for row in rows)) for d in _SHOWN)]
            for name in names
        ],
    )


def _note(config: dict[str, Any]) -> str:
    note = "Means over the traces. Gini 0 and effective ratio 1 are uniform credit."
    left = "; ".join(f"{method}: {why}" for method, why in config["left_out"].items())
    notices = [f"{sentence}." for sentences in config.get("notices", {}).values() for sentence in sentences]
    return " ".join([note, *([f"Left out: {left}."] if left else []), *notices])


def _delimiters(config: dict[str, Any]) -> tuple[str, ...]:
    """What may stand where an answer starts; nothing with a name where a regular expression finds it."""
    rule = config.get("answer", "auto")
    if rule not in ("auto", "end_of_reasoning"):
        return ()
    return (config["end_of_reasoning"], *([BOXED] if rule == "auto" else []))
