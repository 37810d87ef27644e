"""A user's completions with labelled steps, from a file.

One completion a row; its text is the steps, one after the other, and then the answer:

    {"prompt": "...", "steps": ["1+6=7. ", "Wait: 7.</think>"], "answer": "7", "essential": [true, false]}

`null` in `essential` leaves a step without a label; without `essential` no step has one. Where it is known, `correct`
says whether the answer is right, `first_error` the number of the first wrong step (`len(steps)` for the answer), and
`reward` the reward of the completion. A row with `first_error` and without `correct` is wrong.
`prompt` may be chat messages, which go through the tokenizer's chat template. docs/formats.md describes the files.
It makes no difference whether the spaces between two steps are written at the end of one or at the start of the other.

ProcessBench's layout does as well; its last step is the answer, and steps are paragraphs:

    {"problem": "...", "steps": ["...", "..."], "label": 1, "final_answer_correct": false}
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokencredit import layouts
from tokencredit.chat import as_prompt
from tokencredit.long_traces import LongTraces, fit
from tokencredit.padding import padded_left
from tokencredit.prompts import encode_prompt, text_ids
from tokencredit.rollouts import Rollouts
from tokencredit.signals.reward_layout import text_pieces
from tokencredit.steps import token_offsets
from tokencredit.tables import read_each

LABELS = ("steps", "essential", "first_error", "correct", "label", "final_answer_correct", "reward", "truncated")
"""Columns of traces that hold no text, which CSV cannot tell."""


class Labelled(NamedTuple):
    """Completions with their steps and answers, and (B, K) bool: which steps are essential, and which have a label."""

    rollouts: Rollouts
    essential: Tensor
    mask: Tensor


class LabelledRow(NamedTuple):
    """One completion: token ids, and of each token the part that it belongs to, the steps and then the answer.

    `essential`: a label a step, None where it has none. `first_error`: a part. `correct`: False where the file gives
    `first_error` without it. None where nothing is known.
    """

    prompt: list[int]
    completion: list[int]
    part: list[int]
    essential: list[bool | None]
    first_error: int | None
    correct: bool | None
    reward: float | None


class LabelledTraces(NamedTuple):
    """The labelled completions of a file, and what became of traces that are longer than the model's context."""

    labelled: Labelled
    long: LongTraces


def load_labelled(
    path: Path | str, tokenizer: Any, *, chat: bool = False, context: int | None = None, long_traces: str = "refuse"
) -> LabelledTraces:
    """
    Args:
        path, chat, context: as in `load_completions`.
        long_traces: what becomes of traces longer than `context`: `refuse` raises an error. Labelled traces are never
            cut off, since their labels are about all of them: `skip` and `truncate` both leave long ones out.

    Raises:
        ValueError: a row is broken (its place is named), there is none, or a trace is too long.
    """
    rows, long = fitting(read_rows(path, tokenizer, chat=chat), context, long_traces)
    labels = [row.essential for row in rows]
    labelled = Labelled(
        rollouts_of(rows),
        padded_right([[label is True for label in row] for row in labels], False),
        padded_right([[label is not None for label in row] for row in labels], False),
    )
    return LabelledTraces(labelled, long)


def read_rows(path: Path | str, tokenizer: Any, *, chat: bool = False) -> list[LabelledRow]:
    """The file, row by row; raises as `load_labelled`."""
    return read_each(path, lambda row: labelled_row(row, tokenizer, chat=chat), typed=LABELS, content="completion")


def fitting(rows: Sequence[LabelledRow], context: int | None, long_traces: str) -> tuple[list[LabelledRow], LongTraces]:
    """The traces that fit into the model's context; raises as `long_traces.fit`."""
    lengths = [(len(row.prompt), len(row.completion)) for row in rows]
    kept, long = fit(lengths, context, long_traces, cuttable=False)
    return [row for row, length in zip(rows, kept, strict=True) if length], long


def rollouts_of(rows: Sequence[LabelledRow]) -> Rollouts:
    """The completions as a batch, with `answer_start` and `step_index`, and `correct` and `rewards` where all rows have
    them."""
    correct, rewards = [row.correct for row in rows], [row.reward for row in rows]
    prompt_ids, prompt_mask = padded_left([row.prompt for row in rows], 0)
    answers = [len(row.essential) for row in rows]
    return Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=padded_right([row.completion for row in rows], 0),
        completion_mask=padded_right([[True] * len(row.completion) for row in rows], False),
        answer_start=torch.tensor([row.part.index(answer) for row, answer in zip(rows, answers, strict=True)]),
        step_index=padded_right(
            [[k if k < answer else -1 for k in row.part] for row, answer in zip(rows, answers, strict=True)], -1
        ),
        correct=None if None in correct else torch.tensor(correct),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
    )


def padded_right(values: list[list[Any]], fill: Any) -> Tensor:
    return pad_sequence([torch.tensor(value) for value in values], batch_first=True, padding_value=fill)


