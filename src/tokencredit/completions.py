"""A user's completions, from a file, as rollouts whose spans are marked.

One completion a row, in one of two layouts. Plain text, whose steps a splitter finds:

    {"prompt": "...", "completion": "... </think> ...", "correct": true, "reward": 1.0}

or with its steps, and what is known about them, as `tokencredit.labelled` reads it. `prompt` may be chat messages,
which go through the tokenizer's chat template, and then `completion` may be one message of the assistant; `correct` and
`reward` may be left out. docs/formats.md describes the files and layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokencredit import layouts
from tokencredit.chat import as_prompt, completion_text, end_of_turn
from tokencredit.labelled import (
    LABELS,
    LabelledRow,
    fitting,
    labelled_row,
    outcome_of,
    padded_right,
    prompt_ids,
    rollouts_of,
)
from tokencredit.long_traces import LongTraces, fit
from tokencredit.padding import padded_left
from tokencredit.prompts import text_ids
from tokencredit.rollouts import Rollouts, numbered
from tokencredit.steps import Splitter, check_span_options, find_spans
from tokencredit.tables import Table, convert, read_table


class Completions(NamedTuple):
    """`labels`: of each completion `correct` and `reward`, null where the file does not say, and in the layout with
    steps `essential`, a label a step, and `first_error`, a token. `long`: what became of traces that are longer than
    the model's context. `columns`: the names of the file's columns."""

    rollouts: Rollouts
    labels: list[dict[str, Any]]
    long: LongTraces = LongTraces()
    columns: Sequence[str] = ()


def load_completions(
    path: Path | str,
    tokenizer: Any,
    splitter: str | Splitter = "phrases",
    *,
    end_of_reasoning: str = "</think>",
    answer: str = "auto",
    chat: bool = False,
    context: int | None = None,
    long_traces: str = "refuse",
) -> Completions:
    """Completions of the same prompt are a group. The rollouts have `correct` or `rewards` only where all rows do.

    Args:
        path: a file of one of the formats of `tokencredit.tables`.
        splitter, end_of_reasoning, answer: find the spans of plain text, as in `mark_spans`.
        chat: make text prompts a user's message, which goes through the chat template.
        context: how many tokens the model takes (see `long_traces.context_of`); None for no limit.
        long_traces: what becomes of longer traces: `refuse` raises an error, `skip` leaves them out, `truncate` cuts
            plain text off at its end and leaves labelled traces out. Groups are those of the traces that are left.

    Raises:
        ValueError: a row is broken (its place is named), the file mixes the layouts, there is no completion, how to
            find spans is given for a file that holds them, or a trace is too long.
    """
    check_span_options(splitter, end_of_reasoning, answer)
    table = read_table(path, typed=LABELS)
    if not table.rows:
        raise ValueError(f"{path} holds no completion")
    labels: list[dict[str, Any]]
    if _is_plain(table):
        plain, long = _fitting_text(convert(table, lambda row: _plain(row, tokenizer, chat)), context, long_traces)
        rollouts = find_spans(_batch(plain), tokenizer, splitter, end_of_reasoning=end_of_reasoning, answer=answer)
        labels = [{"correct": row.correct, "reward": row.reward} for row in plain]
    else:
        _check_without_effect(table.path, splitter, end_of_reasoning, answer)
        rows, long = fitting(convert(table, lambda row: _labelled(row, tokenizer, chat)), context, long_traces)
        rollouts = rollouts_of(rows)
        labels = list(map(_labels, rows))
    return Completions(_with_outcomes(rollouts, labels), labels, long, table.columns)


def _with_outcomes(rollouts: Rollouts, labels: list[dict[str, Any]]) -> Rollouts:
    correct, rewards = ([label[name] for label in labels] for name in ("correct", "reward"))
    prompts = [tuple(ids[mask].tolist()) for ids, mask in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    return replace(
        rollouts,
        correct=None if None in correct else torch.tensor(correct),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
        group=torch.tensor(numbered(prompts)),
    )


def _labels(row: LabelledRow) -> dict[str, Any]:
    first_error = None if row.first_error is None else row.part.index(row.first_error)
    return {"correct": row.correct, "reward": row.reward, "essential": row.essential, "first_error": first_error}


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


def _is_plain(table: Table) -> bool:
    """By its first row."""
    return not isinstance(table.rows[0].get("steps"), list)


def _fitting_text(rows: list[_Plain], context: int | None, long_traces: str) -> tuple[list[_Plain], LongTraces]:
    lengths = [(len(row.prompt), len(row.completion)) for row in rows]
    kept, long = fit(lengths, context, long_traces, cuttable=True)
    cut = [row._replace(completion=row.completion[:length]) for row, length in zip(rows, kept, strict=True)]
    return [row for row in cut if row.completion], long


def _labelled(record: dict[str, Any], tokenizer: Any, chat: bool) -> LabelledRow:
    _check_one_layout(record, has_steps=True)
    return labelled_row(record, tokenizer, chat=chat)


def _check_one_layout(record: dict[str, Any], *, has_steps: bool) -> None:
    """Raise a ValueError where a row is in both layouts, or in another one than the first row."""
    steps = isinstance(record.get("steps"), list)
    layouts.check_single(record)
    if steps != has_steps and (steps or layouts.holds(record, "completion")):
        here, before = ("steps", "completions") if steps else ("a completion", "steps")
        raise ValueError(f"the row has {here}, but the first row has {before}: split the file in two")


def _plain(record: dict[str, Any], tokenizer: Any, chat: bool) -> _Plain:
    _check_one_layout(record, has_steps=False)
    named = layouts.with_names(record, layouts.TEXT)
    if named.get("prompt") is None or named.get("completion") is None:
        raise ValueError(layouts.mismatch(record, (layouts.TEXT, layouts.STEPS, layouts.PROCESSBENCH)))
    prompt = as_prompt(named["prompt"], chat=chat)
    completion = text_ids(completion_text(named["completion"]), tokenizer)
    if not isinstance(named["completion"], str):
        completion += _end(prompt, named, tokenizer)
    return _Plain(prompt_ids(prompt, tokenizer), completion, *outcome_of(record))


def _end(prompt: str | list[Any], row: dict[str, Any], tokenizer: Any) -> list[int]:
    """The end of the assistant's turn, unless the row says that the completion was cut off before."""
    if isinstance(prompt, str):
        raise ValueError("the completion is a chat message, but the prompt is text: write both the same way, or --chat")
    return [] if row.get("truncated") is True else end_of_turn(prompt, tokenizer)


def _batch(rows: list[_Plain]) -> Rollouts:
    ids, mask = padded_left([row.prompt for row in rows], 0)
    return Rollouts(
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=padded_right([row.completion for row in rows], 0),
        completion_mask=padded_right([[True] * len(row.completion) for row in rows], False),
    )
