"""Completions that are kept as they are scored, so that an interrupted `tokencredit eval` can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencredit.cli.outputs import MODEL_VERSION, check_file
from tokencredit.files import write_text

if TYPE_CHECKING:
    from tokencredit.evaluation import Scored

LOADED = frozenset((MODEL_VERSION, "batch_size"))
"""Settings that are known, or matter, only once the model is loaded."""


class Partial:
    """The file of an unfinished evaluation: its settings in the first line, then a completion in each.

    Args:
        beside: the file of results that the evaluation is for.
        settings: what decides the completions and their rewards, JSON-ready.
    """

    def __init__(self, beside: Path, settings: Mapping[str, Any]) -> None:
        self.path = beside.with_name(f"{beside.name}.partial")
        self._settings = json.loads(json.dumps(dict(settings)))

    def check(self, *, overwrite: bool, resume: bool) -> bool:
        """
        Returns:
            Whether the results may replace those that exist: `overwrite`, or that of the run that is to be resumed.

        Raises:
            ValueError: there is an unfinished evaluation and neither is given; or there is none to be resumed, or one
                with other settings, which are named.
        """
        check_file(self.path)
        if not resume:
            if self.path.exists() and not overwrite:
                raise ValueError(
                    f"{self.path} holds an unfinished evaluation: --resume to go on with it, or --overwrite to start "
                    "anew"
                )
            return overwrite
        if overwrite:
            raise ValueError("--overwrite and --resume exclude each other")
        if not self.path.exists():
            raise ValueError(f"--resume: there is no unfinished evaluation, which {self.path} would hold")
        self._compare()
        return bool(self._head().get("overwrite"))

    def add_settings(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Add the settings that are known once the model is loaded, those in `LOADED`.

        Raises:
            ValueError: the evaluation is to be resumed and had other ones.
        """
        self._settings |= json.loads(json.dumps(dict(settings)))
        if resume:
            self._compare()

    def _compare(self) -> None:
        before = self._head()["settings"]
        names = (before.keys() | self._settings.keys()) - (LOADED - self._settings.keys())
        differing = sorted(name for name in names if before.get(name) != self._settings.get(name))
        if MODEL_VERSION in differing and MODEL_VERSION in before:
            raise ValueError(
                f"--resume: the files of the model have changed since the evaluation in {self.path} was begun, and its "
                "results would mix two models: --overwrite starts anew"
            )
        if differing:
            raise ValueError(
                f"--resume: {self.path} is of an evaluation with other settings ({', '.join(differing)}): give the "
                "same ones, or choose other files"
            )

    def completions(self, samples: int) -> list[Scored]:
        """What has been scored: the completions of the first problems, without a problem that is not complete.

        The file is left with them alone: an interruption may have cut off its last line.
        """
        from tokencredit.evaluation import Scored

        head, *lines = self.path.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = whole[: len(whole) // samples * samples]
        if len(kept) < len(lines):
            write_text(self.path, "".join([head, *kept]))
        try:
            return [Scored(**json.loads(line)) for line in kept]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}): --overwrite starts anew") from None

    def add(self, scored: Sequence[Scored], *, overwrite: bool) -> None:
        """Append completions. The first ones make the file.

        Args:
            overwrite: the results may replace those that exist, also when the evaluation is resumed.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"settings": self._settings, "overwrite": overwrite}) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in scored)

    def release_outputs(self) -> None:
        """Before the first of several files of results is written: what is then there may be replaced on --resume."""
        _, *lines = self.path.read_text("utf-8").splitlines(keepends=True)
        head = json.dumps({"settings": self._settings, "overwrite": True}) + "\n"
        write_text(self.path, "".join([head, *lines]))

    def remove(self) -> None:
        """Once the results are written."""
        self.path.unlink(missing_ok=True)

    def _head(self) -> dict[str, Any]:
        with self.path.open(encoding="utf-8") as file:
            line = file.readline()
        try:
            head = json.loads(line)
        except ValueError:
            head = None
        if not isinstance(head, dict) or not isinstance(head.get("settings"), dict):
            raise ValueError(f"--resume: {self.path} is no unfinished evaluation; choose other files")
        return head
