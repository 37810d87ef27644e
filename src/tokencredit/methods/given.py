"""Methods as users give them: an object, a name, or a name with parameters."""

from __future__ import annotations

import pickle
from dataclasses import MISSING, fields, is_dataclass
from os import PathLike, fspath
from typing import Any

from tokencredit.methods import _METHODS, Method, method
from tokencredit.methods.base import shown
from tokencredit.methods.specs import parse_spec
from tokencredit.signals.types import Needs


def method_of(given: Any, parameters: dict[str, Any] | None = None) -> Method:
    """The method that is meant.

    Args:
        given: a `Method`, which is returned as it is; a name; or a name with parameters, "atpo:floor=0.5".
        parameters: of a method that is given by its name alone.

    Raises:
        ValueError: it is none of these, its parameters are given twice, or as for `tokencredit.method`.
    """
    if not isinstance(given, str):
        _check_is_method(given)
        if parameters:
            raise ValueError(f"the method {given.name} is an object with parameters of its own: {_TWICE}")
        return given
    name, _, of_text = given.partition(":")
    if not of_text:
        return method(name.strip(), **(parameters or {}))
    if parameters:
        raise ValueError(f"{given!r} has parameters of its own: {_TWICE}")
    name, parameters = parse_spec(given)
    return method(name, **parameters)


_TWICE = "give none besides, or name the method alone and give all of them there"


def name_and_parameters(m: Method) -> tuple[str, dict[str, Any]] | None:
    """What `method(name, **parameters)` makes an equal method of, in types of JSON; None for a class of the user's own.

    Parameters that have their default value are left out.
    """
    if type(m) is not _METHODS.get(m.name):
        return None
    return m.name, _changed(m)


def described(m: Method) -> tuple[str, dict[str, Any]]:
    """`name_and_parameters`, with the class of the user's own in place of a name, as package.module:Class."""
    return name_and_parameters(m) or (f"{type(m).__module__}:{type(m).__qualname__}", _changed(m))


def check_pickles(m: Method) -> None:
    """Raise a ValueError where the object cannot be kept in a checkpoint beside the settings of its run."""
    try:
        pickle.dumps(m)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the method {m.name} cannot be saved in a checkpoint ({error}): define its class {type(m).__qualname__} "
            "at the top level of a module"
        ) from None


def _check_is_method(given: Any) -> None:
    if isinstance(given, type):
        raise ValueError(f"a method is an object, and {given.__name__} is a class: call it, {given.__name__}(...)")
    if not isinstance(getattr(given, "name", None), str) or not callable(given):
        raise ValueError(
            f'a method is given by its name ("atpo"), its name and parameters ("atpo:floor=0.5"), or as an object '
            f'(tc.method("atpo", floor=0.5)); got {shown(given)}'
        )
    if not isinstance(getattr(given, "needs", None), Needs):
        raise ValueError(f"the method {given.name} must say what it reads: its property needs is no tc.Needs")


def _changed(m: Method) -> dict[str, Any]:
    if not is_dataclass(m):
        return {}
    values = {f.name: (getattr(m, f.name), f.default) for f in fields(m)}
    return {name: plain(value) for name, (value, default) in values.items() if default is MISSING or value != default}


def plain(value: Any) -> Any:
    """`value` in types of JSON, where it has such: numbers of NumPy are Python's, and tuples are lists."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
