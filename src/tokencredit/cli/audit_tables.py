"""What `tokencredit audit` prints of the policies that it has audited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.analysis.bootstrap import FEWEST
from tokencredit.cli.terminal import console, say

_NAME_WIDTH = 24
"""Columns of the terminal that are left to the names of methods. Longer names are folded; numbers never are."""


@dataclass(frozen=True)
class _Group:
    """Measures that are shown in one table.

    Attributes:
        columns: the heading of each measure. scale: what the numbers mean. needed: what completions must have for any
            of them to be known; empty where a user's traces cannot have it, or another group has said it.
    """

    title: str
    columns: dict[str, str]
    scale: str
    needed: str = ""


_GROUPS = (
    _Group(
        "essential or redundant, in correct completions",
        {
            "AUROC": "essential_auroc",
            "step ranking": "step_ranking",
            "read": "step_ranking_direct",
            "not read": "step_ranking_indirect",
        },
        "Is an essential step credited more than a redundant one? 1 is always, .50 is chance, 0 is never.",
        "correct completions with labels in `essential`, at least one true and one false",
    ),
    _Group(
        "first error, in wrong completions",
        {"AUROC": "error_auroc", "among results": "error_auroc_results"},
        "Is the first error blamed more than the other tokens? 1 is always, .50 is chance.",
        "wrong completions with a `first_error`",
    ),
    _Group(
        "first error, at the top of the blame",
        {"hit@1": "error_hit_1", "hit@5": "error_hit_5", "1/rank": "error_reciprocal_rank"},
        "How often the first error is the most blamed token, or among the five most blamed; and the mean of 1/rank. 1 "
        "is always. Chance depends on lengths: it is what uniform gets.",
    ),
    _Group(
        "the policy's own values",
        {
            "advantage": "advantage_signed",
            "Pearson": "advantage_linear",
            "its size": "advantage_size",
            "replacement": "replacement",
        },
        "Correlation of credit with the true advantage of each token (0 is chance), and, by AUROC, whether the tokens "
        "whose replacement changes the outcome get more (.50 is chance).",
    ),
)


def print_audit(results: dict[str, Any]) -> None:
    """The tables of each policy, what was left out, and what the numbers mean."""
    for name, policy in results["policies"].items():
        console.print(f"\n[bold]{escape(name)}[/]: {_about(policy)}")
        for group in _GROUPS:
            _print_group(group, policy["rows"])
        for left, why in policy["left_out"].items():
            say(f"left out: {left}: {why}")
        for sentence in (sentence for sentences in policy["notices"].values() for sentence in sentences):
            say(f"notice: {sentence}")
    _print_legend(results)


def _about(policy: dict[str, Any]) -> str:
    description = f"{policy['completions']} completions, {policy['correct']} correct"
    if "accuracy" in policy:
        description += f", greedy accuracy {policy['accuracy']['value']:.3f}"
    if "values" in policy:
        values = policy["values"]
        if (attainable := values["ceilings"][-1]["attainable"]) is not None:
            description += (
                f"; an exact advantage would reach at most {attainable:.2f} against {values['samples']} samples"
            )
    return description


def _print_group(group: _Group, rows: list[dict[str, Any]]) -> None:
    shown = {name: measure for name, measure in group.columns.items() if any(measure in row["scores"] for row in rows)}
    if not shown:
        if group.needed:
            console.print(f"\n[bold]{group.title}[/]")
            console.print(f"[dim]Not scored: this needs {escape(group.needed)}.[/]")
        return
    console.print(f"\n[bold]{group.title}[/]")
    console.print(f"[dim]{escape(group.scale)}[/]")
    console.print(f"[dim]{escape(_counts(shown, rows))}[/]")
    for columns in _chunks(shown, rows):
        console.print(_table(columns, rows))


def _counts(shown: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """On how many completions and problems each column rests, and whether they are enough for intervals."""
    counts: dict[tuple[int, int], list[str]] = {}
    for name, measure in shown.items():
        score = next(row["scores"][measure] for row in rows if measure in row["scores"])
        counts.setdefault((score["completions"], score["problems"]), []).append(name)
    sentences = [
        f"{', '.join(names)}: {_counted(completions, 'completion')} of {_counted(problems, 'problem')}"
        for (completions, problems), names in counts.items()
    ]
    if (fewest := min(problems for _, problems in counts)) < FEWEST:
        sentences.append(
            f"with fewer than {FEWEST} problems there is no interval and no star; at least {FEWEST - fewest} more "
            "would be needed"
        )
    return "; ".join(sentences) + "."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _chunks(shown: dict[str, str], rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """The columns in tables that leave room for the names, so that no number is ever cut off."""
    room, chunk = console.width - _NAME_WIDTH, dict[str, str]()
    for name, measure in shown.items():
        cells = [_cell(row["scores"].get(measure)) for row in _kept(rows)]
        width = max(len(name), *map(len, cells)) + 1
        if chunk and width > room:
            yield chunk
            room, chunk = console.width - _NAME_WIDTH, {}
        chunk[name] = measure
        room -= width
    yield chunk


def _table(columns: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    """Methods first, then the controls."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("credit", overflow="fold")
    for name, measure in columns.items():
        width = max(len(name), *(len(_cell(row["scores"].get(measure))) for row in _kept(rows)))
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for row in sorted(_kept(rows), key=lambda row: row["kind"] != "method"):
        style = None if row["kind"] == "method" else "dim"
        cells = [escape(_cell(row["scores"].get(measure))) for measure in columns.values()]
        table.add_row(escape(row["name"]), *cells, style=style)
    return table


def _kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the controls that are made from a method's own values, only what the stars say is shown."""
    return [row for row in rows if not row["name"].endswith((", shuffled", ", by token"))]


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    estimate, star = score["estimate"], "*" if score["informative"] else " "
    low, high = estimate["low"], estimate["high"]
    # An interval without width only says that every resample gives the same: an oracle is always right.
    if low is None or _short(low) == _short(high) == _short(estimate["value"]):
        return f"{_short(estimate['value'])}{star}"
    return f"{_short(estimate['value'])} [{_short(low)},{_short(high)}]{star}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def _print_legend(results: dict[str, Any]) -> None:
    scores = [
        score
        for policy in results["policies"].values()
        for row in policy["rows"]
        if row["kind"] == "method"
        for score in row["scores"].values()
    ]
    console.print()
    if any(score["estimate"]["low"] is not None for score in scores):
        console.print(
            "In brackets: 95 % intervals, by resampling problems; none where every resample gives the same.",
            markup=False,
        )
        star = (
            "* informative: better, by a whole interval, than its own values shuffled within the completion, than what "
            "it gives the same token in other problems, and than position and step length."
        )
        console.print(
            star if any(score["informative"] for score in scores) else f"No score has a star. {star}", markup=False
        )
    console.print(
        "Grey rows are controls: position (later, earlier) and step length know nothing of the content, the oracle "
        "credits by the labels.",
        markup=False,
    )
