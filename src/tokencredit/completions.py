"""A user's completions, from JSON Lines, as rollouts whose spans are marked.

One completion a line, in one of two layouts. Plain text, whose steps a splitter finds:

    {"prompt": "...", "completion": "... </think> ...", "correct": true, "reward": 1.0}

or with its steps, and what is known about them, as `tokencredit.labelled` reads it. `prompt` may be chat messages,
which go through the tokenizer's chat template; `correct` and `reward` may be left out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokencredit.labelled import padded_right, prompt_ids, read_rows, rollouts_of
from tokencredit.padding import padded_left
from tokencredit.rollouts import Rollouts
from tokencredit.steps import Splitter, mark_spans


class Completions(NamedTuple):
    """`labels`: of each completion `essential`, a label a step, and `first_error`, a token; empty where unknown."""

    rollouts: Rollouts
    labels: list[dict[str, Any]]


def load_completions(
    path: Path, tokenizer: Any, splitter: str | Splitter = "phrases", *, end_of_reasoning: str = "</think>"
) -> Completions:
    """Completions of the same prompt are a group.

    Raises:
        ValueError: a line is broken (its number is named), the file mixes the layouts, or there is no completion.
    """
    with path.open(encoding="utf-8") as lines:
        plain = '"completion"' in next((line for line in lines if line.strip()), "")
    if plain:
        marked = mark_spans(_plain(path, tokenizer), tokenizer, splitter, end_of_reasoning=end_of_reasoning)
        return Completions(_grouped(marked), [{} for _ in range(len(marked))])
    rows = read_rows(path, tokenizer)
    rollouts = rollouts_of(rows)
    if all(row.correct is not None for row in rows):
        rollouts = replace(rollouts, correct=torch.tensor([row.correct for row in rows]))
    labels = [
        {
            "essential": row.essential,
            "first_error": None if row.first_error is None else row.part.index(row.first_error),
        }
        for row in rows
    ]
    return Completions(_grouped(rollouts), labels)


def _plain(path: Path, tokenizer: Any) -> Rollouts:
    prompts, completions, correct, rewards = [], [], [], []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = _checked(json.loads(line))
                prompts.append(prompt_ids(record["prompt"], tokenizer))
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            completions.append(list(tokenizer(record["completion"], add_special_tokens=False).input_ids))
            correct.append(record.get("correct"))
            rewards.append(record.get("reward"))
    ids, mask = padded_left(prompts, 0)
    return Rollouts(
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=padded_right(completions, 0),
        completion_mask=padded_right([[True] * len(c) for c in completions], False),
        correct=None if None in correct else torch.tensor(correct),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
    )


def _checked(record: Any) -> dict[str, Any]:
    expected = 'expected {"prompt": "...", "completion": "..."}, neither of them empty'
    if not isinstance(record, dict) or not isinstance(record.get("completion"), str) or not record["completion"]:
        raise ValueError(expected)
    if not isinstance(record.get("prompt"), str | list) or not record["prompt"]:
        raise ValueError(f"{expected}; prompt may be chat messages")
    if type(record.get("correct")) not in (bool, type(None)):
        raise ValueError(f"correct must be true, false or null; got {record['correct']!r}")
    if type(record.get("reward")) not in (int, float, type(None)):
        raise ValueError(f"reward must be a number or null; got {record['reward']!r}")
    return record


def _grouped(rollouts: Rollouts) -> Rollouts:
    prompts = [tuple(ids[mask].tolist()) for ids, mask in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return replace(rollouts, group=torch.tensor([number[prompt] for prompt in prompts]))
