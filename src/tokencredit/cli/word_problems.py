"""`tokencredit word-problems`: problems for a small language model, and a teacher's solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tokencredit.cli.terminal import console, user_errors


def word_problems(
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    lessons: Annotated[int, typer.Option(help="Problems with a teacher's solution, to imitate.")] = 960,
    problems: Annotated[int, typer.Option(help="Problems with an answer, for reinforcement learning.")] = 512,
    held_out: Annotated[int, typer.Option(help="Problems with an answer that are in neither of the others.")] = 128,
    slips: Annotated[float, typer.Option(help="How likely each step of the teacher is wrong.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seeds the problems and the teacher.")] = 0,
) -> None:
    """Write arithmetic word problems in plain sentences: lessons.jsonl, train.jsonl and heldout.jsonl."""
    from tokencredit.word_problems import write_word_problems

    with user_errors():
        write_word_problems(out, lessons=lessons, problems=problems, held_out=held_out, slips=slips, seed=seed)
    console.print(escape(f"written: {out}/lessons.jsonl, train.jsonl, heldout.jsonl"))
