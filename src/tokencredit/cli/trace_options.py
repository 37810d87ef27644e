"""The options of the commands that read a file of traces."""

from __future__ import annotations

from typing import Annotated

import typer

LongTraces = Annotated[
    str,
    typer.Option(
        "--long-traces",
        help="Traces longer than the model's context: refuse, skip (they are left out), or truncate (text is cut off "
        "at its end, and labelled traces are left out).",
    ),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="Make text prompts a user's message, for models with a chat template.")
]
