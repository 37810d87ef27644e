"""A user's completions, from JSON Lines, as rollouts whose spans are marked.

One completion a line, in one of two layouts. Plain text, whose steps a splitter finds:

    {"prompt": "...", "completion": "... </think> ...", "correct": true, "reward": 1.0}

or with its steps, and what is known about them, as `tokencredit.labelled` reads it. `prompt` may be chat messages,
which go through the tokenizer's chat template; `correct` and `reward` may be left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokencredit.labelled import padded_right, prompt_ids, read_lines, read_rows, rollouts_of, text_ids
from tokencredit.padding import padded_left
from tokencredit.rollouts import Rollouts, numbered
from tokencredit.steps import Splitter, check_span_options, find_spans


class Completions(NamedTuple):
    """`labels`: of each completion `correct` and `reward`, null where the file does not say, and in the layout with
    steps `essential`, a label a step, and `first_error`, a token."""

    rollouts: Rollouts
    labels: list[dict[str, Any]]


def load_completions(
    path: Path,
    tokenizer: Any,
    splitter: str | Splitter = "phrases",
    *,
    end_of_reasoning: str = "</think>",
    answer: str = "auto",
) -> Completions:
    """Completions of the same prompt are a group. The rollouts have `correct` or `rewards` only where all rows do.

    Args:
        splitter, end_of_reasoning, answer: find the spans of plain text, as in `mark_spans`.

    Raises:
        ValueError: a line is broken (its number is named), the file mixes the layouts, there is no completion, or
            how to find spans is given for a file that holds them.
    """
    check_span_options(splitter, end_of_reasoning, answer)
    if _is_plain(path):
        plain = read_lines(path, lambda record: _plain(record, tokenizer))
        rollouts = find_spans(_batch(plain), tokenizer, splitter, end_of_reasoning=end_of_reasoning, answer=answer)
        labels: list[dict[str, Any]] = [{"correct": row.correct, "reward": row.reward} for row in plain]
    else:
        _check_without_effect(path, splitter, end_of_reasoning, answer)
        rows = read_rows(path, tokenizer)
        rollouts = rollouts_of(rows)
        labels = [
            {
                "correct": row.correct,
                "reward": None,
                "essential": row.essential,
                "first_error": None if row.first_error is None else row.part.index(row.first_error),
            }
            for row in rows
        ]
    correct, rewards = ([label[name] for label in labels] for name in ("correct", "reward"))
    prompts = [tuple(ids[mask].tolist()) for ids, mask in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    known = replace(
        rollouts,
        correct=None if None in correct else torch.tensor(correct),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
        group=torch.tensor(numbered(prompts)),
    )
    return Completions(known, labels)


def _check_without_effect(path: Path, splitter: str | Splitter, end_of_reasoning: str, answer: str) -> None:
    given = {"splitter": splitter, "end_of_reasoning": end_of_reasoning, "answer": answer}
    usual = {"splitter": "phrases", "end_of_reasoning": "</think>", "answer": "auto"}
    if changed := [name for name, value in given.items() if value != usual[name]]:
        raise ValueError(
            f"{path} gives its steps and answers itself, so {' and '.join(changed)} would have no effect: leave it "
            'out, or write each text as one, {"prompt": "...", "completion": "..."}'
        )


class _Plain(NamedTuple):
    prompt: list[int]
    completion: list[int]
    correct: bool | None
    reward: float | None


def _is_plain(path: Path) -> bool:
    """By its first record; one that cannot be read is told of when all are."""
    with path.open("rb") as lines:
        return b'"completion"' in next((line for line in lines if line.strip()), b"")


def _plain(record: Any, tokenizer: Any) -> _Plain:
    expected = 'expected {"prompt": "...", "completion": "..."}, neither of them empty'
    if not isinstance(record, dict) or not isinstance(record.get("completion"), str) or not record["completion"]:
        raise ValueError(expected)
    prompt, correct, reward = record.get("prompt"), record.get("correct"), record.get("reward")
    if prompt is None or not ((isinstance(prompt, str) and prompt) or _is_chat(prompt)):
        raise ValueError(f'{expected}; prompt may be chat messages, [{{"role": "user", "content": "..."}}]')
    if type(correct) not in (bool, type(None)):
        raise ValueError(f"correct must be true, false or null; got {correct!r}")
    if type(reward) not in (int, float, type(None)) or (reward is not None and not abs(reward) < 1e30):
        raise ValueError(f"reward must be a number or null; got {reward!r:.80}")
    completion = text_ids(record["completion"], tokenizer)
    return _Plain(prompt_ids(prompt, tokenizer), completion, correct, None if reward is None else float(reward))


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(message, dict) and message.get("role") and message.get("content") for message in prompt)
    )


def _batch(rows: list[_Plain]) -> Rollouts:
    ids, mask = padded_left([row.prompt for row in rows], 0)
    return Rollouts(
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=padded_right([row.completion for row in rows], 0),
        completion_mask=padded_right([[True] * len(row.completion) for row in rows], False),
    )
