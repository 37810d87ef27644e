"""A batch of rollouts on the completion grid.

Shapes, here and everywhere: B completions, P prompt tokens, T completion tokens, N = P + T, L layers, H heads,
K reasoning steps, D hidden width.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokencredit.inputs import as_tensor
from tokencredit.padding import padded_left


@dataclass(frozen=True, eq=False)
class Rollouts:
    """B completions with their prompts, in the layout that TRL and verl use.

    Every field is stored as a tensor, and may be given as a list or a NumPy array too, which is converted exactly.
    `from_lists` pads lists of different lengths and makes their masks. Masks and `correct` are stored as bool, and may
    be given as numbers that are 0 or 1; ids, `group`, `answer_start` and `step_index` are stored as long, and may be
    given as whole numbers of any type that holds them exactly. Python's floats are stored in float64.

    Args:
        prompt_ids: (B, P) token ids, left-padded. None is negative, not even on padding: models are given them all.
        prompt_mask: (B, P), 1 on real tokens. Every prompt has at least one.
        completion_ids: (B, T) token ids, right-padded.
        completion_mask: (B, T), 1 on real tokens. A completion of no tokens is allowed and gets no credit.
        rewards: (B,) float, finite.
        group: (B,) long, which prompt a completion answers. A list may hold texts, such as the prompts or their ids:
            equal ones are one group.
        correct: (B,) bool, whether its answer is right.
        answer_start: (B,) long, the first answer token in the completion, -1 where there is none. None means that
            nobody looked yet: see `mark_spans`.
        step_index: (B, T) long, the number of the reasoning step a token belongs to, -1 outside the steps.
        group_correct: (B,) float in 0..1, the fraction of the completion's whole group that is correct. It is for
            batches that hold only a part of a group; without it the fraction is that of `correct` in the batch.

    Raises:
        ValueError: a field cannot be made a tensor, shapes disagree, a mask is padded on the wrong side, a value is
            NaN, out of range, or not of the field's type: it would be truncated or may have been rounded.
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
        _make_tensors(self)
        _check_shapes(self)
        for name, dtype in _DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, exactly(name, value, dtype))
        _check_values(self)

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Any],
        completion_ids: Sequence[Any],
        *,
        step_index: Sequence[Any] | None = None,
        **fields_of_rows: Any,
    ) -> Rollouts:
        """Rollouts from token ids without padding: one list per completion.

        Prompts are padded on the left and completions on the right, with token 0 under a mask of 0. Where completions
        are given as texts, `tokenizer(texts, add_special_tokens=False).input_ids` has their ids: many tokenizers would
        otherwise put a token for the beginning of the sequence at the start of each, which the policy did not generate.
        The token for the end of the sequence is not added either.

        Args:
            prompt_ids: B lists of token ids, one for each completion: a prompt stands there once for each of its
                completions.
            completion_ids: B lists of token ids.
            step_index: B lists, of a completion's length each.
            fields_of_rows: `rewards`, `group`, `correct`, `answer_start` and `group_correct`, as in `Rollouts`.

        Raises:
            ValueError: the numbers of prompts and completions differ, a row is no list of token ids, or as for
                `Rollouts`.
        """
        prompts, completions = _rows_of_ids("prompt_ids", prompt_ids), _rows_of_ids("completion_ids", completion_ids)
        if len(prompts) != len(completions):
            raise ValueError(
                f"there are {len(prompts)} prompts and {len(completions)} completions: give a prompt for each "
                "completion, the same one several times where it has several"
            )
        steps = None if step_index is None else _rows_of_ids("step_index", step_index)
        lengths = [len(row) for row in completions]
        if steps is not None and [len(row) for row in steps] != lengths:
            raise ValueError("step_index must have a number for each token of each completion")
        left, left_mask = padded_left([row.tolist() for row in prompts], 0)
        width = max(1, *lengths)
        return cls(
            prompt_ids=left,
            prompt_mask=left_mask,
            completion_ids=_padded_right(completions, 0, width),
            completion_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
            step_index=None if steps is None else _padded_right(steps, -1, width),
            **fields_of_rows,
        )

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


_ORDER = "the order of the first four is prompt_ids, prompt_mask, completion_ids, completion_mask"


def _make_tensors(r: Rollouts) -> None:
    """Replace lists and arrays by tensors, on the device of the ids."""
    given = [value for value in (r.completion_ids, r.prompt_ids) if isinstance(value, Tensor)]
    device = given[0].device if given else None
    for f in fields(r):
        value = getattr(r, f.name)
        if value is None and f.name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
            raise ValueError(f"{f.name} must be a tensor, an array or a list; got None")
        if value is None:
            continue
        made = group_numbers(value, device) if f.name == "group" else as_tensor(f.name, value, device)
        if made.is_complex():
            raise ValueError(f"{f.name} must be real numbers; got {made.dtype}")
        object.__setattr__(r, f.name, made)


