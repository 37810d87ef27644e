"""One tree, rendered twice: as a self-contained HTML page and as JSON.

Model output is hostile. It reaches the page only inside the payload, gzipped and in base64, and the page's script sets
it as text; the page's policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokencredit.files import write_text
from tokencredit.report.figures import Figure
from tokencredit.steps import BOXED

MOST_TRACES, MOST_BYTES = 200, 2_100_000
"""Of a page; bytes are compressed, and a third more in base64, so that a page stays below 3 MB."""
_SCRIPTS = (
    *("data.js", "labels.js", "matrix.js", "figures.js", "list.js", "opening.js", "panes.js", "behind.js"),
    *("export.js", "main.js"),
)


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        facts: (name, value) pairs for its head.
        traces: rows of `analysis.traces.trace_rows`; with `source`, who wrote them, where there are several.
        groups: sections of figures, each made by `figures.group`.
        opens_with: "traces" or "groups": which of them come first.
        delimiters: what may stand between reasoning and answer; the page names the one that it finds in a trace.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    traces: Sequence[dict[str, Any]]
    groups: Sequence[Figure]
    opens_with: Literal["traces", "groups"] = "traces"
    delimiters: Sequence[str] = ("</think>", BOXED)

    def as_json(self) -> dict[str, Any]:
        kept = _kept(self.traces)
        return {
            "title": self.title,
            "version": version("tokencredit"),
            "facts": [list(fact) for fact in self.facts],
            "traces": kept,
            "traces_note": _note(len(kept), len(self.traces)),
            "groups": list(self.groups),
            "opens_with": self.opens_with,
            "delimiters": list(self.delimiters),
        }


def write_page(page: Page, folder: Path) -> Path:
    """Write report.html and report.json into a folder; return the path of the former.

    Raises:
        ValueError: a figure is NaN or infinite.
    """
    tree = page.as_json()
    # Lone surrogates, which model output may hold, survive as escapes.
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    write_text(folder / "report.json", text + "\n")
    path = folder / "report.html"
    write_text(path, render(tree, text))
    return path


def render(tree: dict[str, Any], text: str) -> str:
    """The page of a tree whose JSON is `text`."""
    environment = Environment(loader=PackageLoader("tokencredit.report"), autoescape=True, undefined=StrictUndefined)
    assets = files("tokencredit.report") / "assets"
    style = Environment(autoescape=False).from_string((assets / "page.css").read_text("utf-8")).render()
    parts = [(assets / name).read_text("utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "".join(parts) + "})();\n"
    return environment.get_template("page.html.j2").render(
        page=tree,
        style=_inline(style),
        script=_inline(script),
        payload=base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode(),
    )


def _inline(text: str) -> dict[str, str]:
    """Our own code, as it stands, and the digest by which the page's policy knows it."""
    assert "</s" not in text
    return {"text": Markup(text), "digest": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}


def _kept(traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many traces as a page holds, from each source in turn, in their order. Those with any credit go first."""
    sources: dict[Any, list[int]] = {}
    for i, trace in enumerate(traces):
        sources.setdefault(trace.get("source"), []).append(i)
    queues = [sorted(rows, key=lambda i: _uncredited(traces[i])) for rows in sources.values()]
    chosen: list[int] = []
    size = 0
    for i in (i for turn in zip_longest(*queues) for i in turn if i is not None):
        size += len(gzip.compress(json.dumps(shortened(traces[i])).encode(), 1))
        if chosen and (len(chosen) == MOST_TRACES or size > MOST_BYTES):
            break
        chosen.append(i)
    return [{"number": i + 1, **shortened(traces[i])} for i in sorted(chosen)]


def shortened(value: Any) -> Any:
    """Four significant digits: what a page can show, at half the size."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    return [shortened(part) for part in value] if isinstance(value, list) else value


def _uncredited(row: dict[str, Any]) -> bool:
    return not any(any(credit["advantages"]) for credit in row["credit"].values())


def _note(kept: int, count: int) -> str:
    told = "Each token is shaded by its credit; choose it to see its numbers."
    return told if kept == count else f"{told} These are {kept} of {count:,} traces: a page holds no more."
