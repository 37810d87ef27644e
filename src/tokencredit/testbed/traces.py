"""Traces: completions with their credit, beside the truth about where it should land."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import torch

from tokencredit import outcome
from tokencredit.analysis.traces import VIEW, attention_pictures, trace_rows
from tokencredit.methods import Method
from tokencredit.signals import collect
from tokencredit.steps import find_spans
from tokencredit.testbed.evaluate import completion_texts, sample
from tokencredit.testbed.tasks import Problem, Task, label_tokens, step_starts


def collect_traces(
    policy: torch.nn.Module,
    tokenizer: Any,
    task: Task,
    methods: Mapping[str, Method],
    problems: Sequence[Problem],
    *,
    group_size: int = 8,
    seed: int = 0,
    reward_model: Any = None,
) -> list[dict[str, Any]]:
    """Sample a group of completions for each problem and assign their credit, by each of some methods.

    Returns:
        The rows of `analysis.traces.trace_rows`, with the exact labels of each completion (`step_index`, `essential`,
        `first_error`, `answer_start`) and the picture of what its answer attends to, `attention`.
    """
    asked = [p for p in problems for _ in range(group_size)]
    rollouts = sample(policy, tokenizer, [p.prompt for p in asked], max_new_tokens=task.max_new_tokens, seed=seed)
    texts = completion_texts(rollouts, tokenizer)
    correct = torch.tensor([task.verify(p, text) for p, text in zip(asked, texts, strict=True)])
    group = torch.arange(len(asked)) // group_size
    rollouts = replace(
        find_spans(rollouts, tokenizer, step_starts), rewards=correct.float(), correct=correct, group=group
    )
    signals = collect(policy, rollouts, reduce(or_, (m.needs for m in methods.values()), VIEW), reward_model)
    advantages = outcome.grpo(correct.float(), group)
    credits = {name: m(rollouts, advantages, signals) for name, m in methods.items()}
    rows = trace_rows(tokenizer, rollouts, credits, signals)
    pictures = attention_pictures(policy, rollouts)
    for problem, row, picture in zip(asked, rows, pictures, strict=True):
        labels = label_tokens(task.label(problem, "".join(row["tokens"])), row["tokens"])
        row |= {
            "step_index": labels.step_index,
            "essential": labels.essential,
            "first_error": labels.first_error,
            "answer_start": labels.answer_start,
            "attention": picture,
        }
    return rows
