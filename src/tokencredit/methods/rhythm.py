"""Rhythm: preplan and anchor (arXiv 2510.13554). Reasoning advances in two beats, and attention shows both.

A token that looks far back opens a chunk (preplan: WAAD changes); one that later tokens keep looking back at carries it
(anchor: high FAI).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods.base import (
    check_choice,
    check_heads,
    check_number,
    check_whole,
    shown,
    top_count,
    top_mask,
)
from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention_statistics import HeadDistances
from tokencredit.signals.types import DistanceNeed, Needs, Signals

LONGEST = 10**9
"""The longest distance that a horizon may have."""


@dataclass(frozen=True)
class Rhythm:
    """Amplifies the preplan tokens (`local`), the anchors (`global`), or both, coupled.

    Heads: of the n heads of the sampled layers, the floor(head_fraction * n) (at least one) with the lowest mean
    look-back distance are local, those with the highest are global; grouped for each completion by itself, ties by
    (layer, head). With `heads="all"` both groups are all heads. `local_heads` and `global_heads`, given together, are
    groups that do not change (`tc.group_heads` finds them), and the layers read are theirs.

    WAAD and FAI are means over the local and the global group; delta_t = |WAAD_t - WAAD_{t+1}|, 0 at the last token.
    `local`: w = amplification on the top q by delta, else 1. `global`: likewise by FAI. `coupled`: see `_coupled`.

    Args:
        layers: five evenly spaced layers of the `bottom`, `middle` or `top` third, or `all`.
        local_heads, global_heads: (layer, head) pairs.
        window: W of WAAD. horizon: (low, high) of FAI.
        alpha, k: of `coupled`: the share that a dominated anchor hands on, and how far back its preplan may lie.
        sign: `positive` or `negative` leaves completions whose advantage has the other sign uniform.
        select: `bottom` amplifies the lowest instead of the highest.
    """

    strategy: str = "coupled"
    layers: str = "middle"
    head_fraction: float = 0.3
    window: int = 10
    horizon: tuple[int, int] = (10, 100)
    q: float = 0.4
    amplification: float = 1.5
    alpha: float = 0.5
    k: int = 3
    sign: str = "both"
    select: str = "top"
    heads: str = "targeted"
    local_heads: tuple[tuple[int, int], ...] | None = None
    global_heads: tuple[tuple[int, int], ...] | None = None
    name: ClassVar[str] = "rhythm"
    sign_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, ("local", "global", "coupled"))
        check_choice("layers", self.layers, ("middle", "all", "top", "bottom"))
        check_number("head_fraction", self.head_fraction, 0, 1, open_low=True)
        check_number("q", self.q, 0, 1, open_low=True)
        check_number("amplification", self.amplification, 0)
        check_number("alpha", self.alpha, 0, 1)
        check_choice("sign", self.sign, ("both", "positive", "negative"))
        check_choice("select", self.select, ("top", "bottom"))
        check_choice("heads", self.heads, ("targeted", "all"))
        check_whole("window", self.window, 1)
        check_whole("k", self.k, 1)
        object.__setattr__(self, "horizon", _checked_horizon(self.horizon))
        self._check_amplification()
        if (self.local_heads is None) != (self.global_heads is None):
            raise ValueError("give local_heads and global_heads together, or neither")
        if self.local_heads is not None and self.heads == "all":
            raise ValueError('heads="all" and groups of heads exclude each other: give one of them')
        if self.local_heads is not None and self.global_heads is not None:
            object.__setattr__(self, "local_heads", check_heads("local_heads", self.local_heads, "tc.group_heads"))
            object.__setattr__(self, "global_heads", check_heads("global_heads", self.global_heads, "tc.group_heads"))

    def _check_amplification(self) -> None:
        """An intro that is also an anchor gets the share 1 + alpha, and so the weight 1 + (amplification - 1) *
        (1 + alpha), which must not be negative."""
        lowest = self.alpha / (1 + self.alpha)
        if self.strategy == "coupled" and self.amplification < lowest:
            raise ValueError(
                f"amplification must be at least alpha / (1 + alpha) = {lowest:.4g} with strategy=coupled and "
                f"alpha={self.alpha:g}, or some weights are negative; got {self.amplification:g}"
            )

    @property
    def needs(self) -> Needs:
        return Needs(distances=frozenset({self._distances}))

    @property
    def _distances(self) -> DistanceNeed:
        return DistanceNeed(self.layers, self.window, self.horizon, self._fixed_heads)

    @property
    def _fixed_heads(self) -> tuple[tuple[int, int], ...] | None:
        """Of the two groups, those that the strategy reads."""
        if self.local_heads is None or self.global_heads is None:
            return None
        local = self.local_heads if self.strategy != "global" else ()
        return tuple(sorted({*local, *(self.global_heads if self.strategy != "local" else ())}))

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        mask = rollouts.completion_mask
        waad, fai = self.group_means(signals.distances[self._distances])
        delta = torch.zeros_like(waad)
        delta[:, :-1] = torch.where(mask[:, 1:], (waad[:, :-1] - waad[:, 1:]).abs(), 0.0)
        bonus = self.amplification - 1
        if self.strategy == "local":
            weights = 1 + bonus * self._selected(delta, mask)
        elif self.strategy == "global":
            weights = 1 + bonus * self._selected(fai, mask)
        else:
            # At the lowest amplification that is allowed, rounding could leave a weight just below 0.
            weights = (1 + bonus * self._coupled(waad, delta, self._selected(fai, mask), mask)).clamp(min=0)
        wanted = {"both": advantages != 0, "positive": advantages > 0, "negative": advantages < 0}[self.sign]
        return multiplicative(rollouts, advantages, torch.where(wanted.to(mask.device)[:, None], weights, 1.0))

    def group_means(self, heads: HeadDistances) -> tuple[Tensor, Tensor]:
        """WAAD over the local heads and FAI over the global ones, (B, T) each; of fixed groups, 0 for one that the
        strategy does not read."""
        if self.heads == "all":
            return heads.waad.mean(1), heads.fai.mean(1)
        if self.local_heads is not None and self.global_heads is not None:
            return self._fixed(heads.waad, self.local_heads), self._fixed(heads.fai, self.global_heads)
        nearest, furthest = nearest_and_furthest(heads.look_back, self.head_fraction)
        length = heads.waad.shape[2]
        return (
            heads.waad.gather(1, nearest[..., None].expand(-1, -1, length)).mean(1),
            heads.fai.gather(1, furthest[..., None].expand(-1, -1, length)).mean(1),
        )

    def _fixed(self, values: Tensor, chosen: tuple[tuple[int, int], ...]) -> Tensor:
        """(B, H, T) of the heads read -> (B, T), the mean over the chosen ones."""
        read = self._fixed_heads or ()
        places = [read.index(head) for head in chosen if head in read]
        return values[:, places].mean(1) if places else torch.zeros_like(values[:, 0])

    def _selected(self, values: Tensor, mask: Tensor) -> Tensor:
        """(B, T) float: 1 on the top (or bottom) q tokens."""
        return top_mask(values if self.select == "top" else -values, mask, self.q).float()

    def _coupled(self, waad: Tensor, delta: Tensor, anchors: Tensor, mask: Tensor) -> Tensor:
        """(B, T): the share of the amplification that each token gets.

        An anchor is dominated if WAAD_t is at most the completion's median, and the largest delta of the k tokens
        before it at least the completion's 0.6-quantile: it follows from the preplan token that the delta marks. It
        keeps 1 - alpha, and that token, its intro, gets alpha; other anchors get 1. Shares add up where they meet; an
        intro gets its share once, however many anchors point at it.
        """
        k = min(self.k, delta.shape[1])
        before = torch.nn.functional.pad(delta, (k, 0), value=-torch.inf).unfold(1, k, 1)[:, : delta.shape[1]]
        highest = before.amax(-1)
        follows = (waad <= _quantiles(waad, mask, 0.5)) & (highest >= _quantiles(delta, mask, 0.6))
        dominated = anchors.bool() & follows & (highest > -torch.inf)
        # The earliest of equal ones: argmax returns the first.
        first = torch.arange(delta.shape[1], device=delta.device) - k + before.argmax(-1)
        rows, at = dominated.nonzero(as_tuple=True)
        intros = torch.zeros_like(anchors)
        intros[rows, first[rows, at]] = 1.0
        return torch.where(dominated, 1 - self.alpha, anchors) + self.alpha * intros


def _checked_horizon(horizon: Any) -> tuple[int, int]:
    """(low, high). Raises a ValueError unless they are two whole numbers with 1 <= low <= high."""
    pair = tuple(horizon) if isinstance(horizon, list | tuple) else ()
    if len(pair) != 2 or not all(type(end) is int for end in pair) or not 1 <= pair[0] <= pair[1] <= LONGEST:
        raise ValueError(
            f"horizon must be (low, high), whole numbers with 1 <= low <= high <= {LONGEST}; got {shown(horizon)}"
        )
    return pair[0], pair[1]


def _quantiles(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """(B, 1): the linearly interpolated quantile of each row's masked tokens; infinite for a row without any."""
    ascending = values.masked_fill(~mask, torch.inf).sort(1).values
    at = q * (mask.sum(1, keepdim=True) - 1).clamp(min=0)
    low = at.floor().long()
    below, above = ascending.gather(1, low), ascending.gather(1, at.ceil().long())
    return torch.where(at == low, below, below + (at - low).to(values) * (above - below))


def nearest_and_furthest(look_back: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """(B, H) look-back distances -> indices of the heads with the lowest and the highest, (B, max(1, fraction * H))
    each; ties to the earlier head."""
    size = top_count(fraction, look_back.shape[1])
    order = partial(look_back.argsort, dim=1, stable=True)
    return order()[:, :size], order(descending=True)[:, :size]
