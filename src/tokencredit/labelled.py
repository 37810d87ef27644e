"""A user's completions with labelled steps, from JSON Lines.

One completion a line; its text is the steps, one after the other, and then the answer:

    {"prompt": "...", "steps": ["1+6=7. ", "Wait: 7.</think>"], "answer": "7", "essential": [true, false]}

`null` in `essential` leaves a step without a label; without `essential` no step has one.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokencredit.padding import padded_left
from tokencredit.rollouts import Rollouts
from tokencredit.signals.reward_layout import text_pieces


class Labelled(NamedTuple):
    """Completions with their steps and answers, and (B, K) bool: which steps are essential, and which have a label."""

    rollouts: Rollouts
    essential: Tensor
    mask: Tensor


def load_labelled(path: Path, tokenizer: Any) -> Labelled:
    """
    Raises:
        ValueError: a line is broken (its number is named), or there is none.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    rows.append(_row(json.loads(line), tokenizer))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no completion")
    return _batch(rows)


class _Row(NamedTuple):
    prompt: list[int]
    completion: list[int]
    step_index: list[int]
    answer_start: int
    essential: list[bool]
    mask: list[bool]


def _row(record: Any, tokenizer: Any) -> _Row:
    expected = 'expected {"prompt": "...", "steps": ["...", ...], "answer": "...", "essential": [true, null, ...]}'
    if not isinstance(record, dict) or not isinstance(record.get("steps"), list) or not record["steps"]:
        raise ValueError(expected)
    steps, texts = record["steps"], [record.get("prompt"), record.get("answer"), *record["steps"]]
    labels = record.get("essential", [None] * len(steps))
    if not all(isinstance(text, str) and text for text in texts) or not isinstance(labels, list):
        raise ValueError(f"{expected}, none of them empty")
    if len(labels) != len(steps) or not all(label is None or type(label) is bool for label in labels):
        raise ValueError(f"{len(steps)} steps need as many labels in essential, true, false or null; got {labels}")
    prompt, text = _prompt(record["prompt"], tokenizer), "".join(steps) + record["answer"]
    completion = list(tokenizer(text, add_special_tokens=False).input_ids)
    pieces = text_pieces(tokenizer, completion)
    if "".join(pieces) != text:
        raise ValueError("the tokenizer does not give this text back as it is, so its steps cannot be found in tokens")
    ends = list(accumulate(map(len, steps)))
    starts = [0, *accumulate(map(len, pieces))][: len(completion)]
    step_index = [-1 if start >= ends[-1] else bisect_right(ends, start) for start in starts]
    answer_start = next((t for t, k in enumerate(step_index) if k < 0), -1)
    if answer_start < 0:
        raise ValueError("the answer shares its only token with the last step: move a character from one to the other")
    return _Row(
        prompt, completion, step_index, answer_start, [x is True for x in labels], [x is not None for x in labels]
    )


def _prompt(text: str, tokenizer: Any) -> list[int]:
    """With the special tokens that begin a text, without those that end it."""
    ids = list(tokenizer(text).input_ids)
    plain = list(tokenizer(text, add_special_tokens=False).input_ids)
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return ids[:-1] if ids[-1] in closing and ids[-1] != plain[-1:][0] else ids


def _batch(rows: list[_Row]) -> Labelled:
    def padded(values: list[list[Any]], fill: Any) -> Tensor:
        return pad_sequence([torch.tensor(value) for value in values], batch_first=True, padding_value=fill)

    prompt_ids, prompt_mask = padded_left([row.prompt for row in rows], 0)
    rollouts = Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=padded([row.completion for row in rows], 0),
        completion_mask=padded([[True] * len(row.completion) for row in rows], False),
        answer_start=torch.tensor([row.answer_start for row in rows]),
        step_index=padded([row.step_index for row in rows], -1),
    )
    return Labelled(rollouts, padded([r.essential for r in rows], False), padded([r.mask for r in rows], False))
