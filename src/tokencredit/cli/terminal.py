"""How the commands talk to the terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import ProgressColumn as RichColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

# Without emoji codes: a path or a model's output may hold ":bug:".
console = Console(highlight=False, emoji=False)


def say(text: str) -> None:
    """Print a line as it is: paths, names and model output may look like Rich's markup, and are never broken."""
    console.print(text, markup=False, soft_wrap=True)


def _complain(message: str) -> None:
    line = f"[bold red]error:[/] {escape(' '.join(map(str.strip, message.splitlines())))}"
    Console(stderr=True, highlight=False, emoji=False).print(line, soft_wrap=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Around the checking of a user's input: a ValueError ends the command with its message, in one line, and exit
    code 2."""
    try:
        yield
    except ValueError as error:
        _complain(str(error))
        raise typer.Exit(2) from None


@contextmanager
def needed_packages(extra: str) -> Iterator[None]:
    """Around the import of an extra's packages: says how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        _complain(f'this command needs {error.name}: pip install "tokencredit[{extra}]"')
        raise typer.Exit(1) from None


def offline() -> None:
    """Ask nothing of the hub, where transformers would ask it about models that are local. A user's own HF_HUB_OFFLINE
    is left as it is.

    huggingface_hub reads the variable once, when it is imported, and importing tokencredit imports it by way of
    transformers. So the variable alone serves only processes that are started from here. In this one, huggingface_hub
    and datasets look at constants of their own at each request, and these are set too.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name, constant in _OFFLINE_CONSTANTS:
        if name in sys.modules:
            setattr(sys.modules[name], constant, True)


_OFFLINE_CONSTANTS = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)


def offline_if_local(*sources: str | Path | None) -> None:
    """`offline`, if every model or file that is named (not None) is here, and no adapter whose base model is not."""
    if all(source is None or _is_local(Path(source)) for source in sources):
        offline()


def _is_local(path: Path) -> bool:
    adapter = path / "adapter_config.json"
    if not os.path.isfile(adapter):
        return os.path.exists(path)
    try:
        base = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return False
    return base is not None and Path(base).exists()


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: no bars and no advice from the libraries underneath."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(trl|transformers|torch|peft|accelerate)")


_BAR = 16
_NAME = 24
"""Columns of the terminal: with these, all numbers and a short note stand side by side in 80 columns."""


class _Rate(RichColumn):
    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


class Bars:
    """Progress as one bar a stage, with rate and time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._live = console.is_terminal
        # Names and notes are folded where the terminal is narrow. A number that is cut off would be another number.
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}", table_column=Column(max_width=_NAME, overflow="fold")),
            BarColumn(bar_width=_BAR, table_column=Column(width=_BAR)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Rate(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            TextColumn("[dim]{task.fields[note]}", table_column=Column(overflow="fold")),
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
        self._task = self._progress.add_task(escape(name), total=total, note="")
        if not self._live:
            say(f"{name}: 0/{total}")
            sys.stdout.flush()

    def advance(self, done: int, note: str = "") -> None:
        assert self._task is not None, "stage() comes first"
        self._progress.update(self._task, completed=done, note=escape(note))
        tenth = done * 10 // self._total
        if not self._live and tenth > self._said:
            self._said = tenth
            seconds = (time.monotonic() - self._started) / done * (self._total - done)
            left = f"({seconds / 60:.0f} min left)" if seconds >= 90 else ""
            say(" ".join(filter(None, (f"{self._name}: {done}/{self._total}", note, left))))
            sys.stdout.flush()

    def message(self, text: str) -> None:
        say(text)
