"""The methods: one file each, pure functions of rollouts, outcome advantages and signals.

A new method is one file beside these and one line in `_METHODS`.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

from tokencredit.methods.arca import ARCA
from tokencredit.methods.atpo import ATPO
from tokencredit.methods.attnpo import AttnPO
from tokencredit.methods.base import Method
from tokencredit.methods.divergence import Divergence
from tokencredit.methods.entropy import Entropy
from tokencredit.methods.entropy_reduction import EntropyReduction
from tokencredit.methods.entropy_selection import EntropySelection
from tokencredit.methods.p2t import P2T
from tokencredit.methods.position import Position
from tokencredit.methods.random import Random
from tokencredit.methods.rhythm import Rhythm
from tokencredit.methods.surprisal import Surprisal
from tokencredit.methods.uniform import Uniform

__all__ = ["Method", "method", "methods", "parameters_of", "required_parameters"]

_METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        ARCA,
        ATPO,
        AttnPO,
        Divergence,
        Entropy,
        EntropyReduction,
        EntropySelection,
        P2T,
        Position,
        Random,
        Rhythm,
        Surprisal,
        Uniform,
    )
}


def methods() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_METHODS)


def method(name: str, **params: Any) -> Method:
    """A method by name, a frozen dataclass of its parameters: `method("atpo", floor=0.0)`.

    Raises:
        ValueError: an unknown name or parameter (the message lists the valid ones), or a value out of range.
    """
    if not isinstance(name, str) or name not in _METHODS:
        guess = get_close_matches(str(name), _METHODS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"unknown method {name!r}{hint} Valid methods: {', '.join(methods())}")
    valid = parameters_of(name)
    unknown = sorted(params.keys() - set(valid))
    if unknown:
        raise ValueError(
            f"{name} has no parameter {', '.join(map(repr, unknown))}. "
            f"Valid parameters: {', '.join(valid) if valid else 'none'}"
        )
    missing = [parameter for parameter in required_parameters(name) if parameter not in params]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}, which depends on the model: see its documentation")
    return _METHODS[name](**params)


def parameters_of(name: str) -> list[str]:
    """The names of a method's parameters."""
    return [f.name for f in fields(_METHODS[name])]  # type: ignore[arg-type]


def required_parameters(name: str) -> list[str]:
    """The parameters of a method that have no default, because they depend on the model."""
    return [f.name for f in fields(_METHODS[name]) if f.default is MISSING]  # type: ignore[arg-type]
