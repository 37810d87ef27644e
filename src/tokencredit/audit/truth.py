"""What is known about where the credit of completions should land."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tokencredit.rollouts import Rollouts


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth on the completion grid of some rollouts. What is not known is None, or empty.

    Attributes:
        correct: (B,) bool, the answer is right.
        step_index: (B, T) long, the labelled steps; -1 outside them.
        essential: (B, K) bool, the answer rests on the step. labelled: (B, K) bool, the steps whose label is known.
        indirect: (B, K) bool, the essential steps that only other steps rest on: the answer itself does not read them.
        form: (B, K) long, kinds of steps that read alike: rankings compare a step with those of its own kind.
        error: (B, T) bool, where a wrong completion first goes wrong: one token, or those of one step.
        results: (B, T) bool, the tokens that state what a step comes to.
        advantage: (B, T), the true advantage of each token, as estimated by Monte Carlo.
        effect: (B, T), the success that is lost when another token is forced and the policy decodes on.
    """

    correct: Tensor
    step_index: Tensor
    essential: Tensor
    labelled: Tensor
    error: Tensor
    results: Tensor | None = None
    advantage: Tensor | None = None
    effect: Tensor | None = None
    indirect: Tensor | None = None
    form: Tensor | None = None

    def rows(self, index: Tensor) -> Truth:
        """The truth about the completions that `index` numbers."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Truth(**{name: value[index] for name, value in known.items()})

    def check(self, rollouts: Rollouts) -> None:
        """Raise a ValueError where the truth is about other rollouts, or is NaN."""
        grid = tuple(rollouts.completion_mask.shape)
        for name in ("step_index", "error", "results", "advantage", "effect"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != grid:
                raise ValueError(f"{name} must have the shape of the completions, {grid}; got {tuple(value.shape)}")
            if value is not None and value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{name} must be finite: some of it is NaN or infinite")
        if tuple(self.correct.shape) != grid[:1]:
            raise ValueError(f"correct must be {grid[:1]}, one per completion; got {tuple(self.correct.shape)}")
        steps = int(self.step_index.max()) + 1 if self.step_index.numel() else 0
        if self.essential.shape != self.labelled.shape or tuple(self.essential.shape[:1]) != grid[:1]:
            raise ValueError(f"essential and labelled must be (B, K); got {tuple(self.essential.shape)}")
        if self.essential.shape[1] < steps:
            raise ValueError(f"{steps} steps need as many labels a completion; got {self.essential.shape[1]}")
        for name in ("indirect", "form"):
            value = getattr(self, name)
            if value is not None and value.shape != self.essential.shape:
                raise ValueError(f"{name} must be {tuple(self.essential.shape)}; got {tuple(value.shape)}")
        if (self.error & ~rollouts.completion_mask).any():
            raise ValueError("error marks padding: it must lie on completion tokens")
