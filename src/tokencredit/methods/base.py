"""What every method is, and the arithmetic that several share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Rational, Real
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tokencredit.credit import Credit
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


class Method(Protocol):
    """A frozen dataclass of parameters that turns signals into credit.

    Two optional class attributes say more about it: `sign_only` (bool, False where it is absent), that it has weights,
    which depend on the outcome advantage by its sign alone; and `uniform_because`, which maps the name of a diagnostic,
    1 where a completion was left uniform, to an explanation for the user (see `tokencredit.notices`).
    """

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """The signals it reads."""
        ...

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        """Credit for every completion; pure.

        Args:
            advantages: (B,) outcome advantages.
            signals: what `collect(policy, rollouts, needs)` returned.
            step: the training step, for methods with a schedule.
        """
        ...


def top_count(q: float, length: int) -> int:
    """How many tokens "the top q" of a completion are: max(1, floor(q * length)), with 0.4 * 10 counted as 4."""
    return max(1, math.floor(q * length + 1e-9))


def top_mask(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """(B, T) bool: each row's top q by value among its masked tokens (`top_count`), ties to the earlier token."""
    order = values.masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    count = torch.tensor([top_count(q, n) for n in mask.sum(1).tolist()], device=mask.device)
    return (rank < count[:, None]) & mask


def all_zero(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) bool: `values` (B, T) are 0 on every masked token of a row, which has at least one."""
    return mask.any(1) & ~((values != 0) & mask).any(1)


def step_means(values: Tensor, step_index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `values` (B, T) over each step's tokens.

    Args:
        step_index: (B, T) long, -1 outside the steps.

    Returns:
        (B, K), 0 for a step without tokens, and (B, K) bool, the steps that have tokens; K is at least 1.
    """
    steps = max(1, int(step_index.max()) + 1)
    index = torch.where(step_index >= 0, step_index, steps)
    total = torch.zeros(len(values), steps + 1, dtype=values.dtype, device=values.device).scatter_add(1, index, values)
    count = torch.zeros_like(total).scatter_add(1, index, torch.ones_like(values))
    return (total / count.clamp(min=1))[:, :steps], count[:, :steps] > 0


def check_heads(name: str, heads: Any, found_by: str) -> tuple[tuple[int, int], ...]:
    """(layer, head) pairs as tuples. Raises a ValueError unless there is at least one, of whole numbers."""
    pairs = [tuple(pair) if isinstance(pair, Sequence) else () for pair in heads] if isinstance(heads, Sequence) else []
    if not pairs or not all(len(pair) == 2 and all(type(i) is int for i in pair) for pair in pairs):
        raise ValueError(
            f"{name} must be (layer, head) pairs, at least one, such as ((16, 2), (20, 9)), which {found_by} finds; "
            f"got {shown(heads)}"
        )
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{name} names a head twice: {shown(heads)}")
    return tuple((layer, head) for layer, head in pairs)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise a ValueError unless `value` is a finite number in [low, high], or (low, high] with `open_low`."""
    if not _is_float32(value) or not (low < value if open_low else low <= value) or not value <= high:
        range_ = f"{'(' if open_low else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a number in {range_}; got {shown(value)}")


def _is_float32(value: Any) -> bool:
    """`value` is a number that float32 can hold, since credit is float32; True and False are not numbers."""
    fraction = isinstance(value, Rational) and not isinstance(value, Integral)
    if not isinstance(value, Real) or isinstance(value, bool) or fraction:
        return False
    # This comparison is exact for whole numbers of any size, and False for NaN.
    size: Any = abs(value)
    return bool(size <= torch.finfo(torch.float32).max)


def check_whole(name: str, value: Any, low: int, high: int = 10**9) -> None:
    """Raise a ValueError unless `value` is a whole number in [low, high]. True and False are not numbers."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}; got {shown(value)}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}")


def shown(value: Any) -> str:
    """A refused value for a message, on one line and at most 80 characters long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        # Python refuses to print whole numbers of more than 4300 digits.
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."
