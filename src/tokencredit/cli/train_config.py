"""The settings of `tokencredit train`: its words and its YAML file, checked so that a mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from tokencredit.methods import methods
from tokencredit.methods.specs import parse_spec
from tokencredit.trainers.trl_arguments import TrainArguments
from tokencredit.trainers.trl_config import CreditGRPOConfig

_NO_TEXTS = ("rewards", "reward_weights")
"""Lists that would be read letter by letter as a text; `lora_target_modules: all-linear` is meant as it is."""

_COMMAND_LINE_ONLY = {name: f"--{name}" for name in ("config", "dry-run", "overwrite", "help")} | {
    "dry_run": "--dry-run",
    "overwrite_output_dir": "--overwrite",
}
"""Names that a file may not hold, and the option that is meant. TRL has no `overwrite_output_dir` any more."""


class Parser(TrlParser):
    """TRL's parser of every setting. It reports a mistake as a ValueError, without two screens of usage, takes no
    abbreviated names, and reads a method with parameters from `credit_method`."""

    def __init__(self) -> None:
        kinds: Any = (TrainArguments, CreditGRPOConfig, ModelConfig)
        super().__init__(kinds, prog="tokencredit train", allow_abbrev=False, add_help=False)

    def error(self, message: str) -> Any:
        raise ValueError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        known.credit_method, known.credit_params = joined_method(known.credit_method, known.credit_params)
        return known, unknown


def parse_settings(config: Path | None, words: Sequence[str]) -> tuple[TrainArguments, CreditGRPOConfig, ModelConfig]:
    """The settings of the file, over which those of the command line take precedence.

    Raises:
        ValueError: a name or a value does not fit; see `check_words` and `check_config`.
    """
    parser = Parser()
    check_words(words, parser)
    if config is not None:
        check_config(config, parser)
    settings: Any = parser.parse_args_and_config([*([] if config is None else ["--config", str(config)]), *words])
    return settings


def joined_method(name: Any, params: Any) -> tuple[Any, Any]:
    """The method's name and all its parameters, where the name may hold some of them: `atpo:floor=0.5`.

    Names without parameters, a path `package.module:Class` among them, are returned as they are.

    Raises:
        ValueError: the text cannot be read, or a parameter is given in both places.
    """
    given = params
    if isinstance(params, str):
        try:
            given = json.loads(params)
        except ValueError as error:
            raise ValueError(f"credit_params must be a JSON object; got {params!r}: {error}") from None
    if not isinstance(given, dict | None):
        raise ValueError(f"credit_params must be a JSON object; got {params!r}")
    before, colon, after = str(name).partition(":")
    if not isinstance(name, str) or not colon or not (before.strip() in methods() or "=" in after):
        return name, given
    given, own = given or {}, parse_spec(name)
    for key, value in own[1].items():
        if key in given:
            raise ValueError(
                f"{key} is {value!r} in credit_method={name!r} and {given[key]!r} in credit_params: give it in one "
                "place; --credit_params '{}' drops those of a file"
            )
    return own[0], {**given, **own[1]}


def check_words(words: Sequence[str], parser: TrlParser) -> None:
    """
    Args:
        words: what stands on the command line alongside the command's own options.

    Raises:
        ValueError: an option is unknown, a word belongs to no option, or a value is of the wrong type.
    """
    _, unknown = parser.parse_known_args(list(words))
    if not unknown:
        return
    option = unknown[0].partition("=")[0]
    if not option.startswith("-"):
        raise ValueError(f"the word {option!r} belongs to no option: settings are given as --NAME VALUE")
    raise ValueError(f"there is no option {option}{_hint(option.lstrip('-'), parser, '--')}")


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
        if key in _COMMAND_LINE_ONLY:
            raise ValueError(
                f"{path}: {key} is no setting of a file: give {_COMMAND_LINE_ONLY[key]} on the command line"
            )
        if key not in known:
            raise ValueError(f"{path}: there is no argument {key!r}{_hint(str(key), parser, '')}")
        if expected := _mismatch(known[key], value):
            raise ValueError(f"{path}: {key} must be {expected}; got {value!r:.60}")


def _hint(name: str, parser: TrlParser, prefix: str) -> str:
    """What is probably meant by an unknown name, as the end of a sentence."""
    if prefix and name in _COMMAND_LINE_ONLY:
        return f"; did you mean {_COMMAND_LINE_ONLY[name]}?"
    known = [action.dest for action in parser._actions] + ["config", "dry-run", "overwrite"] * bool(prefix)
    near = get_close_matches(name.replace("-", "_"), known, n=1) or get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; `tokencredit train --help` lists them"


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
