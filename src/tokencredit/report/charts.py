"""Charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "tokencredit"}


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