def group_numbers(group: Any, device: torch.device | None = None) -> Tensor:
    """(B,): which group each completion belongs to, as numbers; a list of texts may name the groups too."""
    named = isinstance(group, list | tuple) and bool(group) and all(isinstance(key, str) for key in group)
    return as_tensor("group", numbered(group) if named else group, device)


def exactly(name: str, value: Tensor, dtype: torch.dtype, row: int = 0) -> Tensor:
    """`value` as `dtype`, which is bool or long.

    Args:
        row: the completion that the first row of `value` belongs to, for messages.

    Raises:
        ValueError: the conversion would change a value, or a value may be the result of rounding.
    """
    if value.dtype == dtype:
        return value
    converted = value.to(dtype)
    _refuse_first(converted.to(value.dtype) != value, name, value, _EXPECTED[dtype], row)
    if value.dtype.is_floating_point:
        # This number is exact, but the next one is rounded to it, so it may stand for either.
        exact = 2 / torch.finfo(value.dtype).eps
        rounded = f"is given in {value.dtype}, which rounds from {exact:g} on: give integers"
        _refuse_first(value.abs() >= exact, name, value, rounded, row)
    return converted


_TOKENIZE = {
    "prompt_ids": "tokenizer(texts).input_ids",
    "completion_ids": "tokenizer(texts, add_special_tokens=False).input_ids",
    "step_index": "tc.mark_spans(rollouts, tokenizer)",
}
"""What makes the numbers of a field out of texts."""


def _rows_of_ids(name: str, rows: Any) -> list[Tensor]:
    """B lists of whole numbers, of any lengths, as tensors (n,)."""
    if isinstance(rows, str) or (not isinstance(rows, Tensor) and not hasattr(rows, "__len__")) or len(rows) == 0:
        shown = f"{rows!r:.60}"
        raise ValueError(f"{name} must be lists of token ids, one per completion, at least one; got {shown}")
    made = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            raise ValueError(f"{name} must be lists of token ids; row {i} is text: {_TOKENIZE[name]} has them")
        ids = as_tensor(f"row {i} of {name}", row).cpu()
        if ids.ndim != 1:
            raise ValueError(f"{name} must be lists of token ids; row {i} has shape {tuple(ids.shape)}")
        made.append(exactly(name, ids[None], torch.long, i)[0])
    return made


def _padded_right(rows: list[Tensor], fill: int, width: int) -> Tensor:
    return pad_sequence([*rows, torch.zeros(width, dtype=torch.long)], batch_first=True, padding_value=fill)[:-1]


def _check_shapes(r: Rollouts) -> None:
    for name in ("prompt", "completion"):
        ids, mask = getattr(r, f"{name}_ids"), getattr(r, f"{name}_mask")
        if ids.ndim != 2:
            raise ValueError(f"{name}_ids must be 2-D, one row a completion; got shape {tuple(ids.shape)}")
        if mask.shape != ids.shape:
            raise ValueError(
                f"{name}_mask has shape {tuple(mask.shape)}, but {name}_ids has {tuple(ids.shape)}: they must be equal"
                f"; {_ORDER}"
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
    on_the_right = (r.prompt_mask[:, :-1] & ~r.prompt_mask[:, 1:]).any(1)
    on_the_left = (~r.completion_mask[:, :-1] & r.completion_mask[:, 1:]).any(1)
    swapped = f"; prompts and completions may be swapped: {_ORDER}" if on_the_left.any() and on_the_right.any() else ""
    _refuse_rows(
        on_the_right,
        "prompt_mask must be left-padded (0s then 1s)" + (swapped or ', as tokenizer.padding_side = "left" does'),
    )
    _refuse_rows(on_the_left, f"completion_mask must be right-padded (1s then 0s){swapped}")
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


def _refuse_first(bad: Tensor, name: str, values: Tensor, expected: str, row: int = 0) -> None:
    """Raise a ValueError that names the first of the `bad` values, if there is any, and its row."""
    if bad.any():
        first = bad.nonzero()[0].tolist()
        raise ValueError(f"completion {row + first[0]}: {name} {expected}; got {values[tuple(first)].item():g}")


def _refuse_rows(bad: Tensor, why: str) -> None:
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise ValueError(f"completion {', '.join(map(str, rows[:5]))}{more}: {why}")
