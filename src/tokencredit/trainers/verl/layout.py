"""verl's batches as rollouts, and where its passes put their tokens.

verl keeps sequences of prompt and completion as nested tensors, and gives a model either all in one row (packed, with
padding removed) or one a row, padded on the right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention_statistics import Attention


def rollouts_of(prompts: Tensor, completions: Tensor) -> Rollouts:
    """Rollouts from nested token ids, one row a completion."""
    return Rollouts(*_padded(prompts, left=True), *_padded(completions, left=False))


def from_nested(values: Tensor, like: Tensor) -> Tensor:
    """(B, T): nested values of the completions' tokens on their grid, 0 on padding.

    Args:
        like: (B, T) bool, the completion mask.
    """
    grid = torch.zeros(like.shape, dtype=values.dtype, device=values.device)
    grid[like] = values.values() if values.is_nested else values.flatten()
    return grid


def to_nested(values: Tensor, mask: Tensor) -> Tensor:
    """The reverse of `from_nested`: (B, T, ...) to one flat row a completion."""
    lengths = mask.sum(1).tolist()
    rows = [row[:length].flatten() for row, length in zip(values, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a pass has the tokens of rollouts.

    Attributes:
        index: (B, N) long, the place of each token among the pass's R * C places, row after row; any on padding.
        mask: (B, N) bool, the real tokens.
        width: C, or less where what is behind is nobody's.
    """

    index: Tensor
    mask: Tensor
    width: int

    @classmethod
    def packed(cls, rollouts: Rollouts) -> Layout:
        """All sequences in one row, one behind the other."""
        lengths = rollouts.attention_mask.sum(1)
        return cls._from(rollouts, lengths.cumsum(0) - lengths, int(lengths.sum()))

    @classmethod
    def padded(cls, rollouts: Rollouts) -> Layout:
        """Each sequence at the start of a row, as wide as the longest."""
        width = int(rollouts.attention_mask.sum(1).max())
        return cls._from(rollouts, torch.arange(len(rollouts), device=rollouts.prompt_ids.device) * width, width)

    @classmethod
    def _from(cls, rollouts: Rollouts, starts: Tensor, width: int) -> Layout:
        return cls(starts[:, None] + rollouts.position_ids, rollouts.attention_mask, width)

    def on_grid(self, values: Tensor) -> Tensor:
        """(R, C, ...) of the pass -> (B, N, ...) of the rollouts; anything on padding."""
        return values.flatten(0, 1)[self.index.clamp(max=values.shape[0] * values.shape[1] - 1)]

    def attention(self, attention: Attention) -> Attention:
        """Attention of the pass on the rollouts' grid."""
        # A mask of (R, C), or none, leaves causality to the kernel, and which sequence a token is of to the layout.
        seen = self.mask if attention.only_padding else self._square(attention.mask)
        sums = {name: getattr(attention, name) for name in ("log_sum_exp", "look_back")}
        told: dict[str, Any] = {name: self._heads(values) for name, values in sums.items() if values is not None}
        return replace(attention, query=self._heads(attention.query), key=self._heads(attention.key), mask=seen, **told)

    def _heads(self, values: Tensor) -> Tensor:
        """(R, H, C, ...) of the pass -> (B, H, N, ...) of the rollouts."""
        return self.on_grid(values.transpose(1, 2)).transpose(1, 2)

    def _square(self, mask: Tensor) -> Tensor:
        """(R or 1, 1, C, C) of the pass -> (B, 1, N, N) bool, False on padding."""
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"attention masks of type {type(mask).__name__} cannot be read in verl's layouts: use sdpa"
            )
        row, column = self.index // self.width, self.index % self.width
        row = row.clamp(max=mask.shape[0] - 1)[..., None]
        values = mask[row, 0, column[:, :, None], column[:, None, :]]
        seen = values if mask.dtype == torch.bool else values > torch.finfo(mask.dtype).min / 2
        return (seen & self.mask[:, None, :] & self.mask[:, :, None])[:, None]


def _padded(values: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    """Nested rows as (B, W) and their mask; W is at least 1."""
    lengths = values.offsets().diff()
    width = max(1, int(lengths.max())) if len(lengths) else 1
    place = torch.arange(width, device=lengths.device)
    mask = place >= (width - lengths)[:, None] if left else place < lengths[:, None]
    grid = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    grid[mask] = values.values()
    return grid, mask
