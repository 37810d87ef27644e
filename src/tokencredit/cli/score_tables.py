"""What `tokencredit score` prints: one row per method, and one trace token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from rich.text import Text

REGIONS = ("answer", "essential", "redundant", "first error")
"""Parts of a completion whose credit the summary names: the answer; by their labels the steps that the answer needs and
those that it does not need; and the step, or the answer, that holds the first error."""


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a method: how concentrated its credit is, and how much of it the regions get.

    Args:
        rows: those of scores.jsonl, at least one.
    """
    outcomes = [row["correct"] for row in rows]
    counts = {"correct": outcomes.count(True), "wrong": outcomes.count(False), "unknown": outcomes.count(None)}
    outcome_counts = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    title = f"{len(rows):,} completions, {sum(len(row['tokens']) for row in rows):,} tokens: {outcome_counts}"
    regions = [dict(_regions(row)) for row in rows]
    shown = [name for name in REGIONS if any(name in places for places in regions)]
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    # A name may be folded, a number never: one that is cut off is another number.
    table.add_column("method", overflow="fold")
    for column in ("Gini", "effective", *shown):
        table.add_column(column, justify="right", no_wrap=True)
    for name in rows[0]["credit"]:
        concentration = (_mean_diagnostic(rows, name, which) for which in ("gini", "effective_ratio"))
        credit = (region_credit(rows, regions, name, region) for region in shown)
        table.add_row(
            escape(name), *(f"{v:.2f}" for v in concentration), *("-" if v is None else f"{v:.2f}" for v in credit)
        )
    table.caption = "Gini 0 and effective 1 are uniform credit." + (
        f" {', '.join(shown)}: mean credit of a token there; 1 is what uniform credit gives it." if shown else ""
    )
    table.caption_justify = "left"
    return table


def _mean_diagnostic(rows: Sequence[Mapping[str, Any]], method: str, which: str) -> float:
    return fmean(row["credit"][method]["diagnostics"][which] for row in rows)


def region_credit(
    rows: Sequence[Mapping[str, Any]], regions: Sequence[Mapping[str, Sequence[int]]], method: str, region: str
) -> float | None:
    """The mean over completions of their mean credit per token in a region, in units of the completion's mean.

    Credit is the weight, or the size of the advantage where a method has no weights. None where no completion has both
    the region and any credit.
    """
    values = []
    for row, positions in zip(rows, (places.get(region) for places in regions), strict=True):
        credit = row["credit"][method]
        sizes = credit["weights"] or [abs(advantage) for advantage in credit["advantages"]]
        if positions and (mean := fmean(sizes)) > 0:
            values.append(fmean(sizes[t] for t in positions) / mean)
    return fmean(values) if values else None


def _regions(row: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[int]]]:
    """The regions that a completion has, and the positions of their tokens."""
    length, start, step = len(row["tokens"]), row["answer_start"], row["step_index"] or []
    if start is not None and start >= 0:
        yield "answer", range(start, length)
    essential = row.get("essential") or []
    for name, label in (("essential", True), ("redundant", False)):
        if positions := [t for t, k in enumerate(step) if k >= 0 and essential[k : k + 1] == [label]]:
            yield name, positions
    error = row.get("first_error")
    if error is not None:
        # The answer, too, is all tokens of one number: -1, from where it starts.
        yield "first error", [t for t in range(error, length) if step[t] == step[error]]


def trace_table(row: Mapping[str, Any], name: str) -> Table:
    """ATPO's table of a trace: position, token, weight, advantage."""
    credit, answer, length = row["credit"][name], row["answer_start"], len(row["tokens"])
    table = Table(title=escape(name), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    # Only the token may be folded: a number that is cut off is another number.
    table.add_column("position", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold")
    for column in ("weight", "advantage"):
        table.add_column(column, justify="right", no_wrap=True)
    before = -1
    for t in range(length):
        around = answer is not None and answer >= 0 and answer - 5 <= t < answer + 5
        if not (t < 10 or t >= length - 10 or around):
            continue
        if t > before + 1:
            table.add_row("…", "", "", "")
        weight = "" if credit["weights"] is None else _decimals(credit["weights"][t])
        table.add_row(str(t), _token_text(row, t), weight, _decimals(credit["advantages"][t], "+"))
        before = t
    return table


def _token_text(row: Mapping[str, Any], t: int) -> Text:
    """A token on one line; not markup, because a model wrote it."""
    from tokencredit.shading import visible
    from tokencredit.token_text import PART

    return Text(visible(row["tokens"][t]).replace("\n", "") + PART * (t in row["partial"]))


def _decimals(value: float, sign: str = "-") -> str:
    """Three decimals; more digits where those would show a value that is not zero as zero."""
    if value == 0:
        return "0"
    return f"{value:{sign}.3f}" if abs(value) >= 5e-4 else f"{value:{sign}.1e}"
