"""`math`: the answer that a completion states against the ground truth, by math-verify."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokencredit.rewards.base import Columns, checked, completion_text, ground_truths, stated_answer
from tokencredit.rewards.math_answers import MAX_LENGTH, are_readable, are_right

_SENTENCE = re.compile(r"[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}")
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")


def check_truths(columns: Columns) -> None:
    """
    Raises:
        ValueError: the ground truth of some rows cannot be read; they are named.
    """
    _readable(ground_truths(columns))


@checked(by=check_truths, stated=stated_answer)
def math_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    r"""1.0 where the answer that a completion states says the same as the ground truth, else 0.0.

    A completion states its answer in its last `\boxed{}`, or, where there is no box, behind its last `####`.

    Args:
        completions: text, or chat messages.
        columns: the ground truth in `answer`, `solution` or verl's `reward_model`: a number or formula alone, behind
            GSM8K's `####`, or in the last box of a worked solution.

    Raises:
        ValueError: there is no ground truth, or one that cannot be read: it would be a 0 for every answer.
    """
    truths = _readable(ground_truths(columns))
    answers = [stated_answer(completion_text(completion)) for completion in completions]
    stated = [(truth, answer) for truth, answer in zip(truths, answers, strict=True) if answer is not None]
    right = iter(are_right(stated))
    return [float(answer is not None and next(right)) for answer in answers]


def _readable(truths: list[str]) -> list[str]:
    # Letters side by side are a product to math-verify: "The answer is 5" would pass, and no answer would equal it.
    readable = are_readable(truths)
    wrong = [row for row, t in enumerate(truths) if _SENTENCE.search(_COMMAND.sub("", t)) or not readable[row]]
    if wrong:
        listed = "; ".join(f"row {row}: {truths[row]!r:.60}" for row in wrong[:5])
        raise ValueError(
            f"{len(wrong)} of {len(truths)} ground truths cannot be read as mathematics: {listed}. Expected a number "
            f"or a formula of at most {MAX_LENGTH} characters, words as \\text{{...}}, alone or behind #### or in "
            f"\\boxed{{}}; correct or drop these rows"
        )
    return truths
