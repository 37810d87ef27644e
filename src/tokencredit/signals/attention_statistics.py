"""Statistics of attention, exact, in memory linear in length: no (N, N) matrix is built.

Rows are worked through in blocks, in float32 (float64 for a float64 model). With attention sinks a row's mass is below
one; every statistic is of the attention that reaches tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

_MAX_SCORES = 1 << 21
"""Scores held at once, in elements: a block that stays in cache is faster, whatever the length."""


@dataclass(frozen=True, eq=False)
class Attention:
    """What an attention function is given, for whole sequences.

    Attributes:
        query: (B, H, N, d). key: (B, H_kv, N, d), heads not expanded.
        mask: None (causal), (B, N) padding, or (B or 1, 1, N, N), bool or additive.
        window: sliding window, where the mask leaves it to the kernel.
        softcap: tanh cap on the scores (Gemma 2). sinks: (H,) logits that take part in the softmax (gpt-oss).
        memory: for scores, filled at need; layers that share it reuse it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Any = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    memory: list[Tensor] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.query.dtype, torch.float32)

    @cached_property
    def _wide_key(self) -> Tensor:
        """`key` in `dtype`, cast once for all blocks of rows."""
        return self.key.to(self.dtype)

    def probabilities(self, queries: Tensor, seen: Tensor, stop: int) -> Tensor:
        """Some rows of A over the first `stop` keys, (B, H, R, stop); a row that sees nothing has no meaning.

        The next call overwrites them: fresh memory for every block of rows would cost more than the arithmetic.

        Args:
            queries: (B, H, R, d), rows of `query`.
            seen: (B or 1, R, S) bool, which of the last S of those keys each row sees; all rows see those before.
        """
        batch, heads, r, width = queries.shape
        keys = self._wide_key[:, :, :stop].mT
        scaled = (queries.to(self.dtype) * self.scaling).reshape(batch, keys.shape[1], -1, width)
        scores, result = self._buffers((batch, heads, r, stop))
        torch.matmul(scaled, keys, out=scores.view(*scaled.shape[:-1], stop))
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        scores[..., stop - seen.shape[-1] :].masked_fill_(~seen[:, None], torch.finfo(self.dtype).min)
        if self.sinks is None:
            return torch.softmax(scores, -1, out=result)
        sinks = self.sinks.to(self.dtype)[:, None, None].expand(batch, heads, r, 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    def _buffers(self, shape: tuple[int, ...]) -> list[Tensor]:
        """Two buffers of a shape, cut from memory that is kept."""
        size, kind = math.prod(shape), (self.dtype, self.query.device)
        if not self.memory or self.memory[0].numel() < size or (self.memory[0].dtype, self.memory[0].device) != kind:
            largest = math.prod(shape[:-1]) * self.query.shape[2]
            self.memory[:] = [torch.empty(largest, dtype=kind[0], device=kind[1]) for _ in range(2)]
        return [memory[:size].view(shape) for memory in self.memory]

    def seen_by(self, rows: Tensor) -> Tensor:
        """(B, R) row indices -> (B, R, N) bool, the keys that each row sees."""
        if self.mask is None or self.mask.ndim == 2:  # causality and window are the kernel's own business
            distance = rows[..., None] - torch.arange(self.query.shape[2], device=rows.device)
            seen = (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)
            return seen if self.mask is None else seen & self.mask.bool()[:, None]
        index = rows[..., None].expand(-1, -1, self.mask.shape[-1])
        return _seen(self.mask[:, 0].expand(rows.shape[0], -1, -1).gather(1, index))

    def seen_by_block(self, start: int, stop: int) -> Tensor:
        """(B or 1, stop - start, S) bool: which of the S keys before `stop` rows `start` to `stop` see; S as small as
        can be, all rows seeing what lies before.

        Raises:
            ValueError: the mask lets a row see what comes after it.
        """
        if self.mask is None or self.mask.ndim == 2:
            if self.mask is None and self.window is None:
                return torch.ones(1, stop - start, stop - start, dtype=torch.bool, device=self.query.device).tril_()
            rows = torch.arange(start, stop, device=self.query.device)
            return self.seen_by(rows.expand(1 if self.mask is None else self.mask.shape[0], -1))[..., :stop]
        seen = _seen(self.mask[:, 0, start:stop])
        if seen.triu(start + 1).any():
            raise ValueError("the attention mask lets tokens see what comes after them, which is not supported")
        return seen[..., :stop]


@dataclass(frozen=True, eq=False)
class HeadDistances:
    """How far some heads look back, and how much they are looked back at. float32.

    Attributes:
        look_back: (B, H), mean over completion rows t of sum_s A[t,s] (t - s).
        waad: (B, H, T), sum_s A[t,s] min(t - s, window) (windowed average attention distance).
        fai: (B, H, T), mean of A[t,s] over the completion rows t from s + low to s + high (future attention
            influence); 0 where there is no such row.
    """

    look_back: Tensor
    waad: Tensor
    fai: Tensor

    def to(self, device: torch.device) -> HeadDistances:
        return HeadDistances(self.look_back.to(device), self.waad.to(device), self.fai.to(device))

    @classmethod
    def join(cls, parts: Sequence[HeadDistances], dim: int) -> HeadDistances:
        """Those of several slices of a batch (dim 0), or of several layers (dim 1), as one."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts], dim) for f in fields(cls)})


def answer_row_mean(attention: Attention, rows: Tensor) -> Tensor:
    """Mean over the rows (B, N) bool of a completion of A[t, s]: (B, H, N) float32, 0 for one without rows."""
    batch, heads, length, width = attention.query.shape
    count = rows.sum(1)
    index = rows.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    is_row = torch.arange(index.shape[1], device=rows.device) < count[:, None]
    total = torch.zeros(batch, heads, length, dtype=attention.dtype, device=rows.device)
    block = max(1, _MAX_SCORES // (batch * heads * length))
    for rows_r, is_row_r in zip(index.split(block, 1), is_row.split(block, 1), strict=True):
        queries = attention.query.gather(2, rows_r[:, None, :, None].expand(-1, heads, -1, width))
        rows_of_a = attention.probabilities(queries, attention.seen_by(rows_r), length)
        total += (is_row_r[:, None, None].to(rows_of_a) @ rows_of_a)[:, :, 0]
    return (total / count.clamp(min=1)[:, None, None]).float()


def head_distances(
    attention: Attention, completion_mask: Tensor, window: int, horizon: tuple[int, int]
) -> HeadDistances:
    """Look-back distance, WAAD and FAI of every head in one pass over the completion's rows.

    Args:
        completion_mask: (B, T) bool; the completion is the last T of the N tokens.
        window: W of WAAD. horizon: (low, high) of FAI.
    """
    batch, heads, length, _ = attention.query.shape
    low, high = horizon
    start, lengths = length - completion_mask.shape[1], completion_mask.sum(1)
    new = partial(torch.zeros, dtype=attention.dtype, device=attention.query.device)
    positions = torch.arange(length, dtype=attention.dtype, device=attention.query.device)
    look_back, waad, fai = new(batch, heads), new(batch, heads, length - start), new(batch, heads, length - start)
    block = min(64, max(8, _MAX_SCORES // (batch * heads * length)))
    for r0 in range(start, length, block):
        r1 = min(length, r0 + block)
        rows = attention.probabilities(attention.query[:, :, r0:r1], attention.seen_by_block(r0, r1), r1)
        real = completion_mask[:, None, r0 - start : r1 - start]
        row, column = positions[r0:r1], positions[:r1]
        mass = 1 if attention.sinks is None else rows.sum(-1)
        # t - s = (t - r0) + (r0 - s): centred on the block, so that float32 keeps long distances exact.
        distance = rows @ (r0 - column) + mass * (row - r0)
        look_back += (distance * real).sum(-1)
        first = max(0, r0 - max(window, high))
        band = rows[..., first:] * real[..., None]
        behind = row[:, None] - column[first:]
        # min(t - s, W) is W but for the nearest W tokens.
        waad[..., r0 - start : r1 - start] = real * (window * mass) - (band * (window - behind).clamp(min=0)).sum(-1)
        influence = (band * ((behind >= low) & (behind <= high))).sum(-2)
        fai[..., max(first, start) - start : r1 - start] += influence[..., max(first, start) - first :]
    s = torch.arange(length - start, device=lengths.device)
    rows_ahead = (torch.minimum(lengths[:, None] - 1, s + high) - (s + low) + 1).clamp(min=1)
    return HeadDistances(
        look_back=(look_back / lengths.clamp(min=1)[:, None]).float(),
        waad=waad.float(),
        fai=(fai / rows_ahead[:, None]).float(),
    )


def check_mask(mask: Any) -> None:
    """Raise a ValueError for a mask that `Attention` cannot read."""
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"attention masks of type {type(mask).__name__} cannot be read: use sdpa or eager attention")
    if mask is not None and mask.ndim != 2 and (mask.ndim != 4 or mask.shape[1] != 1):
        raise ValueError(f"attention masks of shape {tuple(mask.shape)} cannot be read: one for all heads is expected")


def _seen(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not ((mask == 0) | hidden).all():
        raise ValueError("the attention mask adds a bias to the scores, which is not supported")
    return ~hidden
