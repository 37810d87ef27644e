"""From a run's folder to its report."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from tokencredit.report.page import write_page

COMMANDS = ("quickstart", "audit", "compare", "score")
"""Those that leave a report: each has a module in `report.sources`, imported when it is needed, with its extra's
packages."""


def write_report(run: Path) -> Path:
    """Write RUN/report.html and RUN/report.json, which says the same; return the path of the page.

    Raises:
        ValueError: `run` is not a folder of a command that has a report, or nothing in it is finished.
    """
    source = import_module(f"tokencredit.report.sources.{_command(run)}")
    try:
        page = source.page_of(run)
    except (KeyError, TypeError, FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{run} is not finished, or another version of tokencredit wrote it ({type(error).__name__}: {error}): run "
            "the command again"
        ) from error
    return write_page(page, run)


def _command(run: Path) -> str:
    """The command that wrote the folder. A model's folder has a config.json too, which names none."""
    for file in (run / "audit.json", run / "config.json"):
        if file.is_file():
            try:
                content = json.loads(file.read_text("utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} is broken: {error}") from None
            told = content.get("config", content) if isinstance(content, dict) else None
            command = told.get("command") if isinstance(told, dict) else None
            if command in COMMANDS:
                return command
    raise ValueError(f"{run} is not a run folder of tokencredit {', '.join(COMMANDS)}")
