"""Where results are to be written: checked before any work, without making anything."""

from __future__ import annotations

import os
from pathlib import Path


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
