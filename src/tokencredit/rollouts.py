"""A batch of rollouts on the completion grid.

Shapes, here and everywhere: B completions, P prompt tokens, T completion tokens, N = P + T, L layers, H heads,
K reasoning steps, D hidden width.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rollouts:
    """B completions with their prompts, in the layout that TRL and verl use.

    Every field is a tensor. Masks and `correct` are stored as bool, and may be given as numbers that are 0 or 1; ids,
    `group`, `answer_start` and `step_index` are stored as long, and may be given as whole numbers of any type.

    Args:
        prompt_ids: (B, P) token ids, left-padded. None is negative, not even on padding: models are given them all.
        prompt_mask: (B, P), 1 on real tokens. Every prompt has at least one.
        completion_ids: (B, T) token ids, right-padded.
        completion_mask: (B, T), 1 on real tokens. A completion of no tokens is allowed and gets no credit.
        rewards: (B,) float, finite.
        group: (B,) long, which prompt a completion answers.
        correct: (B,) bool, whether its answer is right.
        answer_start: (B,) long, the first answer token in the completion, -1 where there is none. None means that
            nobody looked yet: see `mark_spans`.
        step_index: (B, T) long, the number of the reasoning step a token belongs to, -1 outside the steps.
        group_correct: (B,) float in 0..1, the fraction of the completion's whole group that is correct. It is for
            batches that hold only a part of a group; without it the fraction is that of `correct` in the batch.

    Raises:
        ValueError: a field is no tensor, shapes disagree, a mask is padded on the wrong side, a value is NaN, out of
            range, or not of the field's type: it would be truncated.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    rewards: Tensor | None = None
    group: Tensor | None = None
    correct: Tensor | None = None
    answer_start: Tensor | None = None
    step_index: Tensor | None = None
    group_correct: Tensor | None = None

    def __post_init__(self) -> None:
        _check_tensors(self)
        _check_shapes(self)
        for name, dtype in _DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _exactly(name, value, dtype))
        _check_values(self)

    def __len__(self) -> int:
        """B, the number of completions."""
        return self.completion_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(B,) long: T_i, the number of real tokens of each completion."""
        return self.completion_mask.sum(1)

    @property
    def input_ids(self) -> Tensor:
        """(B, N): prompt and completion side by side."""
        return torch.cat([self.prompt_ids, self.completion_ids], 1)

    @property
    def attention_mask(self) -> Tensor:
        """(B, N) bool: the real tokens of prompt and completion."""
        return torch.cat([self.prompt_mask, self.completion_mask], 1)

    @property
    def position_ids(self) -> Tensor:
        """(B, N) long: positions count real tokens only, so padding never shifts them."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def has_answer(self) -> Tensor:
        """(B,) bool: an answer span is known.

        Raises:
            ValueError: `answer_start` was never filled.
        """
        return self._known_answer_start >= 0

    @property
    def _known_answer_start(self) -> Tensor:
        if self.answer_start is None:
            raise ValueError(
                "the answer spans are not known (answer_start is None): call tc.mark_spans(rollouts, tokenizer), or "
                "pass answer_start to Rollouts with -1 where a completion has no answer"
            )
        return self.answer_start

    @property
    def answer_mask(self) -> Tensor:
        """(B, T) bool: the answer tokens; all False where there is no answer."""
        start = self._known_answer_start[:, None]
        position = torch.arange(self.completion_ids.shape[1], device=self.completion_ids.device)
        return (position >= start) & (start >= 0) & self.completion_mask

    @property
    def reasoning_mask(self) -> Tensor:
        """(B, T) bool: the tokens before the answer; all False where there is no answer."""
        return self.completion_mask & ~self.answer_mask & self.has_answer[:, None]

    def rows(self, index: slice | Tensor) -> Rollouts:
        """The completions of a slice of rows, or of the rows that a tensor numbers."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return Rollouts(**taken)


_DTYPES = {
    "prompt_ids": torch.long,
    "completion_ids": torch.long,
    "prompt_mask": torch.bool,
    "completion_mask": torch.bool,
    "correct": torch.bool,
    "group": torch.long,
    "answer_start": torch.long,
    "step_index": torch.long,
}


_EXPECTED = {
    torch.bool: "must be true or false (a bool tensor, or numbers that are exactly 0 or 1)",
    torch.long: "must be a whole number",
}


def _check_tensors(r: Rollouts) -> None:
    for f in fields(r):
        value = getattr(r, f.name)
        if isinstance(value, Tensor) and not value.is_complex():
            continue
        if isinstance(value, Tensor):
            raise ValueError(f"{f.name} must be real numbers; got {value.dtype}")
        if value is not None or f.name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
            raise ValueError(
                f"{f.name} must be a torch tensor; got {type(value).__name__}: convert it with torch.as_tensor(...)"
            )


def _exactly(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` as `dtype`; a ValueError where the conversion would change a value."""
    if value.dtype == dtype:
        return value
    converted = value.to(dtype)
    _refuse_first(converted.to(value.dtype) != value, name, value, _EXPECTED[dtype])
    return converted


