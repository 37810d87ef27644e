"""Random credit: the control for methods that amplify a fraction of the tokens (rhythm's "random" baseline)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import check_number, check_whole, top_count
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class Random:
    """w[t] = amplification on a random fraction q of the completion's tokens, else 1.

    The choice is seeded by the tokens of prompt and completion, so it repeats, and does not depend on batch mates;
    another `seed` is another choice.
    """

    q: float = 0.4
    amplification: float = 1.5
    seed: int = 0
    name: ClassVar[str] = "random"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("q", self.q, 0, 1, open_low=True)
        check_number("amplification", self.amplification, 0)
        check_whole("seed", self.seed, -(10**18), 10**18)

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        weights = torch.ones_like(rollouts.completion_mask, dtype=torch.float32)
        for i, length in enumerate(rollouts.lengths.tolist()):
            if length:
                prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]].tolist()
                completion = rollouts.completion_ids[i][rollouts.completion_mask[i]].tolist()
                chosen = random.Random(repr((self.seed, prompt, completion)))
                weights[i, chosen.sample(range(length), top_count(self.q, length))] = float(self.amplification)
        return multiplicative(rollouts, advantages, weights)
