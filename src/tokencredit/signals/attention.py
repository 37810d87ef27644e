"""Attention of the answer rows, read beside the model's own attention. No (N, N) matrix is built.

The model keeps its attention implementation (SDPA, eager, FlashAttention). While a probe is open, transformers' table
of implementations holds a wrapper under the same name, which calls the original unchanged and computes the few rows
that are asked for from the same queries and keys, in float32. The model's config is not touched: masks are chosen by
the implementation's name, and FlashAttention looks its kernel up by it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_MAX_SCORES = 1 << 24
"""Scores held at once, in elements: bounds memory whatever the number of answer rows."""


@dataclass
class _Probe:
    layers: frozenset[int]
    rows: Tensor
    found: dict[int, Tensor] = field(default_factory=dict)


_ACTIVE: ContextVar[_Probe | None] = ContextVar("tokencredit_probe", default=None)


@contextmanager
def probe_answer_rows(model: Any, layers: frozenset[int], rows: Tensor | None) -> Iterator[dict[int, Tensor]]:
    """While open, a forward pass of `model` fills the yielded dict.

    Args:
        model: a transformers model.
        layers: which layers; negative numbers count from the last. With none the model is left alone.
        rows: (B, N) bool, the query rows to average over; None where there are no layers.

    Yields:
        layer, as asked for -> (B, H, N) float32: mean over `rows` of A[l, h, t, s]; complete once the block ends.

    Raises:
        ValueError: a layer does not exist, or the model's attention cannot be read.
    """
    if not layers:
        yield {}
        return
    assert rows is not None
    config = model.get_decoder().config
    count = config.num_hidden_layers
    missing = sorted(layer for layer in layers if not -count <= layer < count)
    if missing:
        raise ValueError(f"layers {missing} asked for, but the policy has {count}: use {-count} to {count - 1}")
    index = {layer: layer % count for layer in layers}
    probe = _Probe(frozenset(index.values()), rows)
    token = _ACTIVE.set(probe)
    result: dict[int, Tensor] = {}
    try:
        with _wrapped(config._attn_implementation):
            yield result
    finally:
        _ACTIVE.reset(token)
    unread = sorted(layer for layer in layers if index[layer] not in probe.found)
    if unread:
        raise ValueError(
            f"the attention of layers {unread} could not be read: {type(model).__name__} does not route it through "
            "transformers' AttentionInterface"
        )
    result.update({layer: probe.found[index[layer]] for layer in layers})


def answer_row_mean(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    visible: Callable[[Tensor], Tensor],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Mean over the rows of a completion of softmax(q k^T), per head.

    Args:
        query: (B, H, N, d). key: (B, H_kv, N, d), heads not expanded.
        rows: (B, N) bool.
        visible: (B, R) row indices -> (B, R, N) bool, which keys each row sees.
        softcap: tanh cap on the scores (Gemma 2). sinks: (H,) logits that take part in the softmax (gpt-oss).

    Returns:
        (B, H, N) float32; 0 for a completion without rows.
    """
    (batch, heads, length, width), kv_heads = query.shape, key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = key.to(dtype).transpose(-1, -2)
    count = rows.sum(1)
    index = rows.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    is_row = torch.arange(index.shape[1], device=rows.device) < count[:, None]
    total = torch.zeros(batch, heads, length, dtype=dtype, device=query.device)
    block = max(1, _MAX_SCORES // (batch * heads * length))
    for rows_r, is_row_r in zip(index.split(block, 1), is_row.split(block, 1), strict=True):
        r = rows_r.shape[1]
        q = query.gather(2, rows_r[:, None, :, None].expand(-1, heads, -1, width)).to(dtype) * scaling
        scores = (q.reshape(batch, kv_heads, -1, width) @ keys).view(batch, heads, r, length)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~visible(rows_r)[:, None], torch.finfo(dtype).min)
        if sinks is not None:
            sink = sinks.to(dtype).view(1, heads, 1, 1).expand(batch, -1, r, -1)
            attention = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            attention = scores.softmax(-1)
        total += (attention * is_row_r[:, None, :, None]).sum(2)
    return (total / count.clamp(min=1)[:, None, None]).float()


@contextmanager
def _wrapped(name: str) -> Iterator[None]:
    """The table of implementations holds the probing wrapper under `name`; nests."""
    local = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = local.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = _probing(ALL_ATTENTION_FUNCTIONS.get(name))
    try:
        yield
    finally:
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before


def _probing(original: Callable[..., Any] | None) -> Callable[..., Any]:
    """The wrapper around an implementation; None is eager, of which each model's file has its own."""

    def attention_forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> Any:
        base = original or sys.modules[type(module).__module__].eager_attention_forward
        output = base(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        probe = _ACTIVE.get()
        layer = getattr(module, "layer_idx", None)
        if probe is not None and layer in probe.layers and layer not in probe.found:
            _refuse_unreadable(module, query, key, kwargs)
            rows = probe.rows.to(query.device)
            # Under autocast a matmul would round to bfloat16, however its inputs were cast.
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                probe.found[layer] = answer_row_mean(
                    query.detach(),
                    key.detach(),
                    rows,
                    lambda index: _visible(index, attention_mask, query.shape[2], kwargs.get("sliding_window")),
                    scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                    softcap=kwargs.get("softcap"),
                    sinks=kwargs.get("s_aux"),
                )
        return output

    return attention_forward


def _refuse_unreadable(module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    if query.shape[2] != key.shape[2]:
        raise ValueError("attention cannot be read behind a KV-cache prefix: pass whole sequences with use_cache=False")
    if not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} is not causal: attention credit is defined for causal models only")
    if kwargs.get("position_bias") is not None:
        raise ValueError(f"{type(module).__name__} adds a position bias to its scores, which is not supported")


def _visible(rows: Tensor, mask: Any, length: int, window: int | None) -> Tensor:
    """(B, R) row indices -> (B, R, N) bool, from whatever mask an attention function is given."""
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"attention masks of type {type(mask).__name__} cannot be read: use sdpa or eager attention")
    if mask is None or mask.ndim == 2:  # causality and window are the kernel's own business
        distance = rows[..., None] - torch.arange(length, device=rows.device)
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return seen if mask is None else seen & mask.bool()[:, None]
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"attention masks of shape {tuple(mask.shape)} cannot be read: one for all heads is expected")
    index = rows[..., None].expand(-1, -1, mask.shape[-1])
    gathered = mask[:, 0].expand(rows.shape[0], -1, -1).gather(1, index)
    if mask.dtype == torch.bool:
        return gathered
    hidden = gathered <= torch.finfo(mask.dtype).min / 2
    if not ((gathered == 0) | hidden).all():
        raise ValueError("the attention mask adds a bias to the scores, which is not supported")
    return ~hidden
