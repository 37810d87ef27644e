"""What a user should know about credit: which completions a method left uniform, why, and which option helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokencredit.credit import Credit
    from tokencredit.rollouts import Rollouts

NO_ANSWER = (
    "no answer span was found in them. The answer is the text after </think>, or from the last \\boxed{ where there is "
    "no </think>; for another delimiter set end_of_reasoning, for another format set answer to a regular expression at "
    "which the answer starts"
)
"""Why a method that reads the answer's attention leaves a completion uniform."""


def inactive(method: Any, diagnostics: Mapping[str, Tensor], name: str | None = None) -> list[str]:
    """One sentence for each reason for which the method left completions uniform.

    Args:
        method: its `uniform_because` maps the name of a diagnostic to an explanation; a method without it has none.
        diagnostics: name -> (B,), 1 where the reason holds; see `Credit.diagnostics`.
        name: what the sentences call the method; by default its name.

    Raises:
        ValueError: the method explains a diagnostic that it does not give.
    """
    sentences = []
    for diagnostic, explanation in getattr(method, "uniform_because", {}).items():
        if diagnostic not in diagnostics:
            raise ValueError(
                f"{method.name} explains the diagnostic {diagnostic} in uniform_because, but does not give it; it "
                f"gives {', '.join(diagnostics)}"
            )
        values = diagnostics[diagnostic]
        count = int((values > 0).sum())
        if count:
            sentences.append(
                f"{name or method.name} leaves {count} of {len(values)} completions uniform: {explanation}"
            )
    return sentences


def notices_of(methods: Mapping[str, Any], credits: Mapping[str, Credit]) -> dict[str, list[str]]:
    """The sentences of `inactive`, by the names of the methods that have any."""
    sentences = {name: inactive(methods[name], credit.diagnostics, name) for name, credit in credits.items()}
    return {name: told for name, told in sentences.items() if told}


def unranked(rollouts: Rollouts, essential: Tensor, mask: Tensor) -> list[str]:
    """One sentence where some completions do not count for the ranking of heads, none where all do.

    Args:
        rollouts: with `answer_start` and `step_index`.
        essential: (B, K) bool, for each step. mask: (B, K) bool, the steps whose label counts.
    """
    assert rollouts.step_index is not None
    steps = mask.shape[1]
    index = torch.where(rollouts.reasoning_mask & (rollouts.step_index >= 0), rollouts.step_index, steps)
    exists = torch.zeros(len(mask), steps + 1, dtype=torch.bool, device=index.device).scatter(1, index, True)
    known = exists[:, :steps] & mask.bool()
    pair = (known & essential.bool()).any(1) & (known & ~essential.bool()).any(1)
    without, count = int((~rollouts.has_answer).sum()), len(rollouts)
    if pair.all():
        return []
    reasons = {
        "have no answer span": without,
        "do not have both an essential and a redundant step with a label": count - without - int(pair.sum()),
    }
    told = " and ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
    return [f"heads are ranked on {int(pair.sum())} of {count} completions: {told}"]