def _check_shapes(r: Rollouts) -> None:
    for name in ("prompt", "completion"):
        ids, mask = getattr(r, f"{name}_ids"), getattr(r, f"{name}_mask")
        if ids.ndim != 2:
            raise ValueError(f"{name}_ids must be 2-D, one row a completion; got shape {tuple(ids.shape)}")
        if mask.shape != ids.shape:
            raise ValueError(
                f"{name}_mask has shape {tuple(mask.shape)}, but {name}_ids has {tuple(ids.shape)}: they must be equal"
            )
        if ids.shape[1] == 0:
            raise ValueError(f"{name}_ids has no column: even an empty {name} has one, masked with 0")
    batch, length = r.completion_ids.shape
    expected: dict[str, tuple[int, ...]] = {"prompt_ids": (batch, r.prompt_ids.shape[1]), "step_index": (batch, length)}
    expected |= dict.fromkeys(("rewards", "group", "correct", "answer_start", "group_correct"), (batch,))
    for name, shape in expected.items():
        value = getattr(r, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} for {batch} completions; got {tuple(value.shape)}")


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Equal keys get the same number: 0, 1, ... in the order in which they first come."""
    listed = list(keys)
    number = {key: i for i, key in enumerate(dict.fromkeys(listed))}
    return [number[key] for key in listed]


def _check_values(r: Rollouts) -> None:
    for name in ("prompt_ids", "completion_ids"):
        _refuse_first(getattr(r, name) < 0, name, getattr(r, name), "must be token ids, which are not negative")
    _refuse_rows(~r.prompt_mask.any(1), "prompt has no token (its prompt_mask is all 0)")
    _refuse_rows((r.prompt_mask[:, :-1] & ~r.prompt_mask[:, 1:]).any(1), "prompt_mask must be left-padded (0s then 1s)")
    _refuse_rows(
        (~r.completion_mask[:, :-1] & r.completion_mask[:, 1:]).any(1),
        "completion_mask must be right-padded (1s then 0s)",
    )
    if r.rewards is not None:
        _refuse_rows(~torch.isfinite(r.rewards), "reward is NaN or infinite")
    if r.group_correct is not None:
        _refuse_rows(~((r.group_correct >= 0) & (r.group_correct <= 1)), "group_correct must be a fraction in 0..1")
    if r.answer_start is not None:
        _refuse_rows(
            (r.answer_start < -1) | ((r.answer_start >= r.lengths) & (r.answer_start >= 0)),
            "answer_start must be -1 (no answer) or the index of one of the completion's tokens",
        )
    if r.step_index is not None:
        _refuse_rows((r.step_index < -1).any(1), "step_index must be -1 (outside the steps) or a step's number")


def _refuse_first(bad: Tensor, name: str, values: Tensor, expected: str) -> None:
    """Raise a ValueError that names the first of the `bad` values, if there is any, and its row."""
    if bad.any():
        first = bad.nonzero()[0].tolist()
        raise ValueError(f"completion {first[0]}: {name} {expected}; got {values[tuple(first)].item():g}")


def _refuse_rows(bad: Tensor, why: str) -> None:
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise ValueError(f"completion {', '.join(map(str, rows[:5]))}{more}: {why}")
