"""What rewards share: the text of a completion, its boxed answer, and the ground truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

END_THINK, BOXED = "</think>", "\\boxed{"

Columns = Mapping[str, Sequence[Any]]
"""Columns of a dataset, one entry a completion (or a problem)."""

_TRUTH_COLUMNS = ("answer", "solution", "reward_model")


def checked(by: Callable[[Columns], None]) -> Callable[[Any], Any]:
    """Decorator of a reward: `by` says, before a model runs, whether it can score some problems (`rewards.check`)."""

    def mark(reward: Any) -> Any:
        reward.check = by
        return reward

    return mark


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the policy wrote: text, or chat messages, of which the assistant's count."""
    if isinstance(completion, str):
        return completion
    return "".join(m.get("content") or "" for m in completion if m.get("role", "assistant") == "assistant")


def as_completion(prompt: Any, text: str) -> Any:
    """A policy's text as TRL hands it to rewards: a chat message where the prompt is chat messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The question: text, or the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    return next((m.get("content") or "" for m in reversed(prompt) if m.get("role") == "user"), "")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}`, stripped; None where there is no box, or the last is empty or not closed."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth, i = 1, start + len(BOXED)
    while i < len(text):
        if text[i] == "\\":
            i += 1  # the escaped character is no brace
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + len(BOXED) : i].strip() or None
        i += 1
    return None


def stated_answer(text: str) -> str | None:
    r"""The answer that a completion states: in its last `\boxed{}`, or else behind its last `####` (GSM8K's marker), up
    to the end of that line; None where it states none."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    _, mark, tail = text.rpartition("####")
    lines = tail.split("\n", 1)
    return (lines[0].strip() or None) if mark else None


def ground_truth(answer: str) -> str:
    r"""The answer itself: behind GSM8K's `####`, in the last box of a worked solution (MATH), or all of the text."""
    _, mark, tail = answer.rpartition("####")
    found = tail if mark else last_boxed(answer) or answer
    return found.strip().removeprefix("$").removesuffix("$").strip()


def ground_truths(columns: Columns) -> list[str]:
    """The ground truth of each row: of the column `answer`, `solution`, or verl's `reward_model`, the first there is.

    Raises:
        ValueError: there is none of them, or a row's is no text.
    """
    name = next((name for name in _TRUTH_COLUMNS if columns.get(name) is not None), None)
    if name is None:
        raise ValueError(
            f"no ground truth: expected a column {', '.join(_TRUTH_COLUMNS[:-1])} or reward_model (with ground_truth); "
            f"there are {', '.join(columns) or 'none'}"
        )
    values: list[Any] = [value.get("ground_truth") if isinstance(value, Mapping) else value for value in columns[name]]
    if wrong := [(row, value) for row, value in enumerate(values) if not isinstance(value, str)]:
        row, value = wrong[0]
        raise ValueError(f"the ground truth in {name} must be text; row {row} has {value!r:.80}")
    return [ground_truth(value) for value in values]
