"""`chain`: the testbed's verifier of chain problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokencredit.rewards.base import checked
from tokencredit.rewards.verified import prompt_check, verified
from tokencredit.testbed.tasks import Problem
from tokencredit.testbed.tasks.chain import LEVELS, Chain

_TASK = Chain(level=max(LEVELS))


def _parse(prompt: str) -> Problem:
    return _TASK.parse({"prompt": prompt})


@checked(by=prompt_check(_parse))
def chain_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """1.0 where the boxed answer is what the prompt asks for, `Q:a=6,b=a-5,c=b*a?c`, else 0.0.

    Raises:
        ValueError: a prompt is no chain problem.
    """
    return verified(_TASK, prompts, completions, _parse)
