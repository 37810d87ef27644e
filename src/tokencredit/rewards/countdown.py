"""`countdown`: does the boxed expression reach the target, with each number used once?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from tokencredit.rewards.base import Columns, checked, completion_text, last_boxed, prompt_text
from tokencredit.testbed.tasks.countdown import Countdown, CountdownProblem
from tokencredit.testbed.tasks.expressions import MAX_CHARACTERS, evaluate, numbers, parse_expression

_TASK = Countdown()
_PROMPT = re.compile(r"(?P<nums>\d{1,4}(?:,\d{1,4})*)=(?P<target>\d{1,4})\?\n?", re.ASCII)
_TIMES = re.compile(r"\\times|\\cdot|\\ast|[\u00d7\u00b7\u22c5\u2219\u2217xX]")
_DIVIDED = re.compile(r"\\div|\u00f7")
_SPACING = re.compile(r"\\left|\\right|\\[,;:! ]|[$~]")
_PLAIN = str.maketrans({"\u2212": "-", "\u2013": "-", "[": "(", "]": ")"})  # minus sign and en dash
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")


def check_problems(columns: Columns) -> None:
    """
    Raises:
        ValueError: a row is no countdown problem; names it.
    """
    _problems(columns["prompt"], columns)


@checked(by=check_problems, stated=last_boxed)
def countdown_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    r"""1.0 where the last `\boxed{}` holds an expression that uses each number once and is worth the target, else 0.0.

    Operators may be written as in mathematics (`\times`, `\cdot`, `x`, `÷`, `\frac{}{}`), and the result may follow
    behind an equals sign (`(5-3)*8 = 16`), where it must be the target.

    Args:
        columns: `nums`, a list of whole numbers per row, and `target`, a whole number (or `answer`, where there is no
            `target`); the prompt is then free. Without `nums` the prompt itself must read `3,5,8=16?`.

    Raises:
        ValueError: a row is no countdown problem.
    """
    problems = _problems(prompts, columns)
    answers = [last_boxed(completion_text(completion)) for completion in completions]
    return [float(answer is not None and _reaches(answer, p)) for answer, p in zip(answers, problems, strict=True)]


def _problems(prompts: Sequence[Any], columns: Columns) -> list[CountdownProblem]:
    nums = columns.get("nums")
    targets = columns.get("target") or columns.get("answer") or repeat(None, len(prompts))
    if nums is None:
        return [_of_prompt(row, prompt_text(prompt)) for row, prompt in enumerate(prompts)]
    problems = []
    for row, (of_row, target) in enumerate(zip(nums, targets, strict=True)):
        whole = isinstance(target, str) and re.fullmatch(r"\s*\d{1,4}\s*", target, re.ASCII)
        try:
            problems.append(_TASK.parse({"nums": of_row, "target": int(target) if whole else target}))
        except ValueError as error:
            raise ValueError(f"row {row} is no countdown problem: {error}") from None
    return problems


def _of_prompt(row: int, prompt: str) -> CountdownProblem:
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(
            f"row {row} is no countdown problem: give the data the columns nums ([3, 5, 8]) and target (16), or "
            f"prompts like '3,5,8=16?'; got {prompt!r:.60}"
        )
    return _TASK.parse({"nums": [int(n) for n in match["nums"].split(",")], "target": int(match["target"])})


def _reaches(answer: str, problem: CountdownProblem) -> bool:
    """Every part between equals signs is worth the target; the first uses each number once."""
    try:
        parts = [parse_expression(part) for part in plain_notation(answer).split("=")]
        used = sorted(numbers(parts[0]))
        return used == list(problem.nums) and all(evaluate(part) == problem.target for part in parts)
    except ValueError:
        return False


def plain_notation(text: str) -> str:
    """Mathematical notation as `+ - * / ( )`. Other text is left as it is, and the parser refuses it.

    Raises:
        ValueError: the text is too long for an answer.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"expression of {len(text)} characters; at most {MAX_CHARACTERS} are read")
    before = None
    while before != text:
        before, text = text, _FRACTION.sub(r"((\1)/(\2))", text)
    text = _DIVIDED.sub("/", _TIMES.sub("*", _SPACING.sub(" ", text)))
    return text.translate(_PLAIN)
