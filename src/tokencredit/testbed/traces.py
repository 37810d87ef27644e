"""Traces: completions with their credit, beside the truth about where it should land."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tokencredit.assignment import assign
from tokencredit.methods import Method
from tokencredit.steps import TokenPieces, mark_spans
from tokencredit.testbed.evaluate import completion_texts, sample
from tokencredit.testbed.tasks import Problem, Task, label_tokens, step_starts


def collect_traces(
    policy: torch.nn.Module,
    tokenizer: Any,
    task: Task,
    m: Method,
    problems: Sequence[Problem],
    *,
    group_size: int = 8,
    seed: int = 0,
    reward_model: Any = None,
) -> list[dict[str, Any]]:
    """Sample a group of completions for each problem and assign their credit.

    Returns:
        One JSON-ready row a completion: `method`, `prompt`, `tokens`, `weights`, `advantages`, `reward`, `group`; the
        labels `step_index`, `essential`, `first_error`, `answer_start`; and `diagnostics`.
    """
    asked = [p for p in problems for _ in range(group_size)]
    rollouts = sample(policy, tokenizer, [p.prompt for p in asked], max_new_tokens=task.max_new_tokens, seed=seed)
    texts = completion_texts(rollouts, tokenizer)
    correct = torch.tensor([task.verify(p, text) for p, text in zip(asked, texts, strict=True)])
    rollouts = replace(
        mark_spans(rollouts, tokenizer, step_starts),
        rewards=correct.float(),
        correct=correct,
        group=torch.arange(len(asked)) // group_size,
    )
    credit = assign(policy, rollouts, m, reward_model=reward_model)
    pieces_of = TokenPieces(tokenizer)
    rows = []
    for i, (problem, length) in enumerate(zip(asked, rollouts.lengths.tolist(), strict=True)):
        pieces = pieces_of(rollouts.completion_ids[i, :length].tolist())
        labels = label_tokens(task.label(problem, "".join(pieces)), pieces)
        rows.append(
            {
                "method": m.name,
                "prompt": problem.prompt,
                "tokens": pieces,
                "weights": None if credit.weights is None else _rounded(credit.weights[i, :length]),
                "advantages": _rounded(credit.advantages[i, :length]),
                "reward": float(correct[i]),
                "group": i // group_size,
                "step_index": labels.step_index,
                "essential": labels.essential,
                "first_error": labels.first_error,
                "answer_start": labels.answer_start,
                "diagnostics": {name: round(float(values[i]), 6) for name, values in credit.diagnostics.items()},
            }
        )
    return rows


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(v, 6) for v in values.tolist()]
