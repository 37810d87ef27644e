"""From a run's folder to its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokencredit.report.page import Page, write_page
from tokencredit.report.sources.audit import audit_page
from tokencredit.report.sources.compare import compare_page
from tokencredit.report.sources.quickstart import quickstart_page
from tokencredit.report.sources.score import score_page

_PAGES: dict[str, Callable[[Path], Page]] = {
    "quickstart": quickstart_page,
    "audit": audit_page,
    "compare": compare_page,
    "score": score_page,
}


def write_report(run: Path) -> Path:
    """Write RUN/report.html and RUN/report.json, which says the same; return the path of the page.

    Raises:
        ValueError: `run` is not a folder of a command that has a report, or nothing in it is finished.
    """
    return write_page(_PAGES[_command(run)](run), run)


def _command(run: Path) -> str:
    """The command that wrote the folder. A model's folder has a config.json too, which names none."""
    for file in (run / "audit.json", run / "config.json"):
        if file.is_file():
            try:
                content = json.loads(file.read_text("utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} is broken: {error}") from None
            command = content.get("config", content).get("command") if isinstance(content, dict) else None
            if command in _PAGES:
                return command
    raise ValueError(f"{run} is not a run folder of tokencredit {', '.join(_PAGES)}")
