"""Which tokens some rows of attention can see at all: windows and chunks hide what lies further back."""

from __future__ import annotations

import torch
from torch import Tensor

from tokencredit.signals.attention_statistics import Attention

_MAX_SEEN = 1 << 24
"""Elements of a mask that are held at once."""


def seen_by_any(attention: Attention, rows: Tensor) -> Tensor:
    """The tokens that at least one row of a completion sees.

    Args:
        rows: (B, N) bool.

    Returns:
        (B, N) bool; all False for a completion without rows.
    """
    count = rows.sum(1)
    index = rows.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    is_row = torch.arange(index.shape[1], device=rows.device) < count[:, None]
    seen = torch.zeros_like(rows)
    block = max(1, _MAX_SEEN // rows.numel())
    for index_r, is_row_r in zip(index.split(block, 1), is_row.split(block, 1), strict=True):
        seen |= (attention.seen_by(index_r) & is_row_r[..., None]).any(1)
    return seen
