"""The functions of `attention_statistics` as Triton kernels, for GPUs; float32 and narrower inputs.

Only rows that are asked about are computed, in memory linear in length. The kernels equal the reference in Triton's
interpreter and compile ahead of time for sm_80 and sm_90, but they have never been run on a GPU, nor timed: the sizes
of tiles are reasoned for heads of width 128, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokencredit.signals.attention_statistics import Attention, HeadDistances, rows_ahead

try:
    import triton

    from tokencredit.signals import triton_kernels
except ImportError as error:
    raise ImportError('the Triton kernels need Triton: pip install "tokencredit[triton]"') from error

_MAX_SEEN = 1 << 24
"""Elements of a (B, 1, N, N) mask that are read at once."""


def answer_row_mean(attention: Attention, rows: Tensor) -> Tensor:
    """As `attention_statistics.answer_row_mean`: the mean over rows (B, N) of A[t, s], (B, H, N) float32.

    Raises:
        ValueError: float64, no GPU, or a row that does not see a run of keys up to itself.
    """
    _refuse_unsupported(attention)
    _, heads, length, _ = attention.query.shape
    count = rows.sum(1)
    index = rows.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    is_row = torch.arange(index.shape[1], device=rows.device) < count[:, None]
    chosen = _see(attention, index, is_row)
    told = attention.usable_log_sum_exp
    if told is None:
        log_sum_exp, _ = _row_sums(attention, chosen, look_back=False)
    else:
        log_sum_exp = told.gather(2, index[:, None].expand(-1, heads, -1))
    total = _column_sums(attention, chosen, _with_sinks(attention, log_sum_exp), length, low=0, high=length)
    return total.div_(count.clamp(min=1)[:, None, None])


def head_distances(
    attention: Attention,
    completion_mask: Tensor,
    window: int,
    horizon: tuple[int, int],
    *,
    look_back: bool = True,
) -> HeadDistances:
    """As `attention_statistics.head_distances`: look-back distance, WAAD and FAI of every head.

    Args:
        completion_mask: (B, T) bool; the completion is the last T of the N tokens.
        window: W of WAAD. horizon: (low, high) of FAI.
        look_back: read the look-back distance; else it is (B, 0).

    Raises:
        ValueError: float64, no GPU, or a row that does not see a run of keys up to itself.
    """
    _refuse_unsupported(attention)
    length, columns, lengths = attention.query.shape[2], completion_mask.shape[1], completion_mask.sum(1)
    positions = torch.arange(length - columns, length, device=completion_mask.device)
    chosen = _see(attention, positions.expand_as(completion_mask), completion_mask.bool())
    told = attention.usable_log_sum_exp
    if told is None or look_back:
        log_sum_exp, distance = _row_sums(attention, chosen, look_back=look_back)
    else:
        log_sum_exp, distance = told[:, :, length - columns :], None
    mass = (chosen.position >= 0)[:, None].float()
    if attention.sinks is not None:
        mass = mass * torch.sigmoid(log_sum_exp - attention.sinks.float()[:, None])
    log_sum_exp = _with_sinks(attention, log_sum_exp)
    low, high = horizon
    influence = _column_sums(attention, chosen, log_sum_exp, columns, low=low, high=min(high, length), banded=True)
    far = mass.new_zeros(len(lengths), 0) if distance is None else (distance * mass).sum(-1)
    return HeadDistances(
        look_back=far / lengths.clamp(min=1)[:, None],
        # min(t - s, W) is W but for the nearest W tokens.
        waad=window * mass - _near_sums(attention, chosen, log_sum_exp, window),
        fai=influence / rows_ahead(lengths, columns, horizon)[:, None],
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """R rows of A for each completion, as the kernels take them: `position` and `first`, (B, R) int32."""

    position: Tensor
    first: Tensor


def _see(attention: Attention, rows: Tensor, real: Tensor) -> _Rows:
    """What each of the rows (B, R) sees; those that are not `real`, or see nothing, are left out.

    Raises:
        ValueError: a real row does not see a run of keys up to itself.
    """
    if attention.only_padding:
        first, is_run = _seen_under_padding(attention, rows)
    else:
        first, is_run = _seen_under_matrix(attention, rows)
    if is_run is not None and not (is_run | ~real).all():
        raise ValueError(
            "the attention mask lets a token see something else than a run of tokens up to itself, which the Triton "
            'kernels do not support: use the kernels "torch"'
        )
    kept = real & (first <= rows)
    return _Rows(
        position=torch.where(kept, rows, -1).int().contiguous(),
        first=torch.where(kept, first, attention.query.shape[2]).int().contiguous(),
    )


def _seen_under_padding(attention: Attention, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The first key that each of the rows (B, R) sees, and whether it sees all up to itself; None: every row does."""
    first = torch.zeros_like(rows) if attention.window is None else (rows - attention.window + 1).clamp(min=0)
    if attention.mask is None:
        return first, None
    visible = attention.mask.bool()
    tokens = torch.arange(visible.shape[1], device=rows.device)
    hidden = torch.where(visible, -1, tokens).cummax(1).values.gather(1, rows)
    before = torch.nn.functional.pad(visible.long().cumsum(1), (1, 0))
    seen = before.gather(1, rows + 1) - before.gather(1, first)
    first = torch.maximum(first, hidden + 1)
    return first, seen == rows - first + 1


