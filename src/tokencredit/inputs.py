"""Arguments as users give them, lists and arrays among them, as tensors that hold exactly the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LARGEST_ID = torch.iinfo(torch.long).max


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """`value` as a tensor: a tensor itself, or a list, a nested list or an array of numbers, of which a copy is made.

    Whole numbers become long, truth values bool. Python's floats and NumPy's double precision become float64, which
    keeps them exactly; other types of floating-point numbers stay as they are.

    Args:
        name: of the argument, for messages.
        device: where what is not a tensor yet is put.

    Raises:
        ValueError: `value` is none of these, a list is ragged, or a number does not fit into 64 bits.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str | bytes) or not (isinstance(value, list | tuple) or hasattr(value, "__array__")):
        raise ValueError(
            f"{name} must be a tensor, a NumPy array or a list of numbers, nested where it has several dimensions; got "
            f"{type(value).__name__}"
        )
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        return _stacked(name, value)
    if isinstance(value, list | tuple):
        _refuse_ragged(name, value)
    array = _array(name, value)
    if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST_ID:
        raise ValueError(f"{name} has {int(array.max())}, which is larger than any 64-bit integer")
    kind = np.dtype(np.int64) if array.dtype.kind in "iu" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C")).to(device)


def _stacked(name: str, rows: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(row.shape) for row in rows]
    if len(set(shapes)) > 1:
        other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
        raise ValueError(_ragged(name, f"row 0 has shape {shapes[0]}, row {other} has {shapes[other]}"))
    return torch.stack(list(rows))


def _refuse_ragged(name: str, rows: Sequence[Any]) -> None:
    lengths = [len(row) if isinstance(row, Sequence) and not isinstance(row, str) else -1 for row in rows]
    if len(set(lengths)) > 1 and min(lengths) >= 0:
        other = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise ValueError(_ragged(name, f"row 0 has {lengths[0]} values, row {other} has {lengths[other]}"))


def _ragged(name: str, what: str) -> str:
    of_rollouts = name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "step_index")
    advice = "tc.Rollouts.from_lists pads lists of token ids, and makes their masks"
    if not of_rollouts:
        advice = "Extend the shorter rows to the length of the longest"
    return f"the rows of {name} must have equal lengths; {what}. {advice}"


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} cannot be read as an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"{name} must hold real numbers of at most 64 bits; {_culprit(array)}")
    if isinstance(value, list | tuple) and array.size == 0:
        return array.astype(np.int64)  # without any number, NumPy takes an empty list for one of floats
    if isinstance(value, list | tuple) and array.dtype.kind == "f":
        _refuse_rounded(name, value)
    return array


def _culprit(array: np.ndarray) -> str:
    """What in an array is no number, in words."""
    if array.dtype.kind == "O":
        entry: Any
        for place, entry in np.ndenumerate(array):
            too_large = isinstance(entry, int) and abs(entry) > LARGEST_ID
            if too_large or not isinstance(entry, int | float | np.number | np.bool_):
                return f"at {list(place)} it has {entry!r:.60} ({type(entry).__name__})"
    return f"it has {array.dtype}"


def _refuse_rounded(name: str, values: Any) -> None:
    """Beside a float, NumPy makes floats of whole numbers too, and rounds those of more than 53 bits."""
    for value in values:
        if isinstance(value, list | tuple):
            _refuse_rounded(name, value)
        elif isinstance(value, int | np.integer) and int(float(value)) != int(value):
            raise ValueError(f"{name} has {value}, which a floating-point number cannot hold: give whole numbers only")


def check_model(model: Any, rollouts: Any, call: str, *, optional: bool = False) -> None:
    """Raise a ValueError unless the first arguments of `call` are a loaded model and rollouts, in this order.

    Args:
        optional: the model may also be None.
    """
    from tokencredit.rollouts import Rollouts

    if isinstance(model, Rollouts):
        raise ValueError(f"the policy comes first, then the rollouts: {call}")
    if not isinstance(model, nn.Module) and not (optional and model is None):
        hint = ", which AutoModelForCausalLM.from_pretrained(...) loads" if isinstance(model, str) else ""
        raise ValueError(f"the policy must be a loaded transformers model{hint}: {call}; got {type(model).__name__}")
    if not isinstance(rollouts, Rollouts):
        raise ValueError(f"the rollouts must be a tc.Rollouts: {call}; got {type(rollouts).__name__}")
