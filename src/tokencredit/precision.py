"""How precisely the small (B, T) arithmetic of credit is done."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in float64, or in float32 on a device that has no float64 (Apple's MPS)."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def divided(x: Tensor, by: Tensor, otherwise: float) -> Tensor:
    """x / by, and `otherwise` where `by` is 0."""
    return torch.where(by == 0, otherwise, x / torch.where(by == 0, 1, by))
