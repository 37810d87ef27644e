"""Where results are written. One rule holds for every command:

- The place is checked before any work, and nothing is made until the input has been checked too.
- What is already there is never replaced without `--overwrite`.
- A run that takes long is continued with `--resume`, if its settings are the same; Ctrl-C says so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tokencredit.cli.terminal import say
from tokencredit.files import write_text

CONFIG = "config.json"
"""The settings of the run that a folder belongs to. `command` is one of them."""

MODEL_VERSION = "model_version"
"""The setting that says which weights the run's model has; see `cli.models.model_version`."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run that is already there.")]


def claim_file(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Check that a file may be written at `path`. Nothing is written yet.

    Raises:
        ValueError: `path` cannot be written, or something is there and `overwrite` is False.
    """
    check_file(path, option)
    if path.exists() and not overwrite:
        raise ValueError(f"{option} {path} exists: choose another file, or --overwrite to replace it")


def check_claim(
    path: Path,
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    resume: bool | None = None,
    grows: Sequence[str] = (),
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Check that a run with these settings may use the folder `path`. Nothing is made or removed yet.

    Args:
        config: the settings, JSON-ready, with the name of the command in `command`.
        overwrite: the run that is in the folder may be replaced.
        resume: the run that is in the folder may be continued; None for commands that cannot do that.
        grows: names of settings, lists, that may differ in a run that is continued: it keeps what it had, and more may
            be added.
        inputs: files and folders that the run reads; None and names of the hub are ignored.

    Raises:
        ValueError: there can be no such folder; it holds something and neither is given; it holds no run of this
            command, or one of the inputs, which would be removed; or the run to be continued has other settings, which
            are named.
    """
    check_folder(path)
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other")
    if not _occupied(path):
        if resume:
            raise ValueError(f"--resume: there is no run in {path}")
        return
    if not overwrite and not resume:
        ways = ["choose another --out", "--overwrite to replace it"] + ["--resume to go on with it"] * (resume is False)
        raise ValueError(f"{path} exists: {', '.join(ways[:-1])}, or {ways[-1]}")
    before = _config(path)
    if before.get("command") != config["command"]:
        raise ValueError(
            f"{path} does not hold a run of `tokencredit {config['command']}` (its {CONFIG} would say so): "
            "choose another --out"
        )
    if overwrite and (inside := [source for source in inputs if source is not None and is_inside(source, path)]):
        raise ValueError(f"--overwrite would remove {inside[0]}, which this run reads: choose another --out")
    if resume and MODEL_VERSION in (differing := _differing(before, config, grows)) and MODEL_VERSION in before:
        raise ValueError(
            f"the files of the model have changed since the run in {path} was begun, and --resume would mix two "
            "models: choose another --out, or --overwrite to start anew"
        )
    if resume and differing:
        raise ValueError(f"{path} was run with other settings ({', '.join(differing)}): choose another --out")


def claim_folder(
    path: Path,
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    resume: bool | None = None,
    grows: Sequence[str] = (),
    inputs: Iterable[str | Path | None] = (),
) -> dict[str, Any]:
    """Make `path` the folder of a run with these settings, which are written to its config.json.

    The arguments and errors are those of `check_claim`. With `overwrite`, what the folder held is removed.

    Returns:
        The settings as they are written: in a run that is continued, those in `grows` hold what they held before, and
        then what is new. Such a run also keeps the version of tokencredit that it was begun with; another one is said.
    """
    check_claim(path, config, overwrite=overwrite, resume=resume, grows=grows, inputs=inputs)
    settings = _json_ready(config)
    if resume:
        before = _config(path)
        settings |= _of_the_beginning(before, settings)
        settings |= {name: _grown(before.get(name, []), settings[name]) for name in grows}
    if overwrite and _occupied(path):
        _empty(path)
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / CONFIG, json.dumps(settings, indent=2) + "\n")
    return settings


@contextmanager
def explained_interruption(how_to_go_on: str) -> Iterator[None]:
    """Around long work: Ctrl-C ends the command with this sentence and exit code 130, instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\nInterrupted. {how_to_go_on}")
        raise typer.Exit(130) from None


def _occupied(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _config(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _differing(before: Mapping[str, Any], config: Mapping[str, Any], grows: Sequence[str]) -> list[str]:
    """Names of the settings that differ once both have been through JSON. The version of tokencredit may differ."""
    now = _json_ready(config)
    names = (before.keys() | now.keys()) - {"tokencredit", *grows}
    # Hub models tell their version only once they are loaded; until then the settings go without it.
    names -= {MODEL_VERSION} - now.keys()
    return sorted(name for name in names if before.get(name) != now.get(name))


def _of_the_beginning(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps when it is continued: the version of tokencredit, and that of its model."""
    first, here = before.get("tokencredit"), now.get("tokencredit")
    if first is not None and first != here:
        say(f"note: the run was begun with tokencredit {first}, and goes on with {here}: {CONFIG} names the first")
    return {name: before[name] for name in ("tokencredit", MODEL_VERSION) if name in before}


def _json_ready(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are when they are read back: a tuple is a list."""
    return json.loads(json.dumps(dict(config)))


def _grown(before: list[Any], more: list[Any]) -> list[Any]:
    return [*before, *(value for value in more if value not in before)]


def is_inside(source: str | Path, folder: Path) -> bool:
    """There is a file or folder of this name, and it lies in `folder`."""
    place = real_path(source)
    return os.path.exists(place) and place.is_relative_to(real_path(folder))


def real_path(path: str | Path) -> Path:
    """The path without links, `..` and `~`, so that two names of one file are equal."""
    return Path(os.path.expanduser(path)).resolve()


def _empty(folder: Path) -> None:
    """The folder itself stays: it may be a link to another disk, or a place where one is mounted."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_folder(path: Path, option: str = "--out") -> None:
    """
    Raises:
        ValueError: there can be no folder at `path`, or nothing can be written into it.
    """
    nearest = _nearest(path, option)
    if not nearest.is_dir():
        raise ValueError(f"{option} {path} cannot be made: {nearest} is a file, not a folder; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path} cannot be written: there is no permission to write into {nearest}")


def check_file(path: Path, option: str = "--out") -> None:
    """
    Raises:
        ValueError: `path` is a folder, or a file that cannot be written there.
    """
    if _nearest(path, option) == path.absolute():
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder: name the file to write, such as {path / 'results.json'}")
        if not os.access(path, os.W_OK):
            raise ValueError(f"{option} {path} cannot be written: there is no permission to write the file")
    check_folder(path.parent, option)


def _nearest(path: Path, option: str) -> Path:
    """The path itself if something is there, else the nearest folder above it that exists, or a file in its way."""
    absolute = path.absolute()
    try:
        return next(place for place in (absolute, *absolute.parents) if place.exists() or place.is_symlink())
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path} cannot be written: {error}") from None
