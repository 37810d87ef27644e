"""`tokencredit report RUN`: write a run folder's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tokencredit.cli.terminal import console, needed_packages, user_errors


def report(
    run: Annotated[Path, typer.Argument(help="A folder of quickstart, audit, compare or score.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write RUN/report.html, one page that needs nothing else, and RUN/report.json, which says the same."""
    from tokencredit.report import write_report

    with user_errors(), needed_packages("quickstart"):
        path = write_report(run)
    console.print(f"report: {escape(str(path))}")
    if open_page:
        typer.launch(str(path))
