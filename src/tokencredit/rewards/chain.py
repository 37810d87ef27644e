"""`chain`: the testbed's verifier of chain problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokencredit.rewards.base import Columns, checked, completion_text, prompt_text
from tokencredit.testbed.tasks.chain import LEVELS, Chain, ChainProblem

_TASK = Chain(level=max(LEVELS))


def check_problems(columns: Columns) -> None:
    """
    Raises:
        ValueError: a prompt is no chain problem; names the row.
    """
    _problems(columns["prompt"])


@checked(by=check_problems)
def chain_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """1.0 where the boxed answer is what the prompt asks for, `Q:a=6,b=a-5,c=b*a?c`, else 0.0.

    Raises:
        ValueError: a prompt is no chain problem.
    """
    pairs = zip(_problems(prompts), completions, strict=True)
    return [float(_TASK.verify(problem, completion_text(completion))) for problem, completion in pairs]


def _problems(prompts: Sequence[Any]) -> list[ChainProblem]:
    problems = []
    for row, prompt in enumerate(prompts):
        text = prompt_text(prompt)
        try:
            problems.append(_TASK.parse({"prompt": text}))
        except ValueError as error:
            raise ValueError(f"row {row} is no chain problem: {text!r:.60}: {error}") from None
    return problems
