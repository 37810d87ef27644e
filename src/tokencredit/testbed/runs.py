"""A run folder: what a run was asked, what it measured, and what it leaves.

config.json, results.json (accuracy before, then a row a finished method), metrics.jsonl (a row a method and step),
traces.jsonl (a row a completion), checkpoints/METHOD (safetensors; see `folder_name`), report.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from tokencredit.files import replacing_directory, write_text
from tokencredit.head_files import HeadRank

_PLAIN = re.compile(r"\w+(:[\w.,=+-]*)?", re.ASCII)
_LONGEST = 80


def folder_name(method: str) -> str:
    """The name of a method's folder, which every file system takes: "atpo:floor=0.5" -> "atpo-floor=0.5".

    Other methods get other names: where characters are replaced or cut off, a hash of the whole follows.
    """
    safe = method.replace(":", "-", 1)
    if _PLAIN.fullmatch(method) and len(safe) <= _LONGEST:
        return safe
    shortened = re.sub(r"[^\w.,=+-]", "-", safe, flags=re.ASCII)[:_LONGEST]
    return f"{shortened}-{sha256(method.encode()).hexdigest()[:8]}"


class RunFolder:
    """A folder that a command has claimed for its run (`cli.outputs.claim_folder`)."""

    def __init__(self, path: Path) -> None:
        # A model's folder has a config.json too: a run's says which command made it.
        config = path / "config.json"
        if not config.is_file() or "command" not in json.loads(config.read_text("utf-8")):
            raise ValueError(f"{path} is not a run folder: it has no config.json of a tokencredit command")
        self.path = path

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text("utf-8"))

    @property
    def results(self) -> dict[str, Any]:
        """{"before": ..., "methods": {name: ...}}: the finished part of the run; `heads`, where they were ranked."""
        file = self.path / "results.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else {"before": None, "methods": {}}

    def record_before(self, before: dict[str, Any]) -> None:
        self._write_results({**self.results, "before": before})

    def record_heads(self, ranks: Sequence[HeadRank]) -> None:
        """All heads of the policy that methods start from, best first."""
        self._write_results({**self.results, "heads": [rank._asdict() for rank in ranks]})

    def record_step(self, row: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def record_method(
        self, name: str, result: dict[str, Any], traces: Iterable[dict[str, Any]], policy: nn.Module
    ) -> None:
        """What a finished method leaves; `results.json` last, since it says that the rest is there."""
        checkpoint = self.path / "checkpoints" / folder_name(name)
        checkpoint.parent.mkdir(exist_ok=True)
        with replacing_directory(checkpoint) as partial:
            policy.save_pretrained(partial)  # type: ignore[operator]
        others = [row for row in self.rows("traces") if row["source"] != name]
        self._write_rows("traces", [*others, *traces])
        results, result = self.results, {**result, "checkpoint": f"checkpoints/{checkpoint.name}"}
        self._write_results({**results, "methods": {**results["methods"], name: result}})

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl or traces.jsonl; a line cut off by a crash is left out."""
        file = self.path / f"{kind}.jsonl"
        if not file.is_file():
            return []
        found = []
        for line in file.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def drop_unfinished(self) -> None:
        """Before a run goes on: remove the rows of methods that were interrupted, which start again."""
        finished = self.results["methods"]
        for kind, key in (("metrics", "method"), ("traces", "source")):
            self._write_rows(kind, [row for row in self.rows(kind) if row[key] in finished])

    def _write_results(self, results: dict[str, Any]) -> None:
        write_text(self.path / "results.json", json.dumps(results, indent=2) + "\n")

    def _write_rows(self, kind: str, rows: Iterable[dict[str, Any]]) -> None:
        write_text(self.path / f"{kind}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
