"""Verifiable tasks whose credit has a ground truth. A new task is one file beside these and one line in `_TASKS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokencredit.testbed.tasks.base import Labels, Problem, Task, TokenLabels, label_tokens, step_starts
from tokencredit.testbed.tasks.chain import Chain
from tokencredit.testbed.tasks.countdown import Countdown
from tokencredit.testbed.tasks.gather import Gather
from tokencredit.testbed.tasks.long_gather import LongGather
from tokencredit.testbed.tasks.two_hop import TwoHop

__all__ = ["Labels", "Problem", "Task", "TokenLabels", "label_tokens", "step_starts", "task", "tasks"]

_TASKS: dict[str, Callable[..., Task]] = {cls.name: cls for cls in (Chain, Countdown, Gather, LongGather, TwoHop)}


def tasks() -> list[str]:
    """The names of all tasks, sorted."""
    return sorted(_TASKS)


def task(name: str, **params: Any) -> Task:
    """A task by name, a frozen dataclass: `task("gather", level=1)`. A parameter of None stays at its default.

    Raises:
        ValueError: the name or the level is unknown.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}. Valid tasks: {', '.join(tasks())}")
    return _TASKS[name](**{key: value for key, value in params.items() if value is not None})
