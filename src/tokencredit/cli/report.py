"""`tokencredit report RUN`: write a run folder's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokencredit.cli.terminal import console, needed_packages, user_errors


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write RUN/report.html from what the run measured."""
    with needed_packages("quickstart"):
        from tokencredit.report import write_report
    with user_errors():
        path = write_report(run)
    console.print(f"report: {path}")
