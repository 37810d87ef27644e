"""Sampling in which every completion has random numbers of its own.

The `generate` of transformers draws the tokens of a batch from one random state, so that a completion depends on which
others are in its batch and on how many batches came before. Here each token is drawn with a number that the seed, the
problem and the sample decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


def random_numbers(rows: Sequence[int], samples: int, seed: int, length: int) -> Tensor:
    """(len(rows), length) in 0..1: the random numbers that the tokens of each completion are drawn with.

    Args:
        rows: the problem of each completion; those of a problem are side by side, `samples` of them.
    """
    numbers = []
    for place, row in enumerate(rows):
        key = sha256(f"{seed}-{row}-{place % samples}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        numbers.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(numbers)


def drawing_with(numbers: Tensor, temperature: float, top_p: float) -> LogitsProcessorList:
    """What `generate` is given so that it draws with these numbers (B, T); with `do_sample=False`."""
    nucleus = [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList([_Checked(), TemperatureLogitsWarper(temperature), *nucleus, _Draw(numbers)])


def taking_likeliest() -> LogitsProcessorList:
    """What `generate` is given for greedy completions, with `do_sample=False`."""
    return LogitsProcessorList([_Checked()])


class _Checked(LogitsProcessor):
    """Refuses logits that define no distribution: of them some token would be taken, and nothing would say so."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V), unchanged. A token may be ruled out with minus infinity, but not all of them."""
        # The maximum is NaN if any logit is, and infinite if one is or if all tokens are ruled out.
        if not scores.amax(-1).isfinite().all():
            raise ValueError(
                "the model's logits are NaN or infinite, so no token can be drawn from them: the weights may be "
                "damaged, or their precision too low (load the model in float32 or bfloat16)"
            )
        return scores


class _Draw(LogitsProcessor):
    """Draws a token for each completion, by inverting the distribution's cumulative sum, and rules out all others."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._position = numbers, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) in which the token that was drawn has 0, and every other one minus infinity."""
        # Not every device has double precision, without which small probabilities are lost in the sum.
        kind = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = scores.to(kind).softmax(-1).cumsum(-1)
        whole = cumulative[:, -1:]
        number = self._numbers[:, self._position, None].to(cumulative) * whole
        self._position += 1
        # The first token whose sum exceeds the number has a probability above 0.
        below = torch.nextafter(whole, torch.zeros_like(whole))
        token = torch.searchsorted(cumulative, torch.minimum(number, below), right=True)
        return torch.full_like(scores, -math.inf).scatter(-1, token, 0.0)
