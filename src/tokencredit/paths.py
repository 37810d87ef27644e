"""Files that a user names: errors that say what is there instead."""

from __future__ import annotations

import re
from difflib import get_close_matches
from os.path import exists, isdir, isfile
from pathlib import Path

_SHOWN = 5
_FILES = re.compile(
    r"\.(jsonl|ndjson|json|csv|parquet|tsv|txt|xlsx?|arrow|feather|pkl|pickle|ya?ml)(\.\w{1,4})?$|\.(gz|zst|zip|xz|bz2|tar|tgz)$",
    re.IGNORECASE,
)
_PLACES = ("/", "~", "./", "../", ".\\", "..\\")


def names_a_file(source: str) -> bool:
    """Whether a text that may name a dataset of the Hub names a file: one that exists, or that is written as a path."""
    return (
        isfile(source)
        or source.startswith(_PLACES)
        or source.count("/") > 1
        or Path(source).is_absolute()
        or _FILES.search(source) is not None
    )


def may_be_a_path(source: str) -> bool:
    """Whether a name in the form of the Hub's, OWNER/NAME, is also a path into a folder that is here."""
    return "/" in source and isdir(Path(source).parent)


def existing_file(path: Path | str) -> Path:
    """The path of a file that exists; `~` is the user's home.

    Raises:
        ValueError: there is no such file, or it is a folder; the closest names that are there are given.
    """
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no file {path}: there is no user {Path(path).parts[0][1:]}") from None
    # The functions of os.path answer False for a name that is too long, where the methods of Path raise an OSError.
    if exists(place) and not isdir(place):
        return place
    try:
        names = sorted(p.name for p in (place if isdir(place) else place.parent).iterdir() if isfile(p))
    except (OSError, ValueError):
        raise ValueError(f"there is no file {path}: {_nearest_folder(place)}") from None
    if isdir(place):
        raise ValueError(f"{path} is a folder: name a file in it{_listed(names, place.name)}")
    raise ValueError(f"there is no file {path}; in that folder are{_listed(names, place.name) or ' no files'}")


def _listed(names: list[str], wanted: str) -> str:
    """The names, those that are closest to what was wanted first."""
    close = get_close_matches(wanted, names, n=_SHOWN, cutoff=0.5)
    ordered = [*close, *(name for name in names if name not in close)]
    return f": {', '.join(ordered[:_SHOWN])}{', ...' if len(ordered) > _SHOWN else ''}" if names else ""


def _nearest_folder(path: Path) -> str:
    missing = path.parent
    while missing != missing.parent and not exists(missing.parent):
        missing = missing.parent
    return f"there is no folder {missing}"
