"""Completions of a testbed policy whose steps are labelled, to find its key-focus heads on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.labelled import Labelled
from tokencredit.steps import TokenPieces
from tokencredit.testbed.evaluate import sample
from tokencredit.testbed.tasks import Labels, Problem, Task, label_tokens


def labelled_completions(
    policy: nn.Module,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> Labelled:
    """One completion a problem, labelled exactly; only correct ones keep their answer, and so count for heads.

    A step that is said twice has no label: its first saying is called essential, but either would do, and an answer may
    well read the second.
    """
    prompts = [p.prompt for p in problems]
    limit = task.max_new_tokens
    rollouts = sample(policy, tokenizer, prompts, max_new_tokens=limit, temperature=temperature, seed=seed)
    pieces_of = TokenPieces(tokenizer)
    step_index = torch.full(rollouts.completion_ids.shape, -1)
    answer_start = torch.full((len(rollouts),), -1)
    essential: list[list[bool]] = []
    counted: list[list[bool]] = []
    for i, (problem, length) in enumerate(zip(problems, rollouts.lengths.tolist(), strict=True)):
        pieces = pieces_of(rollouts.completion_ids[i, :length].tolist())
        text = "".join(pieces)
        found = task.label(problem, text)
        counted.append(said_once(found, text))
        labels = label_tokens(found, pieces)
        essential.append(labels.essential)
        if labels.correct:
            answer_start[i] = labels.answer_start
            step_index[i, :length] = torch.tensor(labels.step_index)
    marked = replace(rollouts, answer_start=answer_start, step_index=step_index)
    return Labelled(marked, _padded(essential), _padded(counted))


def said_once(labels: Labels, text: str) -> list[bool]:
    """Which of the labelled steps of a completion are said only once, re-checks left aside."""
    said = [re.sub(r"^(?:wait)*|;$", "", text[step.start : step.end]) for step in labels.steps]
    return [said.count(body) == 1 for body in said]


def _padded(rows: list[list[bool]]) -> Tensor:
    """(B, K), False behind the end of a row."""
    width = max(1, *map(len, rows))
    return torch.tensor([row + [False] * (width - len(row)) for row in rows])