def _seen_under_matrix(attention: Attention, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a (B or 1, 1, N, N) mask, or a block mask."""
    length = attention.query.shape[2]
    tokens = torch.arange(length, device=rows.device)
    found = []
    for block in rows.split(max(1, _MAX_SEEN // (len(rows) * length)), 1):
        seen = attention.seen_by(block)
        first = block - seen.sum(-1) + 1
        run = (tokens >= first[..., None]) & (tokens <= block[..., None])
        found.append((first, (seen == run).all(-1)))
    firsts, are_runs = zip(*found, strict=True)
    return torch.cat(firsts, 1), torch.cat(are_runs, 1)


def _with_sinks(attention: Attention, log_sum_exp: Tensor) -> Tensor:
    """Of a row's scores -> of its scores and its sink; contiguous, float32."""
    if attention.sinks is not None:
        log_sum_exp = torch.logaddexp(log_sum_exp, attention.sinks.float()[:, None])
    return log_sum_exp.float().contiguous()


def _row_sums(attention: Attention, rows: _Rows, *, look_back: bool) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of each row's scores and, if asked for, its look-back distance, as if there were no sinks."""
    log_sum_exp = _new(attention, rows.position.shape[1])
    distance = torch.empty_like(log_sum_exp) if look_back else None
    _launch(
        triton_kernels.row_sums,
        attention,
        rows,
        over=rows.position.shape[1],
        tile="BLOCK_ROWS",
        log_sum_exp=log_sum_exp,
        look_back=log_sum_exp if distance is None else distance,
        LOOK_BACK=look_back,
    )
    return log_sum_exp, distance


def _near_sums(attention: Attention, rows: _Rows, log_sum_exp: Tensor, window: int) -> Tensor:
    sums = _new(attention, rows.position.shape[1])
    _launch(
        triton_kernels.near_sums,
        attention,
        rows,
        over=rows.position.shape[1],
        tile="BLOCK_ROWS",
        log_sum_exp=log_sum_exp,
        sums=sums,
        window=window,
    )
    return sums


def _column_sums(
    attention: Attention, rows: _Rows, log_sum_exp: Tensor, columns: int, *, low: int, high: int, banded: bool = False
) -> Tensor:
    sums = _new(attention, columns)
    _launch(
        triton_kernels.column_sums,
        attention,
        rows,
        over=columns,
        tile="BLOCK_KEYS",
        log_sum_exp=log_sum_exp,
        sums=sums,
        columns=columns,
        low=low,
        high=high,
        BANDED=banded,
    )
    return sums


def _new(attention: Attention, width: int) -> Tensor:
    """(B, H, width) float32."""
    return torch.empty(*attention.query.shape[:2], width, dtype=torch.float32, device=attention.query.device)


def _launch(kernel: Any, attention: Attention, rows: _Rows, *, over: int, tile: str, **given: Any) -> None:
    """Run a kernel over tiles of `over` rows or keys of each head; `tile` names the argument with their size."""
    dtype = torch.promote_types(attention.query.dtype, attention.key.dtype)
    query, key = attention.query.to(dtype), attention.key.to(dtype)
    batch, heads, length, width = query.shape
    sizes = tile_sizes(kernel, width, dtype)
    programs = triton.cdiv(over, sizes[tile]) * batch * heads
    if programs == 0:
        return
    strides = {
        f"{name}_{axis}": stride
        for name, vectors in (("query", query), ("key", key))
        for axis, stride in zip("bhnd", vectors.stride(), strict=True)
    }
    # One axis of programs: the others end at 65535.
    with torch.cuda.device_of(query):
        kernel[(programs,)](
            query=query,
            key=key,
            position=rows.position,
            first=rows.first,
            **strides,
            scaling=float(attention.scaling),
            heads=heads,
            group=heads // key.shape[1],
            length=length,
            rows=rows.position.shape[1],
            SOFTCAP=float(attention.softcap or 0.0),
            WIDTH=width,
            # The interpreter does not multiply bfloat16.
            UPCAST=_interpreted() and dtype != torch.float32,
            # Triton warns where it is left to choose.
            enable_fp_fusion=True,
            **sizes,
            **given,
        )


def tile_sizes(kernel: Any, width: int, dtype: torch.dtype) -> dict[str, int]:
    """The sizes of a kernel's tiles, its warps and its stages, for heads of a width.

    The side that a program keeps, rows or keys, has 64 vectors or more, as the tensor cores of sm_90 want it, unless
    they are very wide; the other side leaves room in 100 KiB of shared memory for loads ahead. Float32 is multiplied
    without tensor cores, from registers, which larger tiles would overflow.
    """
    block_d = max(16, triton.next_power_of_2(width))
    warps, stages = 4, 2
    if dtype == torch.float32:
        kept = loaded = 32 if block_d <= 256 else 16
        warps = 8
    elif block_d <= 128:
        kept, loaded, stages = (128 if kernel is triton_kernels.row_sums else 64), 64, 3
    else:
        kept, loaded = (64, 32) if block_d <= 256 else (32, 32)
    rows, keys = (loaded, kept) if kernel is triton_kernels.column_sums else (kept, loaded)
    return {"BLOCK_D": block_d, "BLOCK_ROWS": rows, "BLOCK_KEYS": keys, "num_warps": warps, "num_stages": stages}


def _interpreted() -> bool:
    return not isinstance(triton_kernels.row_sums, triton.JITFunction)


def _refuse_unsupported(attention: Attention) -> None:
    if attention.dtype == torch.float64 or attention.key.dtype == torch.float64:
        raise ValueError('the Triton kernels do not compute in float64: use the kernels "torch"')
    check_device(attention.query.device)


def check_device(device: torch.device) -> None:
    """Raise a ValueError where the kernels cannot run: they need a GPU, or Triton's interpreter."""
    if device.type != "cuda" and not _interpreted():
        raise ValueError(f'the Triton kernels need a GPU, and the model is on {device}: use the kernels "torch"')
