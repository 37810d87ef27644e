"""The YAML file of `tokencredit train`, checked key by key, so that a mistake in it is one line and not a traceback."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

_NO_TEXTS = ("rewards", "reward_weights")
"""Lists that would be read letter by letter as a text; `lora_target_modules: all-linear` is meant as it is."""


class Parser(TrlParser):
    """TRL's parser, which reports a mistake as a ValueError, without two screens of usage."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def check_config(path: Path, parser: TrlParser) -> None:
    """
    Raises:
        ValueError: the file is no YAML mapping, or a key is there twice, unknown, or of a type that it cannot have.
    """
    try:
        config = yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line} cannot be read as YAML: {error.problem or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a YAML mapping, NAME: VALUE on each line; it holds {config!r:.60}")
    known = {action.dest: action for action in parser._actions}
    for key, value in config.items():
        if key == "env":
            continue
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise ValueError(f"{path}: there is no argument {key!r}{f'; did you mean {near[0]}?' if near else ''}")
        if expected := _mismatch(known[key], value):
            raise ValueError(f"{path}: {key} must be {expected}; got {value!r:.60}")


def _mismatch(action: Any, value: Any) -> str | None:
    """What kind of value the argument takes, where this is none of them; texts are left to the parser."""
    if action.nargs in ("+", "*"):
        text_is_meant = isinstance(value, str) and action.dest not in _NO_TEXTS
        return None if text_is_meant or isinstance(value, list | None) else f"a list, such as [{value}]"
    if action.type not in (int, float) or isinstance(value, str | None):
        return None
    whole = action.type is int and isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or not isinstance(value, int | float) or whole:
        return "a whole number" if action.type is int else "a number"
    return None


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for place, _ in node.value:
            if place.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(place, deep=True)
            if key in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is there twice", problem_mark=place.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)
