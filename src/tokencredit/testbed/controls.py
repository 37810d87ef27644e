"""Credit that no method could have: by the ground truth, and a method's own dealt out at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tokencredit.audit.controls import shuffled
from tokencredit.credit import Credit, multiplicative, salience_weights
from tokencredit.steps import TokenPieces
from tokencredit.testbed.lean import AssignCredit, Batch
from tokencredit.testbed.tasks import Task, label_tokens

_FLOOR = 0.1
"""What a token that does not matter gets, of what one that matters gets."""


def oracle_credit(task: Task, tokenizer: Any) -> AssignCredit:
    """Weights of mean one: in a correct completion on the essential steps and the answer, else on the first error.

    No upper bound: in a wrong completion of 60 tokens, the floor leaves a seventh of the blame on the error.
    """
    pieces_of = TokenPieces(tokenizer)

    def assign(batch: Batch) -> Credit:
        rollouts = batch.rollouts
        matters = torch.zeros_like(rollouts.completion_mask)
        assert rollouts.group is not None
        for i, (group, length) in enumerate(zip(rollouts.group.tolist(), rollouts.lengths.tolist(), strict=True)):
            pieces = pieces_of(rollouts.completion_ids[i, :length].tolist())
            labels = label_tokens(task.label(batch.problems[group], "".join(pieces)), pieces)
            if labels.correct:
                essential = [k >= 0 and labels.essential[k] for k in labels.step_index]
                matters[i, :length] = torch.tensor(essential)
                matters[i, labels.answer_start : length] = True
            elif labels.first_error is not None:
                matters[i, labels.first_error] = True
        weights = salience_weights(matters.float(), rollouts.completion_mask, _FLOOR / (1 - _FLOOR))
        return multiplicative(rollouts, batch.advantages, weights)

    return assign


def shuffled_credit(assign: AssignCredit, seed: int) -> AssignCredit:
    """The credit of `assign`, its values dealt out at random within each completion, anew in each batch."""
    generator = torch.Generator().manual_seed(seed)

    def assign_shuffled(batch: Batch) -> Credit:
        credit = assign(batch)
        dealt = shuffled(credit.advantages, batch.rollouts.completion_mask, generator)
        return replace(credit, advantages=dealt, weights=None, bonus=None)

    return assign_shuffled
