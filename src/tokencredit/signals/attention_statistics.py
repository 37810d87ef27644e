"""Statistics of attention, exact, in memory linear in length: no (N, N) matrix is built.

Rows are worked through in blocks, in float32 (float64 for a float64 model). With attention sinks a row's mass is below
one; every statistic is of the attention that reaches tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

_MAX_SCORES = 1 << 21
"""Scores held at once, in elements: a block that stays in cache is faster, whatever the length."""


@dataclass(frozen=True, eq=False)
class Attention:
    """What an attention function is given, for whole sequences.

    Attributes:
        query: (B, H, N, d). key: (B, H_kv, N, d), heads not expanded.
        mask: None (causal), (B, N) padding, (B or 1, 1, N, N), bool or additive, or the BlockMask of flex attention.
        window: sliding window, where the mask leaves it to the kernel.
        softcap: tanh cap on the scores (Gemma 2). sinks: (H,) logits that take part in the softmax (gpt-oss).
        log_sum_exp: (B, H, N), of each row's scores as the fields above give them in `dtype`, where the model's own
            attention has told it.
        look_back: (B, H, N), sum_s A[t,s] (t - s) of each row, likewise; only beside `log_sum_exp`.
        memory: for scores, filled at need; layers that share it reuse it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Any = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    log_sum_exp: Tensor | None = None
    look_back: Tensor | None = None
    memory: list[Tensor] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.query.dtype, torch.float32)

    @cached_property
    def _wide_key(self) -> Tensor:
        """`key` in `dtype`, cast once for all blocks of rows."""
        return self.key.to(self.dtype)

    @property
    def only_padding(self) -> bool:
        """The mask says what is padding, at most; causality and window are the kernel's own business."""
        return self.mask is None or (isinstance(self.mask, Tensor) and self.mask.ndim == 2)

    @property
    def usable_log_sum_exp(self) -> Tensor | None:
        """`log_sum_exp`, but for attention with sinks, where it is not known whether it counts them."""
        return None if self.sinks is not None else self.log_sum_exp

    def of_heads(self, heads: Sequence[int]) -> Attention:
        """The same for some heads only, in the order given."""
        chosen = torch.tensor(heads, device=self.query.device)
        shared = self.query.shape[1] // self.key.shape[1]

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.index_select(1, chosen)

        return replace(
            self,
            query=self.query.index_select(1, chosen),
            key=self.key.index_select(1, chosen // shared),
            sinks=None if self.sinks is None else self.sinks[chosen],
            log_sum_exp=of(self.log_sum_exp),
            look_back=of(self.look_back),
        )

    def probabilities(self, queries: Tensor, seen: Tensor, stop: int) -> Tensor:
        """Some rows of A over the first `stop` keys, (B, H, R, stop); a row that sees nothing has no meaning.

        The next call overwrites them: fresh memory for every block of rows would cost more than the arithmetic.

        Args:
            queries: (B, H, R, d), rows of `query`.
            seen: (B or 1, R, S) bool, which of the last S of those keys each row sees; all rows see those before.
        """
        scores, result = self._scores(queries, seen, 0, stop, most=self.query.shape[2])
        if self.sinks is None:
            return torch.softmax(scores, -1, out=result)
        sinks = self.sinks.to(self.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    def band(self, start: int, stop: int, first: int) -> Tensor:
        """Rows `start` to `stop` of A over the keys from `first` to `stop`, (B, H, stop - start, stop - first), from
        `log_sum_exp`; overwritten as `probabilities` are."""
        assert self.log_sum_exp is not None
        seen = self.seen_by_block(start, stop, first)
        scores, _ = self._scores(self.query[:, :, start:stop], seen, first, stop, most=stop - first)
        return scores.sub_(self.log_sum_exp[:, :, start:stop, None].to(self.dtype)).exp_()

    def _scores(self, queries: Tensor, seen: Tensor, first: int, stop: int, most: int) -> list[Tensor]:
        """Masked scores (B, H, R, stop - first) of some rows over the keys from `first` to `stop`, and memory of the
        same shape; `most` keys are expected in the calls to come."""
        batch, heads, r, width = queries.shape
        keys = self._wide_key[:, :, first:stop].mT
        scaled = (queries.to(self.dtype) * self.scaling).reshape(batch, keys.shape[1], -1, width)
        scores, spare = self._buffers((batch, heads, r, stop - first), batch * heads * r * most)
        torch.matmul(scaled, keys, out=scores.view(*scaled.shape[:-1], stop - first))
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        scores[..., stop - first - seen.shape[-1] :].masked_fill_(~seen[:, None], torch.finfo(self.dtype).min)
        return [scores, spare]

    def _buffers(self, shape: tuple[int, ...], largest: int) -> list[Tensor]:
        """Two buffers of a shape, cut from memory that is kept; new memory has room for `largest` elements."""
        size, kind = math.prod(shape), (self.dtype, self.query.device)
        if not self.memory or self.memory[0].numel() < size or (self.memory[0].dtype, self.memory[0].device) != kind:
            self.memory[:] = [torch.empty(largest, dtype=kind[0], device=kind[1]) for _ in range(2)]
        return [memory[:size].view(shape) for memory in self.memory]

    def seen_by(self, rows: Tensor, first: int = 0) -> Tensor:
        """(B, R) row indices -> (B, R, N - first) bool, the keys from `first` on that each row sees."""
        if self.only_padding:
            distance = rows[..., None] - torch.arange(first, self.query.shape[2], device=rows.device)
            seen = (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)
            return seen if self.mask is None else seen & self.mask[:, None, first:].bool()
        if isinstance(self.mask, BlockMask):
            sequence = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
            columns = torch.arange(first, self.query.shape[2], device=rows.device)
            seen = self.mask.mask_mod(sequence, torch.zeros_like(sequence), rows[..., None], columns)
            return seen.expand(*rows.shape, len(columns))
        index = rows[..., None].expand(-1, -1, self.mask.shape[-1])
        return _seen(self.mask[:, 0].expand(rows.shape[0], -1, -1).gather(1, index))

    def seen_by_block(self, start: int, stop: int, first: int = 0) -> Tensor:
        """(B or 1, stop - start, S) bool: which of the S keys before `stop` rows `start` to `stop` see; S as small as
        can be, all rows seeing what lies before, or as large as to begin at `first`.

        Raises:
            ValueError: the mask lets a row see what comes after it.
        """
        if self.mask is None and self.window is None:
            return torch.ones(1, stop - start, stop - start, dtype=torch.bool, device=self.query.device).tril_()
        if isinstance(self.mask, Tensor) and self.mask.ndim == 4:
            seen = _seen(self.mask[:, 0, start:stop, first:])
        else:
            rows = torch.arange(start, stop, device=self.query.device)
            seen = self.seen_by(rows.expand(1 if self.mask is None else self.mask.shape[0], -1), first)
        if not self.only_padding and seen.triu(start - first + 1).any():
            raise ValueError("the attention mask lets tokens see what comes after them, which is not supported")
        return seen[..., : stop - first]


@dataclass(frozen=True, eq=False)
class HeadDistances:
    """How far some heads look back, and how much they are looked back at. float32.

    Attributes:
        look_back: (B, H), mean over completion rows t of sum_s A[t,s] (t - s); (B, 0) where it was not asked for.
        waad: (B, H, T), sum_s A[t,s] min(t - s, window) (windowed average attention distance).
        fai: (B, H, T), mean of A[t,s] over the completion rows t from s + low to s + high (future attention
            influence); 0 where there is no such row.
    """

    look_back: Tensor
    waad: Tensor
    fai: Tensor

    def to(self, device: torch.device) -> HeadDistances:
        return HeadDistances(self.look_back.to(device), self.waad.to(device), self.fai.to(device))

    def of_heads(self, order: Sequence[int]) -> HeadDistances:
        """Of these heads, in this order; of their look-back distances none."""
        return HeadDistances(self.look_back[:, :0], self.waad[:, order], self.fai[:, order])

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
    attention: Attention,
    completion_mask: Tensor,
    window: int,
    horizon: tuple[int, int],
    *,
    look_back: bool = True,
) -> HeadDistances:
    """Look-back distance, WAAD and FAI of every head, from one pass over the completion's rows.

    The pass reads a band of keys where `attention` has the log-sum-exp of its rows (and, if asked for, their look-back
    distance) already; else all keys.

    Args:
        completion_mask: (B, T) bool; the completion is the last T of the N tokens.
        window: W of WAAD. horizon: (low, high) of FAI.
    """
    batch, heads, length, _ = attention.query.shape
    low, high = horizon
    start, lengths = length - completion_mask.shape[1], completion_mask.sum(1)
    new = partial(torch.zeros, dtype=attention.dtype, device=attention.query.device)
    positions = torch.arange(length, dtype=attention.dtype, device=attention.query.device)
    total, waad, fai = new(batch, heads), new(batch, heads, length - start), new(batch, heads, length - start)
    told = attention.usable_log_sum_exp is not None and (attention.look_back is not None or not look_back)
    read = min(length, 64 + max(window, high)) if told else length
    block = min(64, max(8, _MAX_SCORES // (batch * heads * read)))
    for r0 in range(start, length, block):
        r1 = min(length, r0 + block)
        first = max(0, r0 - max(window, high))
        rows = _banded_rows(attention, r0, r1, first) if told else _whole_rows(attention, r0, r1, first, look_back)
        real = completion_mask[:, None, r0 - start : r1 - start]
        if rows.distance is not None:
            total += torch.where(real, rows.distance, 0.0).sum(-1)
        band = rows.band.masked_fill_(~real[..., None], 0.0)
        behind = positions[r0:r1, None] - positions[first:r1]
        # min(t - s, W) is W but for the nearest W tokens.
        waad[..., r0 - start : r1 - start] = real * (window * rows.mass) - (band * (window - behind).clamp(min=0)).sum(
            -1
        )
        influence = (band * ((behind >= low) & (behind <= high))).sum(-2)
        fai[..., max(first, start) - start : r1 - start] += influence[..., max(first, start) - first :]
    return HeadDistances(
        look_back=(total / lengths.clamp(min=1)[:, None]).float()[:, : heads if look_back else 0],
        waad=waad.float(),
        fai=(fai / rows_ahead(lengths, length - start, horizon)[:, None]).float(),
    )


def rows_ahead(lengths: Tensor, columns: int, horizon: tuple[int, int]) -> Tensor:
    """(B, columns): how many rows of a completion, of `lengths` (B,), FAI is a mean over; 1 where there is none."""
    low, high = horizon
    s = torch.arange(columns, device=lengths.device)
    return (torch.minimum(lengths[:, None] - 1, s + high) - (s + low) + 1).clamp(min=1)


class _Rows(NamedTuple):
    """Some rows of A: `band` (B, H, R, S), their last S keys; `mass` and `distance` (B, H, R), sums over all keys."""

    band: Tensor
    mass: Tensor | int
    distance: Tensor | None


def _whole_rows(attention: Attention, start: int, stop: int, first: int, look_back: bool) -> _Rows:
    rows = attention.probabilities(attention.query[:, :, start:stop], attention.seen_by_block(start, stop), stop)
    mass = 1 if attention.sinks is None else rows.sum(-1)
    if not look_back:
        return _Rows(rows[..., first:], mass, None)
    positions = torch.arange(stop, dtype=rows.dtype, device=rows.device)
    # t - s = (t - start) + (start - s): centred on the block, so that float32 keeps long distances exact.
    return _Rows(rows[..., first:], mass, rows @ (start - positions) + mass * (positions[start:] - start))


def _banded_rows(attention: Attention, start: int, stop: int, first: int) -> _Rows:
    distance = None if attention.look_back is None else attention.look_back[:, :, start:stop].to(attention.dtype)
    return _Rows(attention.band(start, stop, first), 1, distance)


def check_mask(mask: Any) -> None:
    """Raise a ValueError for a mask that `Attention` cannot read."""
    if mask is not None and not isinstance(mask, Tensor | BlockMask):
        raise ValueError(f"attention masks of type {type(mask).__name__} cannot be read: use sdpa or eager attention")
    if isinstance(mask, BlockMask) and mask.shape[1] != 1:
        raise ValueError(f"block masks of shape {mask.shape} cannot be read: one for all heads is expected")
    if isinstance(mask, Tensor) and mask.ndim != 2 and (mask.ndim != 4 or mask.shape[1] != 1):
        raise ValueError(f"attention masks of shape {tuple(mask.shape)} cannot be read: one for all heads is expected")


def _seen(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not ((mask == 0) | hidden).all():
        raise ValueError("the attention mask adds a bias to the scores, which is not supported")
    return ~hidden
