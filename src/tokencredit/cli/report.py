"""`tokencredit report RUN`: write a run folder's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokencredit.cli.outputs import check_file
from tokencredit.cli.terminal import needed_packages, say, user_errors


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run of quickstart, audit, compare or score.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write RUN/report.html, one page that needs nothing else, and RUN/report.json, which says the same.

    Both are made from the results in RUN alone, so an earlier report in RUN is replaced without being asked for.
    """
    from tokencredit.report import write_report

    with user_errors(), needed_packages("quickstart"):
        if run.is_dir():
            check_file(run / "report.html", "RUN")
            check_file(run / "report.json", "RUN")
        path = write_report(run)
    say(f"report: {path}")
    if open_page:
        typer.launch(str(path))
