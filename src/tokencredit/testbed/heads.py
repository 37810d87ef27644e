"""Key-focus heads of a testbed policy, found on completions whose essential steps are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tokencredit.heads import HeadRank, rank_heads
from tokencredit.steps import TokenPieces
from tokencredit.testbed.evaluate import sample
from tokencredit.testbed.tasks import Problem, Task, label_tokens


def key_focus_heads(
    policy: nn.Module, tokenizer: Any, task: Task, problems: Sequence[Problem], *, seed: int = 0
) -> list[HeadRank]:
    """All heads, best first, by step ranking accuracy on one sampled completion a problem; correct ones count.

    Raises:
        ValueError: no correct completion has both an essential and a redundant step.
    """
    prompts = [p.prompt for p in problems]
    rollouts = sample(policy, tokenizer, prompts, max_new_tokens=task.max_new_tokens, seed=seed)
    pieces_of = TokenPieces(tokenizer)
    step_index = torch.full(rollouts.completion_ids.shape, -1)
    answer_start = torch.full((len(rollouts),), -1)
    essential: list[list[bool]] = []
    for i, (problem, length) in enumerate(zip(problems, rollouts.lengths.tolist(), strict=True)):
        pieces = pieces_of(rollouts.completion_ids[i, :length].tolist())
        labels = label_tokens(task.label(problem, "".join(pieces)), pieces)
        essential.append(labels.essential)
        if labels.correct:
            answer_start[i] = labels.answer_start
            step_index[i, :length] = torch.tensor(labels.step_index)
    most = max(map(len, essential), default=0)
    padded = torch.tensor([row + [False] * (most - len(row)) for row in essential])
    marked = replace(rollouts, answer_start=answer_start, step_index=step_index)
    return rank_heads(policy, marked, padded)
