"""The benchmarks' figures as tables, for the terminal and for docs/performance.md. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

Figures = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table of texts; each row has a cell a column."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def table(self) -> Table:
        table = Table(*self.columns, title=self.title, title_justify="left", box=SIMPLE)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"{self.title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(figures: Figures) -> str:
    """On what, and with which versions, figures were measured."""
    m = figures["machine"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread{'s' if m['threads'] > 1 else ''}, "
        f"torch {m['torch']}, transformers {m['transformers']}"
    )


def cell(spread: dict[str, float] | None, form: str = ".2f") -> str:
    """median [least, greatest]; "-" where there is none."""
    if spread is None:
        return "-"
    return f"{spread['median']:{form}} [{spread['least']:{form}}, {spread['greatest']:{form}}]"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def signals(f: Figures) -> list[Grid]:
    lengths = [f"N = {n:,}" for n in f["lengths"]]
    compared = [name for name, base in f["base"].items() if name not in f["base"].values()]
    own = {name: f["memory"][name][-1] for name in f["base"]}
    return [
        Grid(
            f"Time / the pass it is compared with, {f['rounds']} rounds",
            ["read", "compared with", *lengths],
            [[name, f["base"][name], *map(cell, f["ratio"][name])] for name in compared],
        ),
        Grid(
            f"Peak extra memory at {lengths[-1]}",
            ["pass", "MiB", "/ the pass it is compared with"],
            [[name, _mib(own[name]), f"{own[name] / own[base]:.2f}"] for name, base in f["base"].items()],
        ),
        Grid(
            "Growth: exponents of N",
            ["of", "time", "rounds without an exponent", "peak memory"],
            [[_grown(name), *_growth(found)] for name, found in f["growth"].items()],
        ),
    ]


def _grown(name: str) -> str:
    return "the forward pass" if name == "forward" else f"what {name} add{'s' if name == 'attention' else ''}"


def _growth(found: dict[str, Any]) -> list[str]:
    memory = "-" if found["memory"] is None else f"{found['memory']:.2f}"
    return [cell(found["time"]["exponent"]), str(found["time"]["without"]), memory]


def long_context(f: Figures) -> list[Grid]:
    return [
        Grid(
            f"One sequence of {f['length']:,} tokens, {f['rounds']} rounds",
            ["pass", "seconds", "/ forward", "peak extra memory, MiB", "/ forward"],
            [
                [
                    kind,
                    cell(f["seconds"][kind], ".1f"),
                    cell(f["ratio"][kind]),
                    cell(f["memory"][kind], ",.0f"),
                    cell(f["memory_ratio"][kind]),
                ]
                for kind in f["seconds"]
            ],
        )
    ]


def p2t_cost(f: Figures) -> list[Grid]:
    rows = zip(f["lengths"], f["milliseconds"], f["taylor"], f["exact"], f["exact_over_taylor"], strict=True)
    return [
        Grid(
            f"Time / a forward pass of the reward model, {f['rounds']} rounds; of `exact` as many as are given",
            ["N", "forward pass, ms", "taylor", "exact", "exact / taylor", "rounds of exact"],
            [
                [f"{n:,}", cell(forward, ".1f"), cell(taylor), cell(exact, ".0f"), cell(ratio, ".0f"), str(rounds)]
                for (n, forward, taylor, exact, ratio), rounds in zip(rows, f["exact_rounds"], strict=True)
            ],
        ),
        Grid(
            f"Peak extra memory at N = {f['lengths'][-1]:,}",
            ["", "MiB", "/ forward pass"],
            [[name, _mib(v), f"{v / f['memory']['forward']:.2f}"] for name, v in f["memory"].items()],
        ),
    ]


def training(f: Figures) -> list[Grid]:
    return [
        Grid(
            f"Credit's share of a step in TRL: {size['parameters'] / 1e6:.1f} M parameters, {size['policy']}, "
            f"{size['rollouts']} rollouts of up to {size['tokens']} tokens, steps: {size['steps']}",
            ["method", *size["timings"], "memory / uniform"],
            [
                [method, *(cell(row["share"][name], ".1%") for name in size["timings"]), _ratio(row["memory"])]
                for method, row in size["methods"].items()
            ],
        )
        for size in f["sizes"]
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def verl_step(f: Figures) -> list[Grid]:
    return [
        Grid(
            f"Credit in a worker of verl: {size['parameters'] / 1e6:.1f} M parameters, {size['rollouts']} rollouts of "
            f"{size['tokens']} tokens, {f['rounds']} rounds",
            ["method", "log-prob pass, read / plain", "trainer, ms", "update, ms", "credit's share of both passes"],
            [
                [method, cell(row["ratio"]), *(cell(row[k], ".1f") for k in ("trainer", "update")), _share(row)]
                for method, row in size["methods"].items()
            ],
        )
        for size in f["sizes"]
    ]


def _share(row: Figures) -> str:
    return cell(row["share"], ".1%")


def report(f: Figures) -> list[Grid]:
    pages = [
        [f"{page['tokens']:,}", f"{page['megabytes']:.2f}", cell(page["paint"], ".0f"), cell(page["ready"], ".0f")]
        for page in f["pages"]
    ]
    return [
        Grid(
            f"A page of {f['traces']} traces, {f['methods']} methods, milliseconds in Chromium {f['chromium']}, "
            f"{f['rounds']} rounds",
            ["tokens each", "MB", "first paint", "ready"],
            pages,
        ),
        Grid(
            f"One trace of {f['long']['tokens']:,} tokens, milliseconds",
            list(f["long"]["interactions"]),
            [[cell(found, ".0f") for found in f["long"]["interactions"].values()]],
        ),
    ]


GRIDS: dict[str, Callable[[Figures], list[Grid]]] = {
    "signals": signals,
    "long_context": long_context,
    "p2t_cost": p2t_cost,
    "training": training,
    "verl_step": verl_step,
    "report": report,
}
"""Part -> its tables, in the order of the page."""


def printed(measured: Mapping[str, Figures]) -> None:
    """On the terminal: each machine, and below it the tables of what was measured there."""
    console = Console(width=130)
    for machine in dict.fromkeys(map(about, measured.values())):
        console.print(f"\n{machine}\n", style="bold", highlight=False)
        for part, figures in measured.items():
            if about(figures) == machine:
                console.print(f"{part}  {figures.get('model', '')}\n", highlight=False)
                console.print(*(grid.table() for grid in GRIDS[part](figures)))
