"""Charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "tokencredit"}


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str) -> str:
    """An `<svg>` element: one line a name, with a legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(series.items()):
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, loc="best")
        return as_svg(figure)


def heat_map(values: Sequence[Sequence[float]], *, xlabel: str, ylabel: str, label: str) -> str:
    """An `<svg>` element: a square a value in 0..1, the first row at the bottom."""
    with matplotlib.rc_context(STYLE):
        rows, columns = len(values), len(values[0])
        figure = Figure(figsize=(1.6 + 0.32 * columns, 1.0 + 0.32 * rows), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, origin="lower", cmap="cividis", vmin=0.0, vmax=1.0, aspect="equal")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, label=label)
        return as_svg(figure)


def as_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
