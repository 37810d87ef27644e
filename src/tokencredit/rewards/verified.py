"""Rewards from the testbed's verifiers: a task's problem is read from the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokencredit.rewards.base import Columns, completion_text, prompt_text
from tokencredit.testbed.tasks import Problem, Task

Parse = Callable[[str], Problem]


def problems_of(prompts: Sequence[Any], parse: Parse) -> list[Problem]:
    """
    Raises:
        ValueError: a prompt is no problem of the task; names the row.
    """
    found = []
    for row, prompt in enumerate(prompts):
        try:
            found.append(parse(prompt_text(prompt)))
        except ValueError as error:
            raise ValueError(f"row {row}: {prompt_text(prompt)!r:.60} is no problem of this task: {error}") from None
    return found


def verified(task: Task, prompts: Sequence[Any], completions: Sequence[Any], parse: Parse) -> list[float]:
    """1.0 where the task's verifier accepts the completion of its prompt, else 0.0."""
    pairs = zip(problems_of(prompts, parse), completions, strict=True)
    return [float(task.verify(problem, completion_text(completion))) for problem, completion in pairs]


def prompt_check(parse: Parse) -> Callable[[Columns], None]:
    """A check for `checked`: every prompt is a problem of the task."""

    def check(columns: Columns) -> None:
        problems_of(columns["prompt"], parse)

    return check
