"""A user's completions and what is known about them, from a file (see `tokencredit.labelled`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokencredit.audit.truth import Truth
from tokencredit.labelled import LABELS, LabelledRow, fitting, labelled_row, padded_right, rollouts_of
from tokencredit.long_traces import LongTraces
from tokencredit.rewards.base import known_correct
from tokencredit.rollouts import Rollouts, numbered
from tokencredit.tables import read_each


class AuditedTraces(NamedTuple):
    """Completions, what is known about them, and what became of those that are longer than the model's context."""

    rollouts: Rollouts
    truth: Truth
    long: LongTraces


def load_traces(
    path: Path | str, tokenizer: Any, *, chat: bool = False, context: int | None = None, long_traces: str = "refuse"
) -> AuditedTraces:
    """Completions of the same prompt are a group. Where a row does not give `correct`, it is wrong if it has
    `first_error`, or else what its reward says, 0 or 1, or else correct.

    Errors in a completion that still ends right are not audited: its tokens get credit, not blame. The arguments are
    those of `load_labelled`.

    Raises:
        ValueError: a row is broken (its place is named), has none of `correct`, `first_error`, `essential` and
            `reward`, has a reward other than 0 and 1 but neither `correct` nor `first_error`, or is too long.
    """
    known = read_each(
        path, lambda row: _known(labelled_row(row, tokenizer, chat=chat)), typed=LABELS, content="completion"
    )
    rows, long = fitting(known, context, long_traces)
    correct = torch.tensor([row.correct is not False for row in rows])
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
    return AuditedTraces(rollouts, truth, long)


def _known(row: LabelledRow) -> LabelledRow:
    """The row with its correctness, if there is something to audit credit against."""
    unlabelled = all(label is None for label in row.essential)
    if row.correct is None and row.first_error is None and row.reward is None and unlabelled:
        raise ValueError(
            "the row says neither correct nor first_error nor essential nor reward, so there is nothing to audit "
            "credit against"
        )
    if row.correct is not None or row.reward is None:
        return row
    (correct,) = known_correct([row.reward])
    if correct is None:
        raise ValueError(f"the reward {row.reward:g} does not say whether the completion is correct: add correct")
    return row._replace(correct=correct)
