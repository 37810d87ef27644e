"""Problems from the hub or a file, in TRL's, verl's or a plain layout.

{"prompt": "..." or [{"role": "user", "content": "..."}], "answer": "..."}                             TRL
{"prompt": [{"role": ...}], "data_source": ..., "reward_model": {"style": ..., "ground_truth": "..."}}  verl
{"question" or "problem": "...", "answer" or "solution": "..."}                                       plain
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from tokencredit.chat import BESIDE_CONTENT, as_prompt, chat_messages
from tokencredit.layouts import PROMPT_NAMES, similar
from tokencredit.paths import existing_file, may_be_a_path, names_a_file
from tokencredit.tables import FORMATS, INT64, Table, inferred, read_parquet, read_table, suffix_of

_ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution")


@dataclass(frozen=True)
class _Source:
    """A dataset, and what its rows are called: `unit` and `numbers`, from 1."""

    name: str
    data: Dataset
    unit: str
    numbers: Sequence[int]

    def first(self, count: int) -> _Source:
        count = min(count, len(self.data))
        return _Source(self.name, self.data.select(range(count)), self.unit, self.numbers[:count])

    def listed(self, rows: Sequence[int]) -> str:
        shown = ", ".join(str(self.numbers[row]) for row in rows[:10])
        how_many = self.unit if len(rows) == 1 else f"{len(rows)} {self.unit}s:"
        return f"{how_many} {shown}{', ...' if len(rows) > 10 else ''}"


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
        source: a file of one of the formats of `tokencredit.tables`, or the hub's name, with a configuration as
            `openai/gsm8k:main`, or a folder that the library `datasets` can load.
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
    if names_a_file(str(source)):
        rows = _from_file(existing_file(source), prompt_column, answer_column)
    else:
        rows = _from_hub(str(source), split)
    if limit is not None:
        rows = rows.first(limit)
    if len(rows.data) == 0:
        raise ValueError(f"{source} holds no problem")
    prompt_name = _column(rows, prompt_column, PROMPT_NAMES, "prompt")
    answer_name = _column(rows, answer_column, _ANSWERS, "answer")
    read = _read(rows, prompt_name, _prompt, "text or chat messages")
    prompts = [_phrased(prompt, instruction, chat) for prompt in read]
    answers = _read(rows, answer_name, _answer, "text or a number")
    own = {"prompt": prompts, "answer": answers}
    data = rows.data
    others = data.remove_columns([n for n in {prompt_name, answer_name, *own} if n in data.column_names])
    if not others.column_names:  # a table without columns has lost its rows
        return Dataset.from_dict(own)
    return others.add_column("prompt", prompts).add_column("answer", answers)


def _from_file(path: Path, prompt_column: str | None, answer_column: str | None) -> _Source:
    if suffix_of(path) == ".parquet":
        data = Dataset(read_parquet(path))
        return _Source(str(path), data, "row", range(1, len(data) + 1))
    prompts = [name for name in (*PROMPT_NAMES, prompt_column) if name]
    answers = [name for name in (*_ANSWERS, answer_column) if name]
    table = inferred(read_table(path), text=[*prompts, *answers])
    # Not every row of a JSON file has every field.
    columns = {name: [row.get(name) for row in table.rows] for name in table.columns}
    for name in columns.keys() & {*prompts}:
        columns[name] = list(map(_as_text_messages, columns[name]))
    for name in columns.keys() & {*answers}:
        columns[name] = _alike(columns[name])
    arrays = {name: _array(name, _fitting(values), table) for name, values in columns.items()}
    return _Source(str(path), Dataset(pa.table(arrays)), table.unit, table.numbers)


def _as_text_messages(value: Any) -> Any:
    """Chat messages whose content is text, because a column holds one kind of content; errors are reported later."""
    try:
        return chat_messages(value) if isinstance(value, list) else value
    except ValueError:
        return value


def _alike(values: list[Any]) -> list[Any]:
    """Numbers as text, where some of the answers are text."""
    if not any(isinstance(value, str) for value in values):
        return values
    return [str(value) if type(value) in (int, float) else value for value in values]


def _fitting(values: list[Any]) -> list[Any]:
    """Numbers as text, where one of them is a whole number of more than 64 bits, which no column holds."""
    if all(type(value) is not int or value in INT64 for value in values):
        return values
    return [str(value) if type(value) in (int, float) else value for value in values]


def _array(name: str, values: list[Any], table: Table) -> Any:
    try:
        return Dataset.from_dict({name: values}).data.column(0)
    except OverflowError:
        raise ValueError(
            f"{table.path} cannot be read: column {name} holds a list or an object with a whole number of more than 64 "
            "bits: write it as text"
        ) from None
    except (pa.ArrowException, RecursionError) as error:
        kinds: dict[str, int] = {}
        for row, value in enumerate(values):
            kinds.setdefault(_kind(value), row)
        mixed = [f"{kind} in {table.unit} {table.numbers[row]}" for kind, row in kinds.items() if kind != "nothing"]
        why = f"holds {' and '.join(mixed[:3])}: write all its values alike" if len(mixed) > 1 else f"holds {error}"
        raise ValueError(f"{table.path} cannot be read: column {name} {why}") from None


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "nothing")


def _from_hub(source: str, split: str) -> _Source:
    name, _, configuration = source.partition(":")
    try:
        data = datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{_no_file(source)}{source}, split {split!r}, cannot be loaded: {error}. Expected a file "
            f"({', '.join(FORMATS)}, each also with .gz) or a hub's dataset, NAME or NAME:CONFIGURATION"
        ) from None
    return _Source(source, data, "row", range(1, len(data) + 1))


def _no_file(source: str) -> str:
    """What a name that may also be a path has to do with files that are here."""
    if not may_be_a_path(source) and not isdir(source):
        return ""
    try:
        existing_file(source)
    except ValueError as error:
        return f"{error}. As a {'dataset in a folder' if isdir(source) else 'dataset of the Hub'}, "
    return ""


def _column(rows: _Source, column: str | None, known: Sequence[str], role: str) -> str:
    name = next((n for n in ([column] if column else known) if _has(rows.data, n)), None)
    if name is None:
        names = rows.data.column_names
        similar_name = similar(column or role, names)
        advice = f", such as {similar_name}" if similar_name else ""
        raise ValueError(
            f"{rows.name} has no {role} column: looked for {column or ', '.join(known)}; "
            f"there are {', '.join(names)}. Name it with {role}_column{advice}"
        )
    return name


def _has(data: Dataset, name: str) -> bool:
    outer, dot, inner = name.partition(".")
    if name in data.column_names or not dot:
        return name in data.column_names
    fields = data.features.get(outer)
    return isinstance(fields, Mapping) and inner in fields


def _read(rows: _Source, name: str, convert: Callable[[Any], Any], expected: str) -> list[Any]:
    """A column's values, converted; `convert` raises a ValueError for what it cannot take."""
    outer, _, inner = name.partition(".")
    data = rows.data
    raw = data[name] if name in data.column_names else [(value or {}).get(inner) for value in data[outer]]
    values, wrong, reasons = [], [], []
    for row, value in enumerate(raw):
        try:
            values.append(convert(value))
        except ValueError as error:
            wrong.append(row)
            reasons.append(str(error))
    if wrong:
        reason = f" ({rows.unit} {rows.numbers[wrong[0]]}: {reasons[0]})" if reasons[0] else ""
        raise ValueError(
            f"{rows.name}: column {name} must hold {expected}, not empty; {rows.listed(wrong)} must be corrected or "
            f"dropped{reason}"
        )
    return values


def _prompt(value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError
    prompt = as_prompt(value)
    if isinstance(prompt, str):
        return prompt
    for number, message in enumerate(prompt, start=1):
        if beside := [name for name in BESIDE_CONTENT if message.get(name)]:
            raise ValueError(f"message {number} has {beside[0]} beside its content, which would be lost")
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _phrased(prompt: Any, instruction: str, chat: bool) -> Any:
    if isinstance(prompt, str):
        text = prompt + instruction
        return [{"role": "user", "content": text}] if chat else text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    return [{**message, "content": message["content"] + instruction * (i == last)} for i, message in enumerate(prompt)]


def _answer(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError
    if value != value:
        raise ValueError("the answer is not a number (NaN)")
    return str(value)