def labelled_row(record: dict[str, Any], tokenizer: Any, *, chat: bool = False) -> LabelledRow:
    """A row of a file, in our layout or in ProcessBench's.

    Raises:
        ValueError: what it lacks, or what is wrong with it.
    """
    layouts.check_single(record)
    record = layouts.with_names(_our_layout(record), layouts.STEPS)
    if any(record.get(name) is None for name in layouts.STEPS.required):
        raise ValueError(layouts.mismatch(record, (layouts.STEPS, layouts.PROCESSBENCH, layouts.TEXT)))
    prompt, steps, answer = record["prompt"], record["steps"], record["answer"]
    if not isinstance(steps, list) or not steps or not all(isinstance(text, str) and text for text in (*steps, answer)):
        raise ValueError(f"expected {layouts.STEPS.example}: steps and answer are texts, none of them empty")
    labels, error = _labels_of(record, len(steps))
    correct, reward = outcome_of(record, error)
    completion, part = _tokens([*steps, answer], tokenizer)
    if error is not None and error not in part:
        raise ValueError(
            f"no token begins in step {error}, the first error: it is nothing but spaces, or shares its only token "
            "with the step before; join the two"
        )
    ids = prompt_ids(as_prompt(prompt, chat=chat), tokenizer)
    return LabelledRow(ids, completion, part, labels, error, correct, reward)


def outcome_of(record: dict[str, Any], first_error: int | None = None) -> tuple[bool | None, float | None]:
    """`correct` and `reward` of a row; a row with a first error and without `correct` is wrong.

    Raises:
        ValueError: one of them is not what it should be, or the first error and a reward of 1 contradict each other.
    """
    correct, reward = record.get("correct"), record.get("reward")
    if type(correct) not in (bool, type(None)):
        raise ValueError(f"correct must be true, false or null; got {correct!r:.80}")
    if type(reward) not in (int, float, type(None)) or (reward is not None and not abs(reward) < 1e30):
        raise ValueError(f"reward must be a number or null; got {reward!r:.80}")
    if correct is None and first_error is not None:
        if reward == 1:
            raise ValueError(
                f"first_error is {first_error}, but the reward is 1: add correct, true or false, for the answer"
            )
        correct = False
    return correct, None if reward is None else float(reward)


def _labels_of(record: dict[str, Any], steps: int) -> tuple[list[bool | None], int | None]:
    """`essential`, a label a step; and `first_error`."""
    labels = record.get("essential")
    labels = [None] * steps if labels is None else labels
    if not isinstance(labels, list) or len(labels) != steps or not all(type(x) in (bool, type(None)) for x in labels):
        raise ValueError(f"{steps} steps need as many labels in essential, true, false or null; got {labels!r:.80}")
    error = record.get("first_error")
    if type(error) is float and error.is_integer():  # tables with gaps store whole numbers so
        error = int(error)
    if error is not None and (type(error) is not int or not 0 <= error <= steps):
        raise ValueError(f"first_error must be a step from 0 to {steps} (the answer), or null; got {error!r:.80}")
    return labels, error


def _our_layout(record: dict[str, Any]) -> dict[str, Any]:
    """A record of ProcessBench in our layout; any other as it is."""
    if record.get("label") is None or "problem" not in record:
        return record
    steps, label = record.get("steps"), record["label"]
    if not isinstance(steps, list) or len(steps) < 2 or not all(isinstance(step, str) for step in steps):
        raise ValueError("expected at least two steps of text, of which the last is the answer")
    verdict = record.get("final_answer_correct")
    return {
        "prompt": record["problem"],
        "steps": [f"{step}\n\n" for step in steps[:-1]],
        "answer": steps[-1],
        "first_error": None if label == -1 else label,
        "correct": record.get("correct") if verdict is None else verdict,
        "reward": record.get("reward"),
    }


def _tokens(parts: list[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of the joined parts, and the part that each token belongs to: see `steps.token_offsets`."""
    text = "".join(parts)
    completion = text_ids(text, tokenizer)
    pieces = text_pieces(tokenizer, completion)
    if (read := "".join(pieces)) != text:
        raise ValueError(_unlike(text, read))
    ends = list(accumulate(map(len, parts)))
    part = [bisect_right(ends, offset) for offset in token_offsets(pieces)]
    if len(parts) - 1 not in part:
        raise ValueError(
            "no token begins in the answer: it shares its only token with the last step, or is nothing but spaces; "
            "move a character from one to the other"
        )
    return completion, part


def _unlike(text: str, read: str) -> str:
    """How what a tokenizer gives back differs from the text."""
    at = next((i for i, (a, b) in enumerate(zip(text, read, strict=False)) if a != b), min(len(text), len(read)))
    return (
        "the tokenizer does not give this text back as it is, so its steps cannot be found in tokens: behind "
        f"{text[max(0, at - 10) : at]!r} it reads {read[at : at + 20]!r} for {text[at : at + 20]!r}; write the text as "
        "the tokenizer reads it, or take the model that wrote it"
    )


def prompt_ids(prompt: str | list[Any], tokenizer: Any) -> list[int]:
    """A text with the special tokens that begin it, without those that end it; or chat messages by their template.

    Raises:
        ValueError: there is no token but special ones that the tokenizer adds, or the messages are refused.
    """
    ids = encode_prompt(prompt, tokenizer)
    if not isinstance(prompt, str):
        return ids
    plain = list(tokenizer(prompt, add_special_tokens=False).input_ids)
    if not plain:
        raise ValueError(f"the prompt {prompt!r:.60} has no token: the tokenizer reads nothing in it")
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return ids[:-1] if ids[-1] in closing and ids[-1] != plain[-1] else ids
