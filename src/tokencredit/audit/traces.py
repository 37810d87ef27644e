"""A user's completions and what is known about them, from JSON Lines (see `tokencredit.labelled`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tokencredit.audit.truth import Truth
from tokencredit.labelled import LabelledRow, padded_right, read_rows, rollouts_of
from tokencredit.rollouts import Rollouts, numbered


def load_traces(path: Path, tokenizer: Any) -> tuple[Rollouts, Truth]:
    """Completions of the same prompt are a group. One whose correctness is not given is wrong if it has an error.

    Errors in a completion that still ends right are not audited: its tokens get credit, not blame.

    Raises:
        ValueError: a line is broken (its number is named), or says neither `correct` nor `first_error` nor `essential`.
    """
    rows = read_rows(path, tokenizer)
    if unknown := [i for i, row in enumerate(rows, start=1) if not _says_something(row)]:
        raise ValueError(
            f"{path}: completion {unknown[0]} says neither correct nor first_error nor essential, so there is nothing "
            "to audit credit against"
        )
    correct = torch.tensor([row.first_error is None if row.correct is None else row.correct for row in rows])
    group = torch.tensor(numbered(tuple(row.prompt) for row in rows))
    rollouts = replace(rollouts_of(rows), correct=correct, group=group)
    assert rollouts.step_index is not None
    truth = Truth(
        correct=correct,
        step_index=rollouts.step_index,
        essential=padded_right([[label is True for label in row.essential] for row in rows], False),
        labelled=padded_right([[label is not None for label in row.essential] for row in rows], False),
        error=padded_right([[part == row.first_error for part in row.part] for row in rows], False) & ~correct[:, None],
    )
    return rollouts, truth


def _says_something(row: LabelledRow) -> bool:
    return row.correct is not None or row.first_error is not None or any(label is not None for label in row.essential)
