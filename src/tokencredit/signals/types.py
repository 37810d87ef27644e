"""What can be read from models (`Needs`), and what was read (`Signals`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What a method reads. `a | b` is what two methods need together, collected in one go.

    Attributes:
        answer_attention: the layers whose answer rows are read; negative numbers count from the last layer.
        adapter_residual: the change that the LoRA adapter makes to the final hidden state (a second forward pass,
            adapter off).
    """

    answer_attention: frozenset[int] = frozenset()
    adapter_residual: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            answer_attention=self.answer_attention | other.answer_attention,
            adapter_residual=self.adapter_residual or other.adapter_residual,
        )

    def __bool__(self) -> bool:
        return self != Needs()

    @property
    def adapter(self) -> bool:
        """Only a PEFT policy can give these signals."""
        return self.adapter_residual


@dataclass(frozen=True, eq=False)
class Signals:
    """What was read for B completions, detached and finite. What was not asked for is absent.

    Attributes:
        answer_attention: layer, as it was asked for -> (B, H, T) float32: the mean over the completion's answer rows of
            the attention that a head pays to each completion token; 0 where there is no answer.
        adapter_residual: (B, T) float32, ||h_adapted - h_base||_2 at the position that predicts each token.

    Raises:
        ValueError: a signal is NaN or infinite.
    """

    answer_attention: dict[int, Tensor] = field(default_factory=dict)
    adapter_residual: Tensor | None = None

    def __post_init__(self) -> None:
        read: dict[str, Tensor | None] = {f"answer_attention[{layer}]": a for layer, a in self.answer_attention.items()}
        read["adapter_residual"] = self.adapter_residual
        for name, values in read.items():
            if values is not None and not torch.isfinite(values).all():
                raise ValueError(f"signal {name} is not finite: the policy's activations are NaN or infinite")

    @staticmethod
    def concatenate(parts: Sequence[Signals]) -> Signals:
        """The signals of consecutive slices of one batch, as one."""
        residuals = [p.adapter_residual for p in parts if p.adapter_residual is not None]
        return Signals(
            answer_attention={
                layer: torch.cat([p.answer_attention[layer] for p in parts]) for layer in parts[0].answer_attention
            },
            adapter_residual=torch.cat(residuals) if residuals else None,
        )
