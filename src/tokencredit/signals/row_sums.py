"""What a model's own attention call tells of its rows, beside its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

_CHANNELS = 8
"""Value channels that are added for one of positions, so that rows of values stay aligned."""


class RowSums(NamedTuple):
    """As in `Attention`; None where the call does not tell."""

    log_sum_exp: Tensor | None = None
    look_back: Tensor | None = None


def with_log_sum_exp(attend: Callable[..., Any], *given: Any, **kwargs: Any) -> tuple[Any, RowSums]:
    """Call an attention function unchanged. PyTorch's CPU flash attention computes the log-sum-exp of every row, which
    SDPA then drops; other kernels tell nothing."""
    with _FlashAttention() as flash:
        output = attend(*given, **kwargs)
    return output, RowSums(flash.log_sum_exp)


def with_look_back(
    attend: Callable[..., Any], module: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **kwargs: Any
) -> tuple[Any, RowSums]:
    """Call an attention function with the keys' positions as one more channel of the values: the mean position of what
    a row attends to comes out beside its values.

    The output is that of the plain call up to rounding. Where gradients are recorded they would be for the wider call:
    there only the log-sum-exp is told.
    """
    if torch.is_grad_enabled():
        return with_log_sum_exp(attend, module, query, key, value, *given, **kwargs)
    width, length = value.shape[-1], value.shape[2]
    centre = length / 2
    wider = pad(value, (0, _CHANNELS))
    positions = torch.arange(length, dtype=value.dtype, device=value.device)
    wider[..., width] = positions - centre
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = query.shape[-1] ** -0.5
    (output, *rest), sums = with_log_sum_exp(
        attend, module, pad(query, (0, _CHANNELS)), pad(key, (0, _CHANNELS)), wider, *given, **kwargs
    )
    # (B, N, H, width): transformers' attention functions return heads behind positions.
    attended_to = output[..., width].transpose(1, 2) + centre
    return (output[..., :width].contiguous(), *rest), RowSums(sums.log_sum_exp, positions - attended_to)


class _FlashAttention(TorchDispatchMode):
    """Keeps the log-sum-exp (B, H, N) of the last call of CPU flash attention."""

    log_sum_exp: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.log_sum_exp = out[1]
        return out
