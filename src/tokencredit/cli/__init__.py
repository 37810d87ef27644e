"""The command line: one file a command. Heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from tokencredit.cli.audit import audit
from tokencredit.cli.compare import compare
from tokencredit.cli.doctor import doctor
from tokencredit.cli.eval import evaluate
from tokencredit.cli.heads import heads
from tokencredit.cli.quickstart import quickstart
from tokencredit.cli.report import report
from tokencredit.cli.score import score
from tokencredit.cli.smollm2 import smollm2
from tokencredit.cli.train import TrainCommand, train
from tokencredit.cli.warmup import warmup
from tokencredit.cli.word_problems import word_problems

app = typer.Typer(
    name="tokencredit",
    help="Token-level credit assignment for reinforcement learning of reasoning language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(quickstart)
app.command()(heads)
app.command()(audit)
app.command()(compare)
app.command()(score)
app.command()(report)
app.command()(doctor)
app.command("eval")(evaluate)
app.command()(smollm2)
app.command("word-problems")(word_problems)
app.command()(warmup)
_SETTINGS_FOLLOW = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=TrainCommand, context_settings=_SETTINGS_FOLLOW)(train)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"tokencredit {version('tokencredit')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `tokencredit` command."""
    app()
