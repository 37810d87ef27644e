"""Figures of a page, as data: the page draws them, and a table stands behind each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Figure = dict[str, Any]
Bounds = tuple[float | None, float | None]
"""The least and the largest value that a quantity can have, None where there is no limit; axes do not go beyond."""
SHARE: Bounds = (0.0, 1.0)
CORRELATION: Bounds = (-1.0, 1.0)
_ROUNDING = 1e-6


def share(value: float | None) -> float | None:
    """A share of the credit, or a Gini, as 0 where it differs from 0 by rounding alone: weights are in float32."""
    return 0.0 if value is not None and abs(value) < _ROUNDING else value


def lines(
    title: str,
    x: str,
    y: str,
    series: Mapping[str, Sequence[Sequence[float | None]]],
    note: str = "",
    *,
    bounds: Bounds | None = None,
) -> Figure:
    """A line a name. Points are (x, y), or (x, y, low, high), which are shown as a band."""
    named = [{"name": name, "points": [list(point) for point in points]} for name, points in series.items()]
    return {"kind": "lines", "title": title, "note": note, "x": x, "y": y, "series": named, "bounds": bounds}


def intervals(
    title: str,
    x: str,
    rows: Iterable[Figure],
    *,
    reference: float | None = None,
    note: str = "",
    bounds: Bounds | None = None,
) -> Figure:
    """A dot and its interval a row, beside a line at `reference`; rows are made by `interval`."""
    return {
        "kind": "intervals",
        "title": title,
        "note": note,
        "x": x,
        "rows": list(rows),
        "reference": reference,
        "bounds": bounds,
    }


def interval(
    name: str, value: float, low: float | None, high: float | None, *, filled: bool = True, muted: bool = False
) -> Figure:
    """A row of `intervals`. filled: it means something. muted: a control."""
    return {"name": name, "value": value, "low": low, "high": high, "filled": filled, "muted": muted}


def matrix(
    title: str,
    rows: Sequence[Any],
    columns: Sequence[Any],
    values: Sequence[Sequence[float | None]],
    *,
    names: bool = False,
    high: float | None = None,
    marked: Sequence[tuple[int, int]] = (),
    x: str = "",
    note: str = "",
) -> Figure:
    """A shaded cell a value, null for none.

    Args:
        names: rows and columns are names rather than numbers.
        high: the value of the darkest shade; the largest by default.
        marked: (row, column) of cells with a frame.
    """
    return {
        "kind": "matrix",
        "title": title,
        "note": note,
        "rows": list(rows),
        "columns": list(columns),
        "values": [list(row) for row in values],
        "names": names,
        "high": high,
        "marked": [list(cell) for cell in marked],
        "x": x,
    }


def head_map(heads: Sequence[Mapping[str, Any]], chosen: int) -> Figure:
    """Step ranking accuracy of every head; those of the first `chosen` have a frame.

    Args:
        heads: `layer`, `head`, `sra` of each, best first.
    """
    layers, columns = (1 + max(rank[name] for rank in heads) for name in ("layer", "head"))
    grid: list[list[float | None]] = [[None] * columns for _ in range(layers)]
    for rank in heads:
        grid[rank["layer"]][rank["head"]] = rank["sra"]
    return matrix(
        "Key-focus heads",
        range(layers),
        range(columns),
        grid,
        high=1.0,
        marked=[(rank["layer"], rank["head"]) for rank in heads[:chosen]],
        x="head",
        note="Step ranking accuracy, a layer a row; AttnPO reads the framed ones.",
    )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> Figure:
    return {
        "kind": "table",
        "title": title,
        "note": note,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }


def group(id: str, title: str, figures: Sequence[Figure], note: str = "") -> Figure:
    """A section of the page."""
    return {"id": id, "title": title, "note": note, "figures": list(figures)}
