"""ATPO: attention-weighted credit. A reasoning token matters as much as the answer attends to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import check_number, check_whole
from tokencredit.notices import NO_ANSWER
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import FullAttentionLayer, Needs, Signals


@dataclass(frozen=True)
class ATPO:
    """Weights from the attention of the answer tokens on the reasoning tokens.

    a[s] = mean over answer rows, heads and the last `layers` layers of A[l,h,t,s]; z = standardised log a, over the
    completion's reasoning; y = sigmoid(temperature * z), rescaled to 0..1; w = floor + (1 - floor) * y on reasoning
    tokens, 1 on answer tokens. A completion without an answer stays uniform.

    The last layers are those with full attention. In a layer with a sliding window or chunks (as Gemma 3's last one),
    tokens further off than the window would all get the floor, whatever they mean. A model whose layers all have
    windows is read in its last ones as they are.

    The paper's code reads a frozen copy of the initial model, over the completion without its prompt; here it is the
    live policy, over prompt and completion.

    Own diagnostic: `outside_window`, the share of the reasoning tokens that no answer token can attend to in any layer
    that is read; 0 with full attention. It is absent where `signals` do not say (`Signals.answer_reach`).
    """

    layers: int = 1
    temperature: float = 2.0
    floor: float = 0.5
    name: ClassVar[str] = "atpo"
    sign_only: ClassVar[bool] = True
    uniform_because: ClassVar[Mapping[str, str]] = MappingProxyType({"no_answer": NO_ANSWER})

    def __post_init__(self) -> None:
        check_whole("layers", self.layers, 1, high=10_000)
        check_number("temperature", self.temperature, 0)
        check_number("floor", self.floor, 0, 1)

    @property
    def needs(self) -> Needs:
        return Needs(answer_attention=frozenset(FullAttentionLayer(i) for i in range(-self.layers, 0)))

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        reasoning = rollouts.reasoning_mask
        layers = sorted(self.needs.answer_attention)
        attention = torch.stack([signals.answer_attention[layer] for layer in layers])
        salience = widened(attention).mean((0, 2))
        y = _rescaled_sigmoid(torch.log(salience + 1e-6), reasoning, self.temperature)
        weights = torch.where(reasoning, self.floor + (1 - self.floor) * y, 1.0)
        reaches = [signals.answer_reach[layer] for layer in layers if layer in signals.answer_reach]
        own = {"outside_window": _share_outside(reasoning, torch.stack(reaches).any(0))} if reaches else {}
        return multiplicative(rollouts, advantages, weights, **own)


def _share_outside(reasoning: Tensor, reach: Tensor) -> Tensor:
    """(B,): the share of the reasoning tokens (B, T) that are not within reach (B, T); 0 where there are none."""
    count = widened(reasoning.sum(1))
    return divided(widened((reasoning & ~reach).sum(1)), by=count, otherwise=0.0).float()


def _rescaled_sigmoid(x: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Standardise x (B, T) over each row's mask (std with ddof=1), squash, rescale to 0..1; 0.5 where all are equal."""
    count = mask.sum(1, keepdim=True)
    mean = torch.where(mask, x, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(mask, x - mean, 0.0)
    std = ((centred**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    # Equal x must give 0.5 whatever the rounding of their mean, so equality is asked of x itself.
    low, high = _extremes(x, mask)
    y = torch.sigmoid(temperature * divided(centred, by=torch.where(high > low, std, 0.0), otherwise=0.0))
    low, high = _extremes(y, mask)
    return divided(y - low, by=torch.where(mask.any(1, keepdim=True), high - low, 0.0), otherwise=0.5)


def _extremes(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest x (B, 1) within each row's mask; +inf and -inf where it is empty."""
    low = x.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    return low, x.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
