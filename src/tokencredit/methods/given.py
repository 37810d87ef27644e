"""Methods as users give them: an object, a name, or a name with parameters."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any

from tokencredit.methods import _METHODS, Method
from tokencredit.methods import method as build_method
from tokencredit.methods.base import shown
from tokencredit.methods.specs import parse_spec
from tokencredit.signals.types import Needs


def method_of(given: Any, parameters: dict[str, Any] | None = None) -> Method:
    """The method that is meant.

    Args:
        given: a `Method`, which is returned as it is; a name; or a name with parameters, "atpo:floor=0.5".
        parameters: of a method that is given by its name, besides those that are given with the name.

    Raises:
        ValueError: it is none of these, a parameter is given in both places, or as for `tokencredit.method`.
    """
    if not isinstance(given, str):
        _check_is_method(given)
        if parameters:
            raise ValueError(
                f"the method {given.name} is an object, which has its parameters already: give it all of them"
            )
        return given
    name, of_text = parse_spec(given)
    parameters = parameters or {}
    if repeated := [key for key in of_text if key in parameters]:
        raise ValueError(f"{given!r} gives {', '.join(repeated)} too: give each parameter in one place only")
    return build_method(name, **of_text, **parameters)


def name_and_parameters(method: Method) -> tuple[str, dict[str, Any]] | None:
    """What `method(name, **parameters)` makes an equal method of, in types of JSON; None for a class of the user's own.

    Parameters that have their default value are left out.
    """
    if type(method) is not _METHODS.get(method.name):
        return None
    return method.name, _changed(method)


def described(method: Method) -> tuple[str, dict[str, Any]]:
    """`name_and_parameters`, with the class of the user's own in place of a name, as package.module:Class.

    Parameters of such a class that JSON has no type for, such as tensors, are described by their `repr`.
    """
    if (named := name_and_parameters(method)) is not None:
        return named
    parameters = {name: _in_json(value) for name, value in _changed(method).items()}
    return f"{type(method).__module__}:{type(method).__qualname__}", parameters


def check_pickles(method: Method) -> None:
    """Raise a ValueError where the object cannot be kept in a checkpoint beside the settings of its run."""
    try:
        pickle.dumps(method)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the method {method.name} cannot be saved in a checkpoint ({error}): define its class "
            f"{type(method).__qualname__} at the top level of a module"
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


def _changed(method: Method) -> dict[str, Any]:
    if not is_dataclass(method):
        return {}
    values = {f.name: (getattr(method, f.name), f.default) for f in fields(method)}
    return {name: plain(value) for name, (value, default) in values.items() if _differs(value, default)}


def _differs(value: Any, default: Any) -> bool:
    """Arrays and tensors, whose comparison has many truth values, differ unless they are the same object."""
    if value is default:
        return False
    try:
        unequal = value != default
        return unequal if isinstance(unequal, bool) else getattr(unequal, "ndim", None) != 0 or bool(unequal)
    except (TypeError, ValueError, RuntimeError):  # of a tuple that holds arrays
        return True


def _in_json(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def plain(value: Any) -> Any:
    """`value` in types of JSON, where it has such: numbers of NumPy are Python's, and tuples are lists."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
