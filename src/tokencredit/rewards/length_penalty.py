"""`length_penalty`: AttnPO's reward, which prefers the shorter of the right completions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from tokencredit.methods.attnpo import length_penalised_reward
from tokencredit.rewards.base import checked, stated_answer
from tokencredit.rewards.math import check_truths, math_reward


@checked(by=check_truths, stated=stated_answer)
def length_penalty_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    alpha: float = 0.2,
    **columns: Any,
) -> list[float]:
    """correct * (1 - alpha * sigmoid(z)), z the length standardised over the group's correct completions (AttnPO).

    Correct is what `math` says. Equal prompts in a row are a group: TRL has `num_generations` of them. Where it splits
    a group over devices, each part is standardised alone: let a device's batch be a multiple of `num_generations`.

    Args:
        completion_ids: the tokens of each completion, whose number is its length; TRL passes them.

    Raises:
        ValueError: as `math`.
    """
    correct = math_reward(completions, **columns)
    starts = [i > 0 and prompts[i] != prompts[i - 1] for i in range(len(prompts))]
    group = torch.tensor(list(accumulate(map(int, starts))), dtype=torch.long)
    lengths = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.long)
    return length_penalised_reward(torch.tensor(correct) > 0, lengths, group, alpha=alpha).tolist()
