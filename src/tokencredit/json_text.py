"""Text of a user's file as JSON, with errors that name their place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def named(place: str) -> Iterator[None]:
    """Errors name the place."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error.msg}, at character {error.colno}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from None


def decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f" (byte {content[error.start]:#04x} in its line {line})" if b"\n" in content else ""
        seems = "; it seems to be UTF-16" if content.startswith(_UTF16) else ""
        raise ValueError(f"the text is not UTF-8{where}{seems}: save the file as UTF-8") from None


def loaded(text: str) -> Any:
    try:
        return parsed(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object_of)


class RepeatedKey(dict[str, Any]):
    """A JSON object that has a key twice; it stands in the row until the row's place can be named."""

    fault = ""


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    repeated = RepeatedKey(values)
    repeated.fault = (
        f"an object has the key {next(key for key in keys if keys.count(key) > 1)} twice: leave one of them"
    )
    return repeated


def check_keys(row: dict[str, Any], place: str) -> None:
    values: list[Any] = [row]
    while values:
        value = values.pop()
        if isinstance(value, RepeatedKey):
            raise ValueError(f"{place}: {value.fault}")
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value


def check_text(row: dict[str, Any], place: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: half of a surrogate pair is no text") from None
    except RecursionError:
        raise ValueError(f"{place}: the row is nested too deeply") from None


def not_json(text: str, error: Exception) -> str:
    why = "it is written as Python would print it" if "'" in text else str(error)
    return f"{text:.40} is not JSON: {why}"
