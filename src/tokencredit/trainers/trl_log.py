"""What a TRL run logs of credit: diagnostics of the completions that carry loss, of all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokencredit.credit import Credit

SHARE = "with_loss"
"""Logged beside the diagnostics: the share of the completions that carry loss."""


class CreditLog:
    """Collects the diagnostics of completions until they are logged.

    Means are taken over the completions that carry loss (`carrying_loss`). The others, such as truncated completions
    that TRL masks, or groups of equal rewards, would hide what credit does to the rest.

    Args:
        gather: joins the rows of all processes, in the same order on each.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self._gather = gather
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._carrying = self._all = 0
        self._rows: list[Tensor] = []
        self.step = -1
        """The training step of the completions that `step_diagnostics` holds."""

    def add(self, credit: Credit, carrying: Tensor, step: int) -> None:
        """Add the completions of a batch.

        Args:
            carrying: (B,) bool, from `carrying_loss`.
            step: the training step; those of an earlier one are kept for the means alone.
        """
        self._names = sorted(credit.diagnostics)
        columns = [credit.diagnostics[name] for name in self._names]
        # One gather for everything, so that processes cannot fall out of step.
        rows = self._gather(torch.stack([*columns, carrying.to(columns[0])], 1)).double().cpu()
        if step != self.step:
            self.step, self._rows = step, []
        self._rows.append(rows)
        sums = self._sums_of(rows)
        self._sums = sums if self._sums is None else self._sums + sums
        self._carrying += int(rows[:, -1].sum())
        self._all += len(rows)

    def means(self) -> dict[str, float]:
        """The mean of each diagnostic since the last call, and `SHARE`; `SHARE` alone where no completion has loss."""
        if self._sums is None:
            return {}
        means = self._means_of(self._sums, self._carrying) | {SHARE: self._carrying / self._all}
        self._sums, self._carrying, self._all = None, 0, 0
        return means

    def step_means(self) -> dict[str, float]:
        """The mean of each diagnostic in the last step; empty where no completion carries loss."""
        rows = torch.cat(self._rows)
        return self._means_of(self._sums_of(rows), int(rows[:, -1].sum()))

    def step_diagnostics(self) -> dict[str, Tensor]:
        """Each diagnostic of all completions of the last step, (B,) of all processes, with `SHARE`: 1 where loss is."""
        names = [*self._names, SHARE]
        return dict(zip(names, torch.cat(self._rows).unbind(1), strict=True)) if self._rows else {}

    def _sums_of(self, rows: Tensor) -> Tensor:
        """(D,): the sum of each diagnostic over the completions that carry loss."""
        return rows[rows[:, -1] > 0, :-1].sum(0)

    def _means_of(self, sums: Tensor, count: int) -> dict[str, float]:
        return dict(zip(self._names, (sums / count).tolist(), strict=True)) if count else {}


def carrying_loss(credit: Credit, outcome: Tensor, mask: Tensor) -> Tensor:
    """(B,) bool: the completion has tokens, and an advantage other than 0: its outcome advantage, or that of a token.

    Args:
        outcome: (B,), the outcome advantages. mask: (B, T) bool, the completions' tokens.
    """
    return mask.any(1) & ((outcome != 0) | (credit.advantages != 0).any(1))


def advantage_columns(credit: Credit, mask: Tensor) -> dict[str, Tensor]:
    """Columns for a table of completions, (B,) each: mean, least and greatest advantage of a token; 0 without tokens.

    Args:
        mask: (B, T) bool, the completions' tokens.
    """
    advantages, some = credit.advantages, mask.any(1)
    return {
        "advantage_mean": advantages.sum(1) / mask.sum(1).clamp(min=1),
        "advantage_min": torch.where(some, advantages.masked_fill(~mask, torch.inf).amin(1), 0.0),
        "advantage_max": torch.where(some, advantages.masked_fill(~mask, -torch.inf).amax(1), 0.0),
    }
