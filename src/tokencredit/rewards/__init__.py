"""Rewards by name, in TRL's signature: `reward(prompts=, completions=, completion_ids=, **columns) -> list of float`.

`load` gives them as TRL's trainers take them. A new one is one file beside these and one line in `_NAMED`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from tokencredit.rewards.base import Columns, name_of

__all__ = ["Reward", "check", "find", "load", "names"]

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


def load(names: str | Sequence[str]) -> list[Reward]:
    """Reward functions by name, as `reward_funcs` of `CreditGRPOTrainer` or of any trainer of TRL's.

    `load(["math", "format"])`, or `load("math")`. Each function takes what TRL passes: `prompts` and `completions`, as
    text or as chat messages, `completion_ids`, and the columns of the dataset by name; it gives a number for each
    completion. Its `__name__` ("math_reward" for `math`) is its name in TRL's logs, and in `credit_correct_reward`.

    Args:
        names: of `names()`, or your own functions as package.module:function, see `find`.

    Raises:
        ValueError: none is named, one is named twice, two have the same `__name__`, under which TRL would log them as
            one, or as for `find`.
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise ValueError(f"name at least one reward: {', '.join(_NAMED)}, or your own as package.module:function")
    functions = [find(name) for name in listed]
    called = [name_of(function) for function in functions]
    for i, name in enumerate(called):
        if name in called[:i]:
            raise ValueError(
                f"the rewards {listed[called.index(name)]} and {listed[i]} are both called {name}, and would be one in "
                "the logs: name each reward once, or give your function another name"
            )
    return functions


def find(name: str) -> Reward:
    """A reward by its name, or your own by its dotted path: `find("package.module:function")`.

    Your own module is imported, which runs the code in it: take such a path, and a configuration file that may hold
    one, only from whom you would take a program.

    Raises:
        ValueError: no reward has that name; or the path leads to no function.
        ModuleNotFoundError: the reward needs a package that is not installed.
    """
    if not isinstance(name, str):
        raise ValueError(f"a reward is named by a text, such as math; got {name!r:.60}")
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
