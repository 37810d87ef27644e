"""`format`: reasoning that ends, and then a boxed answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokencredit.rewards.base import END_THINK, completion_text, last_boxed


def format_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    r"""1.0 where `</think>` stands exactly once and a `\boxed{}` that holds something follows it, else 0.0."""
    return [float(_well_formed(completion_text(completion))) for completion in completions]


def _well_formed(text: str) -> bool:
    _, end, answer = text.partition(END_THINK)
    return bool(end) and END_THINK not in answer and last_boxed(answer) is not None
