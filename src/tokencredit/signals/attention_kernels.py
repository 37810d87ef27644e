"""What computes attention statistics, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokencredit.signals import attention_statistics
from tokencredit.signals.attention_statistics import HeadDistances


@dataclass(frozen=True)
class Kernels:
    """Functions of the signatures of `attention_statistics`, the reference.

    Attributes:
        fused: the model's own attention call may be widened for what it can tell.
        check: raises a ValueError where they cannot run on a device.
    """

    answer_row_mean: Callable[..., Tensor] = attention_statistics.answer_row_mean
    head_distances: Callable[..., HeadDistances] = attention_statistics.head_distances
    fused: bool = False
    check: Callable[[torch.device], None] = lambda device: None


KERNELS = ("torch", "fused", "triton")


def kernels_named(name: str) -> Kernels:
    """`torch`: the model computes bit for bit what it would. `fused`, for SDPA on CPUs in full precision: look-back
    distances come out of the model's own attention call, whose output is then equal up to rounding. `triton`: on GPUs.

    Raises:
        ValueError: there are no kernels of this name. ImportError: Triton is not installed.
    """
    if name not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}; got {name!r}")
    if name == "triton":
        from tokencredit.signals.attention_triton import answer_row_mean, check_device, head_distances

        return Kernels(answer_row_mean, head_distances, check=check_device)
    return Kernels(fused=name == "fused")
