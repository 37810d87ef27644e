"""Problems from the hub or a file, in TRL's, verl's or a plain layout.

{"prompt": "..." or [{"role": "user", "content": "..."}], "answer": "..."}                             TRL
{"prompt": [{"role": ...}], "data_source": ..., "reward_model": {"style": ..., "ground_truth": "..."}}  verl
{"question" or "problem": "...", "answer" or "solution": "..."}                                       plain
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

_FILES = (".parquet", ".jsonl", ".json")
_PROMPTS = ("prompt", "question", "problem")
_ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution")


def load_problems(
    source: str | Path,
    split: str,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    instruction: str = "",
    chat: bool = False,
    limit: int | None = None,
) -> Dataset:
    """Problems with the columns `prompt` (text or chat messages) and `answer` (text), and the source's other columns.

    Args:
        source: a .parquet, .jsonl or .json file, or the hub's name, with a configuration as `openai/gsm8k:main`.
        split: of a hub's data; a file is one split.
        prompt_column, answer_column: where the layout is none of the known ones; `outer.inner` reads inside a struct.
        instruction: put behind each question (text, or the user's last message), such as where to write the answer.
        chat: make each text prompt a user's message, for models with a chat template.
        limit: the first problems only.

    Raises:
        ValueError: there is no such source, column or problem, or rows without a prompt or an answer, which are named.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    found = _from_file(Path(source)) if str(source).endswith(_FILES) else _from_hub(str(source), split)
    if limit is not None:
        found = found.select(range(min(limit, len(found))))
    if len(found) == 0:
        raise ValueError(f"{source} holds no problem")
    prompt_name = _column(found, prompt_column, _PROMPTS, "prompt", source)
    answer_name = _column(found, answer_column, _ANSWERS, "answer", source)
    read = _read(found, prompt_name, _prompt, "text or chat messages", source)
    prompts = [_phrased(prompt, instruction, chat) for prompt in read]
    answers = _read(found, answer_name, _answer, "text or a number", source)
    own = {"prompt": prompts, "answer": answers}
    others = found.remove_columns([n for n in {prompt_name, answer_name, *own} if n in found.column_names])
    if not others.column_names:  # a table without columns has lost its rows
        return Dataset.from_dict(own)
    return others.add_column("prompt", prompts).add_column("answer", answers)


def _from_file(path: Path) -> Dataset:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".parquet":
            return Dataset(pq.read_table(path))
        rows = _json_rows(path)
        # Not every row of a JSON file has every field.
        names = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _json_rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n") if path.suffix == ".jsonl" else [text]
    rows: list[Any] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            rows += record if isinstance(record, list) and path.suffix == ".json" else [record]
    if wrong := [row for row, record in enumerate(rows) if not isinstance(record, dict)]:
        raise ValueError(f"{path}: expected a JSON object a problem; {_listed(wrong)} hold something else")
    return rows


def _from_hub(source: str, split: str) -> Dataset:
    name, _, configuration = source.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source}, split {split!r}, cannot be loaded: {error}. Expected a file ({', '.join(_FILES)}) or a hub's "
            f"dataset, NAME or NAME:CONFIGURATION"
        ) from None


def _column(found: Dataset, asked: str | None, known: Sequence[str], role: str, source: Any) -> str:
    name = next((n for n in ([asked] if asked else known) if _has(found, n)), None)
    if name is None:
        raise ValueError(
            f"{source} has no {role} column: looked for {asked or ', '.join(known)}; "
            f"there are {', '.join(found.column_names)}. Name it with {role}_column"
        )
    return name


def _has(found: Dataset, name: str) -> bool:
    outer, dot, inner = name.partition(".")
    if name in found.column_names or not dot:
        return name in found.column_names
    fields = found.features.get(outer)
    return isinstance(fields, Mapping) and inner in fields


def _read(found: Dataset, name: str, convert: Callable[[Any], Any], expected: str, source: Any) -> list[Any]:
    """A column's values, converted; `convert` gives None for what it cannot take."""
    outer, _, inner = name.partition(".")
    raw = found[name] if name in found.column_names else [(value or {}).get(inner) for value in found[outer]]
    values = [convert(value) for value in raw]
    if wrong := [row for row, value in enumerate(values) if value is None]:
        raise ValueError(
            f"{source}: column {name} must hold {expected}, not empty; {_listed(wrong)} must be corrected or dropped"
        )
    return values


def _prompt(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.strip() else None
    fit = isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value)
    if not fit or not all(isinstance(m.get(key), str) for m in value for key in ("role", "content")):
        return None
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _phrased(prompt: Any, instruction: str, chat: bool) -> Any:
    if isinstance(prompt, str):
        text = prompt + instruction
        return [{"role": "user", "content": text}] if chat else text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    return [{**m, "content": m["content"] + instruction * (i == last)} for i, m in enumerate(prompt)]


def _answer(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) if str(value).strip() else None


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:10]))
    return f"{'row' if len(rows) == 1 else f'{len(rows)} rows:'} {shown}{', ...' if len(rows) > 10 else ''}"
