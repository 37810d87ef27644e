"""`countdown`: the testbed's verifier of countdown problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokencredit.rewards.base import checked
from tokencredit.rewards.verified import prompt_check, verified
from tokencredit.testbed.tasks import Problem
from tokencredit.testbed.tasks.countdown import Countdown

_TASK = Countdown()
_PROMPT = re.compile(r"(?P<nums>\d{1,4}(?:,\d{1,4})*)=(?P<target>\d{1,4})\?\n?", re.ASCII)


def _parse(prompt: str) -> Problem:
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError("expected numbers and a target, 3,5,8=16?")
    return _TASK.parse({"nums": [int(n) for n in match["nums"].split(",")], "target": int(match["target"])})


@checked(by=prompt_check(_parse))
def countdown_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """1.0 where the boxed expression uses each number of the prompt, `3,5,8=16?`, once and is worth its target.

    Raises:
        ValueError: a prompt is no countdown problem.
    """
    return verified(_TASK, prompts, completions, _parse)
