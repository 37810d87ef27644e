"""Rows of tokens of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded_left(rows: Sequence[list[int]], fill: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Token ids (R, n) of `rows`, padded on the left with `fill`, and (R, n) bool, the real tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]
