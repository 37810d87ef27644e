"""What the rewards of a generation batch say about its completions: outcome advantages, and which are correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokencredit import outcome
from tokencredit.precision import widened

_ADVANTAGES = {"grpo": outcome.grpo, "dr_grpo": outcome.dr_grpo, "rloo": outcome.rloo}


@dataclass(frozen=True, eq=False)
class BatchRewards:
    """The rewards of N completions, those of all processes. A group may lie on several processes.

    Attributes:
        values: (N, F), of each reward function; NaN where one has nothing to say.
        weights: (F,). names: of the F functions.
        generations: consecutive completions that answer one prompt.
    """

    values: Tensor
    weights: Tensor
    names: Sequence[str]
    generations: int

    @property
    def group(self) -> Tensor:
        """(N,) long: which prompt a completion answers."""
        return torch.arange(len(self.values), device=self.values.device) // self.generations

    def weighted(self) -> Tensor:
        """(N,): the weighted sum of the rewards."""
        return (self.values * self.weights.to(self.values.device)).nansum(1)

    def advantages(self, name: str) -> Tensor:
        """(N,): the outcome advantages of `weighted`, by the estimator of that name."""
        return _ADVANTAGES[name](self.weighted(), self.group)

    def correct(self, reward: str | None, threshold: float) -> Tensor | None:
        """(N,) bool: which completions are correct; None where no reward function is known to say so.

        Args:
            reward: the name of the function that says so; may be None where there is only one.
            threshold: a completion is correct from this reward on.

        Raises:
            ValueError: it has nothing to say about a completion.
        """
        if reward is None and len(self.names) > 1:
            return None
        name = self.names[0] if reward is None else reward
        values = self.values[:, self.names.index(name)]
        if values.isnan().any():
            row = int(values.isnan().nonzero()[0, 0])
            raise ValueError(
                f"the reward function {name} says which completions are correct, but gave None for completion {row} of "
                "a generation batch: let it give a number for each, or name another one in credit_correct_reward"
            )
        return values >= threshold

    def group_means(self, values: Tensor) -> Tensor:
        """(N,) float: the mean of `values` (N,) over the completion's group."""
        return widened(values).view(-1, self.generations).mean(1).repeat_interleave(self.generations)
