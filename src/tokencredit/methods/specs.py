"""Methods as text, for command lines and results: a name, or a name with parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokencredit.methods import Method, method, methods, required_parameters

ALL = "all"
EVERY_METHOD = (
    "uniform",
    "random",
    "position",
    "entropy",
    "entropy_selection",
    "surprisal",
    "entropy_reduction",
    "divergence",
    "arca",
    "atpo",
    "rhythm:strategy=local",
    "rhythm:strategy=global",
    "rhythm:strategy=coupled",
    "attnpo",
    "p2t",
)
"""What `all` stands for: every method, and each of rhythm's strategies."""


def expand_specs(text: str, every: Sequence[str] = EVERY_METHOD) -> tuple[str, ...]:
    """The methods that a `--methods` option names. `all` may stand alone or among others: "all,atpo:floor=0.5".

    Args:
        every: what `all` stands for. Those that the option also names itself are not repeated.
    """
    specs = split_specs(text)
    others = tuple(spec for spec in every if spec not in specs)
    return tuple(name for spec in specs for name in (others if spec == ALL else (spec,)))


def build_specs(text: str) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that a `--methods` option names, for a command that finds no heads itself.

    Returns:
        The methods by their specs; and of those that only `all` names, which need further input, what they need.

    Raises:
        ValueError: `check_specs` refuses one, or a method that the option names itself needs further input.
    """
    specs, named = expand_specs(text), split_specs(text)
    check_specs(specs)
    built, left_out = {}, {}
    for spec in specs:
        name, params = parse_spec(spec)
        if not needs_heads(name, params):
            built[spec] = method(name, **params)
            continue
        needed = f"it reads key-focus heads: name them, {name}:heads=heads.json (see tokencredit heads)"
        if spec in named:
            raise ValueError(f"{spec}: {needed}")
        left_out[spec] = needed
    return built, left_out


def split_specs(text: str) -> tuple[str, ...]:
    """ "uniform,rhythm:strategy=local,q=0.3" -> ("uniform", "rhythm:strategy=local,q=0.3")."""
    specs: list[str] = []
    for part in map(str.strip, _split(text)):
        goes_on = "=" in part.partition(":")[0]
        if goes_on and specs:
            specs[-1] += f",{part}"
        elif part:
            specs.append(part)
    return tuple(specs)


_PYTHONS = {"True": True, "False": False, "None": None}


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """ "rhythm:strategy=coupled,q=0.3" -> ("rhythm", {"strategy": "coupled", "q": 0.3}). Values are JSON, or
    Python's True, False and None, or else text.

    Raises:
        ValueError: a parameter has no value, or is given twice.
    """
    name, _, given = spec.partition(":")
    params: dict[str, Any] = {}
    for part in _split(given) if given else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{spec!r}: expected NAME:PARAMETER=VALUE,...; got {part!r}")
        if key.strip() in params:
            raise ValueError(f"{spec!r} gives {key.strip()} twice: give each parameter one value")
        try:
            params[key.strip()] = json.loads(value)
        except ValueError:
            params[key.strip()] = _PYTHONS.get(value.strip(), value.strip())
    return name.strip(), params


def check_specs(specs: tuple[str, ...]) -> None:
    """Raise a ValueError where there is none, one twice, or one that names no method, parameter or value."""
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"name at least one method, each once; got {', '.join(specs) or 'none'}")
    for spec in specs:
        sketch(spec)


def sketch(spec: str) -> Method:
    """The method, with any head in place of those that have to be found on a model: tells what it reads."""
    name, params = parse_spec(spec)
    heads = {"heads": ((0, 0),)} if needs_heads(name, params) else {}
    try:
        return method(name, **heads, **params)
    except TypeError as error:
        raise ValueError(_of_wrong_type(name, heads, params, error)) from None


def files_of(text: str) -> tuple[str, ...]:
    """The head files that a `--methods` option names, as in attnpo:heads=heads.json."""
    heads = (parse_spec(spec)[1].get("heads") for spec in split_specs(text))
    return tuple(file for file in heads if isinstance(file, str))


def _of_wrong_type(name: str, heads: dict[str, Any], params: dict[str, Any], error: TypeError) -> str:
    """Says which parameters have a value of a type that the method cannot take: those it cannot take alone either."""
    wrong = []
    for key, value in params.items():
        try:
            method(name, **(heads | {key: value}))
        except TypeError:
            wrong.append(key)
        except ValueError:
            continue  # a value out of range, or one that another parameter has to go with
    given = ", ".join(f"{key}={params[key]!r:.60}" for key in wrong or params)
    return f"method {name}: {given} is of a type that the method does not take ({error})"


def needs_heads(name: str, params: dict[str, Any]) -> bool:
    """The method reads heads that are not given, and that depend on the model."""
    return "heads" not in params and name in methods() and "heads" in required_parameters(name)


def _split(text: str) -> list[str]:
    """At the commas that are in no list."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
