"""What rewards share: the text of a completion, its boxed answer, and the ground truth beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Number
from typing import Any

from tokencredit.steps import BOXED

END_THINK = "</think>"

Columns = Mapping[str, Sequence[Any]]
"""Columns of a dataset, one entry a completion (or a problem)."""

_TRUTH_COLUMNS = ("answer", "solution", "reward_model")


def checked(by: Callable[[Columns], None], stated: Callable[[str], str | None] | None = None) -> Callable[[Any], Any]:
    """Decorator of a reward.

    Args:
        by: says, before a model runs, whether the reward can score some problems (`rewards.check`).
        stated: finds the answer that a completion's text states, None where it states none: no answer is then right.
    """

    def mark(reward: Any) -> Any:
        reward.check = by
        reward.stated = stated
        return reward

    return mark


def unanswered(reward: Any, texts: Sequence[str]) -> float | None:
    """The share of completions in which the reward finds no answer; None where it does not say what it reads."""
    stated = getattr(reward, "stated", None)
    return None if stated is None else sum(stated(text) is None for text in texts) / max(1, len(texts))


def name_of(reward: Any) -> str:
    """What to call a reward function in a message; also one with some arguments filled in, or an object."""
    return getattr(getattr(reward, "func", reward), "__name__", type(reward).__name__)


def checked_values(values: Any, name: str, count: int) -> list[float | None]:
    """What a reward function returned, as a list of numbers, with None where it has nothing to say.

    Args:
        values: a list, a tuple, or a tensor or array of one dimension. Truth values count as 0 and 1.
        name: of the function, for the message.
        count: the completions it was given.

    Raises:
        ValueError: it returned something else, other than `count` values, or one that is no finite number.
    """
    expected = f"expected a list of {count} numbers, one per completion (None where it has nothing to say)"
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable) or _ndim(values) == 0:
        raise ValueError(f"the reward function {name} returned {values!r:.60} ({type(values).__name__}); {expected}")
    listed = list(values)
    if len(listed) != count:
        raise ValueError(f"the reward function {name} gave {len(listed)} values for {count} completions; {expected}")
    return [_checked_value(value, i, name, expected) for i, value in enumerate(listed)]


def _checked_value(value: Any, i: int, name: str, expected: str) -> float | None:
    if value is None:
        return None
    # Elements of tensors and arrays have no dimension, and become Python's numbers.
    plain = value.item() if _ndim(value) == 0 else value
    if not isinstance(plain, Number) or isinstance(plain, complex):
        raise ValueError(f"the reward function {name} gave {value!r:.60} for completion {i}; {expected}")
    try:
        number = float(plain)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(
            f"the reward function {name} gave {number} for completion {i}: give a finite number, or None where it has "
            "nothing to say"
        )
    return number


def _ndim(value: Any) -> int | None:
    """Dimensions of a tensor or an array; None for anything else."""
    return getattr(value, "ndim", None)


def known_correct(rewards: Sequence[float]) -> list[bool | None]:
    """Which completions are correct, as far as their rewards tell.

    Where all of them are 0 or 1, those with 1 are correct and those with 0 are wrong. Otherwise it is not known of any
    (None): a reward of 0.8 may be a correct answer with a penalty, or a wrong one with part of the credit.
    """
    if any(reward not in (0, 1) for reward in rewards):
        return [None] * len(rewards)
    return [reward == 1 for reward in rewards]


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
