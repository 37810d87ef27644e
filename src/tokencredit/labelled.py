"""A user's completions with labelled steps, from JSON Lines.

One completion a line; its text is the steps, one after the other, and then the answer:

    {"prompt": "...", "steps": ["1+6=7. ", "Wait: 7.</think>"], "answer": "7", "essential": [true, false]}

`null` in `essential` leaves a step without a label; without `essential` no step has one. Where it is known, `correct`
says whether the answer is right, and `first_error` the number of the first wrong step (`len(steps)` for the answer).
It makes no difference whether the spaces between two steps are written at the end of one or at the start of the other.

ProcessBench's layout does as well; its last step is the answer, and steps are paragraphs:

    {"problem": "...", "steps": ["...", "..."], "label": 1, "final_answer_correct": false}
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokencredit.padding import padded_left
from tokencredit.prompts import encode_prompt
from tokencredit.rollouts import Rollouts
from tokencredit.signals.reward_layout import text_pieces
from tokencredit.steps import token_offsets

Row = TypeVar("Row")


class Labelled(NamedTuple):
    """Completions with their steps and answers, and (B, K) bool: which steps are essential, and which have a label."""

    rollouts: Rollouts
    essential: Tensor
    mask: Tensor


class LabelledRow(NamedTuple):
    """One completion: token ids, and of each token the part that it belongs to, the steps and then the answer.

    `essential`: a label a step, None where it has none. `first_error`: a part. None where nothing is known.
    """

    prompt: list[int]
    completion: list[int]
    part: list[int]
    essential: list[bool | None]
    first_error: int | None
    correct: bool | None


def load_labelled(path: Path, tokenizer: Any) -> Labelled:
    """
    Raises:
        ValueError: a line is broken (its number is named), or there is none.
    """
    rows = read_rows(path, tokenizer)
    labels = [row.essential for row in rows]
    return Labelled(
        rollouts_of(rows),
        padded_right([[label is True for label in row] for row in labels], False),
        padded_right([[label is not None for label in row] for row in labels], False),
    )


def read_rows(path: Path, tokenizer: Any) -> list[LabelledRow]:
    """The file, line by line; raises as `load_labelled`."""
    return read_lines(path, lambda record: _row(record, tokenizer))


def read_lines(path: Path, read: Callable[[Any], Row]) -> list[Row]:
    """What `read` makes of the record of each line.

    Raises:
        ValueError: a line is not JSON in UTF-8, or `read` refuses it (its number is named), or there is none.
    """
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    text = line.decode("utf-8-sig")
                    record = json.loads(text)
                    json.dumps(record, ensure_ascii=False).encode()
                    rows.append(read(record))
                except UnicodeEncodeError:
                    raise ValueError(f"{path}, line {number}: half of a surrogate pair is no text") from None
                except (ValueError, TypeError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no completion")
    return rows


def rollouts_of(rows: Sequence[LabelledRow]) -> Rollouts:
    """The completions as a batch, with `answer_start` and `step_index`."""
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
    )


def padded_right(values: list[list[Any]], fill: Any) -> Tensor:
    return pad_sequence([torch.tensor(value) for value in values], batch_first=True, padding_value=fill)


def _row(record: Any, tokenizer: Any) -> LabelledRow:
    record = _plain_layout(record)
    expected = 'expected {"prompt": "...", "steps": ["...", ...], "answer": "...", "essential": [true, null, ...]}'
    if not isinstance(record, dict) or not isinstance(record.get("steps"), list) or not record["steps"]:
        raise ValueError(expected)
    steps, parts = record["steps"], [*record["steps"], record.get("answer")]
    labels = record.get("essential", [None] * len(steps))
    if not all(isinstance(text, str) and text for text in (record.get("prompt"), *parts)) or not isinstance(
        labels, list
    ):
        raise ValueError(f"{expected}, none of them empty")
    if len(labels) != len(steps) or not all(label is None or type(label) is bool for label in labels):
        raise ValueError(f"{len(steps)} steps need as many labels in essential, true, false or null; got {labels}")
    error, correct = record.get("first_error"), record.get("correct")
    if error is not None and (type(error) is not int or not 0 <= error <= len(steps)):
        raise ValueError(f"first_error must be a step from 0 to {len(steps)} (the answer), or null; got {error!r}")
    if not (correct is None or type(correct) is bool):
        raise ValueError(f"correct must be true, false or null; got {correct!r}")
    completion, part = _tokens(parts, tokenizer)
    if error is not None and error not in part:
        raise ValueError(
            f"no token begins in step {error}, the first error: it is nothing but spaces, or shares its only token "
            "with the step before; join the two"
        )
    return LabelledRow(prompt_ids(record["prompt"], tokenizer), completion, part, labels, error, correct)


def _plain_layout(record: Any) -> Any:
    """A record of ProcessBench in our layout; any other as it is."""
    if not isinstance(record, dict) or "label" not in record or "problem" not in record:
        return record
    steps, label = record.get("steps"), record["label"]
    if not isinstance(steps, list) or len(steps) < 2 or not all(isinstance(step, str) for step in steps):
        raise ValueError("expected at least two steps of text, of which the last is the answer")
    return {
        "prompt": record["problem"],
        "steps": [f"{step}\n\n" for step in steps[:-1]],
        "answer": steps[-1],
        "first_error": None if label == -1 else label,
        "correct": record.get("final_answer_correct"),
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


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a completion's text.

    Raises:
        ValueError: there is none.
    """
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if not ids:
        raise ValueError(f"the completion {text!r:.60} has no token: the tokenizer reads nothing in it")
    return ids


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
