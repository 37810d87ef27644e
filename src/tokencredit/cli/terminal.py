"""How the commands talk to the terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import ProgressColumn as RichColumn
from rich.progress import Task as RichTask
from rich.text import Text

console = Console(highlight=False)


@contextmanager
def user_errors() -> Iterator[None]:
    """Around the checking of a user's input: a ValueError ends the command with its message, exit code 2."""
    try:
        yield
    except ValueError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from None


@contextmanager
def needed_packages(extra: str) -> Iterator[None]:
    """Around the import of an extra's packages: says how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        install = escape(f'pip install "tokencredit[{extra}]"')
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] this command needs {error.name}: {install}")
        raise typer.Exit(1) from None


def offline() -> None:
    """For what needs no hub: transformers would ask it about local models. To be called before it is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: no bars and no advice from the libraries underneath."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(trl|transformers|torch|peft|accelerate)")


class _Rate(RichColumn):
    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


class Bars:
    """Progress as one bar a stage, with rate and time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._name, self._total, self._said, self._started = "", 0, 0, 0.0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int) -> None:
        self._name, self._total, self._said, self._started = name, total, 0, time.monotonic()
        self._task = self._progress.add_task(name, total=total, note="")

    def advance(self, done: int, note: str = "") -> None:
        assert self._task is not None, "stage() comes first"
        self._progress.update(self._task, completed=done, note=note)
        tenth = done * 10 // self._total
        if not self._live and tenth > self._said:
            self._said = tenth
            seconds = (time.monotonic() - self._started) / done * (self._total - done)
            left = f"({seconds / 60:.0f} min left)" if seconds >= 90 else ""
            console.print(" ".join(filter(None, (f"{self._name}: {done}/{self._total}", note, left))))
            sys.stdout.flush()

    def message(self, text: str) -> None:
        console.print(escape(text))
