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
Splitter = Annotated[str, typer.Option(help="Steps of plain text: phrases, sentence, newline, paragraph.")]
EndOfReasoning = Annotated[str, typer.Option(help="What stands before the answer.")]
Answer = Annotated[
    str,
    typer.Option(
        help="Where the answer of plain text starts: auto (behind --end-of-reasoning, or else at the last "
        "\\boxed{), end_of_reasoning, or the last match of a regular expression."
    ),
]
