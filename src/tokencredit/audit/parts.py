"""Finished parts of a long audit, kept in its folder, so that an interrupted audit does not compute them again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tokencredit.files import replacing_directory, write_text

Value = TypeVar("Value")
Model = TypeVar("Model", bound=nn.Module)


class Parts:
    """Each part is a folder of its own, which is there whole or not at all.

    What was kept by another version of tokencredit is removed: one audit holds the results of one version. The file
    `version` says which; a folder without it is not known to hold parts, and nothing in it is removed.

    Args:
        folder: where parts are kept; without one, nothing is kept.
        types: the classes that parts may hold beside tensors, numbers, text and plain containers. Nothing else is
            loaded, so that a part that somebody else wrote can run no code.

    Raises:
        ValueError: the folder holds something, and no file `version`.
    """

    def __init__(self, folder: Path | None = None, types: tuple[type, ...] = ()) -> None:
        self.folder, self._types = folder, types
        if folder is not None:
            own, marker = version("tokencredit"), folder / "version"
            if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
                raise ValueError(
                    f"{folder} holds files that are no finished parts of an audit (it has no file {marker.name}): "
                    "choose another folder, or remove it yourself"
                )
            if marker.is_file() and marker.read_text("utf-8") != own:
                _empty(folder, but=marker)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(marker, own)

    def within(self, name: str) -> Parts:
        """The parts in the folder of that name, among these parts."""
        return self if self.folder is None else Parts(self.folder / name, self._types)

    def holds(self, name: str) -> bool:
        return self.folder is not None and (self.folder / name).is_dir()

    def value(self, name: str, compute: Callable[[], Value], device: torch.device | str = "cpu") -> Value:
        """The part of that name, computed now or earlier.

        Args:
            device: where its tensors are put, wherever they were when it was computed: an audit may go on on a machine
                without the GPU that it began on. Where nothing is kept, they stay where `compute` puts them.
        """
        if self.folder is None:
            return compute()
        if not self.holds(name):
            value = compute()
            with self._new(name) as partial:
                torch.save(value, partial / "value.pt")
        with torch.serialization.safe_globals(list(self._types)):
            return torch.load(self.folder / name / "value.pt", map_location=device, weights_only=True)

    def model(self, name: str, make: Callable[[], Model], load: Callable[[Path], Model]) -> Model:
        """The same for a model of transformers or PEFT, which is made now, or loaded from the part's folder."""
        if self.folder is None:
            return make()
        if not self.holds(name):
            model: Any = make()
            with self._new(name) as partial:
                model.save_pretrained(partial)
        return load(self.folder / name)

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        assert self.folder is not None
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing_directory(place) as partial:
            yield partial


def _empty(folder: Path, but: Path) -> None:
    """Remove everything in the folder except one file, which says what the folder is until all else is gone."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != but:
            entry.unlink()
