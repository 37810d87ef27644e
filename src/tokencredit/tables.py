"""Rows of a user's file: JSON Lines, JSON, CSV or Parquet, each of them also compressed with gzip.

Text is UTF-8, with or without a byte order mark, with either line ending; blank lines are skipped. Every error is one
line that names the file and the line or row, counted from 1.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tokencredit.csv_rows import csv_rows, typed_cell
from tokencredit.json_text import RepeatedKey, check_keys, check_text, decoded, loaded, named
from tokencredit.paths import existing_file

Row = TypeVar("Row")

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
"""The suffixes that are read. `.ndjson` is another name of .jsonl; each may be followed by .gz."""

INT64 = range(-(2**63), 2**63)
"""The whole numbers that a column of a dataset holds."""

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True)
class Table:
    """The rows of a file, and where in the file each of them is: `unit` ("line" or "row") and `numbers`, from 1."""

    path: Path
    rows: list[dict[str, Any]]
    unit: str
    numbers: list[int]

    def place(self, index: int) -> str:
        """Such as "problems.csv, line 3"."""
        return f"{self.path}, {self.unit} {self.numbers[index]}"

    @property
    def columns(self) -> list[str]:
        """The names of all rows, in the order in which they first come."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_rows(path: Path | str, *, typed: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a file; arguments and errors are those of `read_table`."""
    return read_table(path, typed=typed).rows


def read_table(path: Path | str, *, typed: Collection[str] = ()) -> Table:
    """The rows of a file, and their places in it.

    Args:
        path: a file with a suffix of `FORMATS`, which may be followed by .gz.
        typed: columns that hold numbers, true or false, or lists. CSV has no types: there, cells of these columns are
            read as JSON. In other columns a cell is text, unless it holds a JSON list of chat messages. An empty cell
            is null in every column.

    Raises:
        ValueError: there is no such file, its suffix is unknown, or it cannot be read; the line or row is named.
    """
    path = existing_file(path)
    kind = suffix_of(path)
    if kind not in _READERS:
        raise ValueError(
            f"{path} has the suffix {kind or '(none)'}, which is not known: expected {', '.join(FORMATS)}, each also "
            "with .gz"
        )
    unit, placed = _READERS[kind](path, _content(path), typed)
    for number, row in placed:
        place = f"{path}, {unit} {number}"
        check_text(row, place)
        check_keys(row, place)
    return Table(path, [row for _, row in placed], unit, [number for number, _ in placed])


def read_each(
    path: Path | str, read: Callable[[dict[str, Any]], Row], *, typed: Collection[str] = (), content: str = "row"
) -> list[Row]:
    """What `read` makes of each row.

    Args:
        typed: as in `read_table`.
        content: what a row is called where the file has none.

    Raises:
        ValueError: as in `read_table`; `read` refuses a row, whose place is named; or there is no row.
    """
    return convert(read_table(path, typed=typed), read, content=content)


def convert(table: Table, read: Callable[[dict[str, Any]], Row], *, content: str = "row") -> list[Row]:
    """What `read` makes of each row of a table that has been read; the rest is as in `read_each`."""
    if not table.rows:
        raise ValueError(f"{table.path} holds no {content}")
    made = []
    for index, row in enumerate(table.rows):
        with named(table.place(index)):
            made.append(read(row))
    return made


def inferred(table: Table, *, text: Collection[str]) -> Table:
    """A table of a CSV file whose columns are typed where all cells of a column are numbers, or all truth values, lists
    or objects. Other tables are returned as they are.

    Args:
        text: columns that stay as they are.
    """
    if suffix_of(table.path) != ".csv":
        return table
    values = {name: _inferred_column([row[name] for row in table.rows]) for name in table.columns if name not in text}
    rows = [row | {name: column[i] for name, column in values.items()} for i, row in enumerate(table.rows)]
    for index, row in enumerate(rows):
        check_keys(row, table.place(index))
    return replace(table, rows=rows)


def _inferred_column(cells: list[Any]) -> list[Any]:
    try:
        values = [typed_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    except ValueError:
        return cells
    if any(type(value) is int and value not in INT64 for value in values):
        return cells
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    return values if len(kinds) == 1 and str not in kinds else cells


def suffix_of(path: Path | str) -> str:
    """In lower case, without .gz."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_parquet(path: Path) -> Any:
    """A pyarrow table, without the index columns that pandas adds.

    Raises:
        ValueError: pyarrow is not installed, or the file cannot be read.
    """
    return _arrow(path, _content(path))


def _content(path: Path) -> bytes:
    """The file's bytes, decompressed."""
    compressed = path.suffix.lower() == ".gz"
    try:
        content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if content.startswith(_GZIP):
        raise ValueError(f"{path} is compressed with gzip: name it {path.name}.gz")
    if content.startswith(_PARQUET) and suffix_of(path) != ".parquet":
        raise ValueError(f"{path} is a Parquet file: give it the suffix .parquet")
    return content


_Placed = list[tuple[int, dict[str, Any]]]
"""Rows with the numbers of their lines or rows."""


def _json_lines(path: Path, content: bytes, typed: Collection[str]) -> tuple[str, _Placed]:
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        with named(f"{path}, line {number}"):
            text = decoded(line)
            if text.strip():
                rows.append((number, _object(loaded(text))))
    return "line", rows


def _json(path: Path, content: bytes, typed: Collection[str]) -> tuple[str, _Placed]:
    with named(str(path)):
        text = decoded(content)
    if not text.strip():
        return "row", []
    try:
        whole = loaded(text)
        if isinstance(whole, RepeatedKey):
            raise ValueError(whole.fault)
        records = _records(whole)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(path, content, typed)  # pandas and datasets give JSON Lines this suffix
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}, at character {error.colno}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rows = []
    for number, record in enumerate(records, start=1):
        with named(f"{path}, row {number}"):
            rows.append((number, _object(record)))
    return "row", rows


def _records(whole: Any) -> list[Any]:
    """The rows of a JSON file: an array, the one array of objects of an object, or an object that is itself a row."""
    if isinstance(whole, list):
        return whole
    arrays = {name: value for name, value in _object(whole).items() if _is_array_of_rows(value)}
    if len(arrays) > 1:
        raise ValueError(f"the object has several arrays of rows ({', '.join(arrays)}): leave the one that is meant")
    return next(iter(arrays.values()), [whole])


def _is_array_of_rows(value: Any) -> bool:
    objects = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return objects and not is_chat(value)


def is_chat(value: Any) -> bool:
    """Whether a value has the shape of chat messages: a list of objects with `role` and `content`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    )


def _parquet(path: Path, content: bytes, typed: Collection[str]) -> tuple[str, _Placed]:
    return "row", list(enumerate(_arrow(path, content).to_pylist(), start=1))


def _arrow(path: Path, content: bytes) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ValueError(f"{path}: Parquet is read with pyarrow, which is not installed: pip install pyarrow") from None
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": csv_rows, ".parquet": _parquet}


def _object(record: Any) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    hint = "; an array of rows belongs into a .json file" if isinstance(record, list) else ""
    raise ValueError(f"expected a JSON object, one a row{hint}; got {json.dumps(record):.40}")
