"""Rewards by name, in TRL's signature: `reward(prompts=, completions=, completion_ids=, **columns) -> list of float`.

A new one is one file beside these and one line in `_NAMED`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from tokencredit.rewards.base import Columns

__all__ = ["Reward", "check", "find", "names"]

Reward = Callable[..., list[float | None]]
"""A number a completion; None where the reward has nothing to say."""

_NAMED = {
    "chain": "tokencredit.rewards.chain:chain_reward",
    "countdown": "tokencredit.rewards.countdown:countdown_reward",
    "format": "tokencredit.rewards.format:format_reward",
    "length_penalty": "tokencredit.rewards.length_penalty:length_penalty_reward",
    "math": "tokencredit.rewards.math:math_reward",
}


def names() -> list[str]:
    """The names of all rewards, sorted."""
    return sorted(_NAMED)


def find(name: str) -> Reward:
    """A reward by its name, or your own by its dotted path: `find("package.module:function")`.

    Your own module is imported, which runs the code in it: take such a path, and a configuration file that may hold
    one, only from whom you would take a program.

    Raises:
        ValueError: no reward has that name; or the path leads to no function.
        ModuleNotFoundError: the reward needs a package that is not installed.
    """
    module_name, colon, function_name = _NAMED.get(name, name).partition(":")
    if not colon or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(
            f"unknown reward {name!r}. Valid rewards: {', '.join(names())}, or your own as package.module:function"
        )
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"reward {name!r}: there is no module {error.name!r} on Python's path; PYTHONPATH=. adds this folder"
            ) from None
        raise
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"reward {name!r}: {module_name} has no function {function_name!r}")
    return function


def check(reward: Reward, columns: Columns) -> None:
    """Before any model runs: can `reward` score these problems? Rewards that cannot tell accept them all.

    Args:
        columns: of the problems, `prompt` among them.

    Raises:
        ValueError: says which rows cannot be scored, and why.
    """
    checker: Any = getattr(reward, "check", None)
    if checker is not None:
        checker(columns)
