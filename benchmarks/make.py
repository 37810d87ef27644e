"""docs/performance.md, which is made from the kept figures of benchmarks/measured.json and nothing else.

python benchmarks/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

import limits
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tables import GRIDS, Figures, about

HERE = Path(__file__).parent
KEPT = HERE / "measured.json"
PAGE = HERE.parent / "docs" / "performance.md"
NOT_MEASURED = "Not measured yet."


class Measured:
    """The kept figures, for the template: every method returns text."""

    def __init__(self, parts: dict[str, Figures]) -> None:
        self._parts = parts

    def machines(self) -> str:
        """A line a machine, with the parts that were measured there."""
        by_machine: dict[str, list[str]] = {}
        for part in GRIDS:
            if part in self._parts:
                by_machine.setdefault(about(self._parts[part]), []).append(f"`{part}`")
        return "\n".join(f"- {', '.join(parts)}: {machine}." for machine, parts in by_machine.items())

    def quick(self) -> str:
        """The parts whose sizes were so small that their figures mean little."""
        return ", ".join(f"`{part}`" for part, figures in self._parts.items() if figures["quick"])

    def model(self, part: str) -> str:
        return self._parts[part]["model"] if part in self._parts else NOT_MEASURED

    def tables(self, part: str) -> str:
        if part not in self._parts:
            return NOT_MEASURED
        return "\n\n".join(grid.markdown() for grid in GRIDS[part](self._parts[part]))


def kept() -> dict[str, Figures]:
    return json.loads(KEPT.read_text("utf-8"))


def keep(measured: dict[str, Figures]) -> Path:
    """Put what was measured in place of what was kept of the same parts, and make the page anew. Returns the page."""
    parts = {**(kept() if KEPT.exists() else {}), **measured}
    ordered = {part: parts[part] for part in GRIDS if part in parts}
    KEPT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(ordered), encoding="utf-8")
    return PAGE


def page(parts: dict[str, Figures]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    calculated = "\n\n".join(grid.markdown() for grid in limits.grids())
    template = environment.get_template("performance.md.j2")
    return template.render(measured=Measured(parts), limits=limits, calculated=calculated).rstrip() + "\n"


if __name__ == "__main__":
    print(keep({}))
