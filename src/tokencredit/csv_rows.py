"""Rows of a CSV file, whose cells have no types of their own: see `tokencredit.tables`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tokencredit.json_text import decoded, named, not_json, parsed

_LONGEST_CELL = 2**31 - 1
_NUMBER_OR_LIST = re.compile(r"\s*(?:[\[{\-0-9]|NaN|Infinity)")
_WORDS = {"true": True, "false": False, "null": None}


def csv_rows(path: Path, content: bytes, typed: Collection[str]) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
    """What the numbers of the rows count, lines, and the rows with their numbers."""
    with named(str(path)):
        lines = _csv_lines(path, decoded(content))
    header_line, header = next(lines, (1, []))
    with named(f"{path}, line {header_line}"):
        names = _checked_header(header)
    rows = []
    for number, cells in lines:
        with named(f"{path}, line {number}"):
            if len(cells) != len(names):
                raise ValueError(f"the row has {len(cells)} cells, but the header has {len(names)}")
            pairs = zip(names, cells, strict=True)
            rows.append((number, {name: _cell(name, cell, typed) for name, cell in pairs if name}))
    return "line", rows


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line on which it begins."""
    before = csv.field_size_limit(_LONGEST_CELL)  # a completion may be longer than the module's limit
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        begins = 1
        for cells in reader:
            if any(cells) and (len(cells) > 1 or cells[0].strip()):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {begins}: {error}") from None
    finally:
        csv.field_size_limit(before)


def _checked_header(header: list[str]) -> list[str]:
    """The columns' names; empty for those without one, such as the index that pandas writes."""
    names = [name.strip() for name in header]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"the header names a column twice: {', '.join(twice)}")
    if len(names) == 1 and (separator := next((s for s in (";", "\t") if s in names[0]), None)):
        raise ValueError(f"the cells seem to be separated by {separator!r}: expected commas")
    return names


def _cell(name: str, text: str, typed: Collection[str]) -> Any:
    if not text:
        return None
    with named(f"column {name}"):
        if name in typed:
            return typed_cell(text)
    return _chat_cell(name, text) if text.lstrip().startswith("[") and "role" in text else text


def _chat_cell(name: str, text: str) -> Any:
    """A list of objects with `role`, which are chat messages, or else the text as it is."""
    try:
        value = parsed(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip(" [").startswith("{'role'"):
            raise ValueError(f"column {name}: {not_json(text, error)}") from None
        return text
    chat = isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value)
    return value if chat else text


def typed_cell(text: str) -> Any:
    """A cell's number, truth value, list or object; the text itself where it holds none of them.

    Raises:
        ValueError: the text starts as a list or an object, but it is not JSON.
    """
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    if not _NUMBER_OR_LIST.match(text):
        return text
    try:
        return parsed(text)
    except (ValueError, RecursionError) as error:
        if word[0] in "[{":
            raise ValueError(f"{not_json(text, error)}. Lists are written as in JSON, such as [1, 2]") from None
        return text
