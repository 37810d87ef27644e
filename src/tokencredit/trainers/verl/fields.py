"""What workers ship to the trainer: signals of the completions' tokens, as fields of verl's batch.

Attention has many values a token. Where a completion's credit is its own business the method is asked on the worker,
once for each sign that an outcome can have, and three weights a token go on their way instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.methods import Method
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, Signals
from tokencredit.trainers.verl.layout import from_nested, to_nested

ASKED = "credit_asked"
"""Under this key the trainer's wish travels with a batch."""
_MARKS = ("credit_answer_start", "credit_step_index")
_WEIGHTS = {sign: f"credit_weight_{name}" for sign, name in ((-1, "negative"), (0, "zero"), (1, "positive"))}
_ATTENTION = "credit_attention"


@dataclass(frozen=True)
class Asked:
    """What the trainer asks of a log-prob pass.

    Attributes:
        reference: the pass is over the reference: another model, or the policy with its adapter off.
        kernels: as in `tokencredit.signals.collect`.
    """

    method: Method
    splitter: str
    end_of_reasoning: str
    reference: bool
    kernels: str = "torch"

    @property
    def needs(self) -> Needs:
        """What is read in this very pass."""
        if self.reference:
            return Needs(reference_logprob=self.method.needs.reference_logprob)
        return replace(self.method.needs, reference_logprob=False, adapter_residual=False)


def weighed_by_worker(needs: Needs) -> bool:
    """The worker applies the method, and ships weights."""
    return bool(needs.distances or needs.answer_attention or needs.answer_heads) and not needs.group


def shipped(needs: Needs) -> list[str]:
    """The fields that workers add to a batch."""
    if not needs.policy:
        return []
    if weighed_by_worker(needs):
        return [*_MARKS, *_WEIGHTS.values()]
    given = {
        "credit_logprob": needs.logits,
        "credit_entropy": needs.logits,
        "credit_reference_logprob": needs.reference_logprob,
        "credit_adapter_residual": needs.adapter_residual,
        _ATTENTION: bool(needs.answer_heads),
    }
    return [*_MARKS, *(name for name, asked in given.items() if asked)]


def pack(method: Method, rollouts: Rollouts, signals: Signals) -> dict[str, Tensor]:
    """Nested fields of what the pass over the policy showed."""
    assert rollouts.answer_start is not None
    assert rollouts.step_index is not None
    fields = {
        "credit_answer_start": torch.nested.as_nested_tensor(list(rollouts.answer_start[:, None]), layout=torch.jagged),
        "credit_step_index": to_nested(rollouts.step_index, rollouts.completion_mask),
    }
    if weighed_by_worker(method.needs):
        return fields | _weights(method, rollouts, signals)
    fields |= pack_by_token(rollouts, signals)
    if signals.answer_heads:
        by_head = [signals.answer_heads[head] for head in sorted(signals.answer_heads)]
        fields[_ATTENTION] = to_nested(torch.stack(by_head, -1), rollouts.completion_mask)
    return fields


def pack_by_token(rollouts: Rollouts, signals: Signals) -> dict[str, Tensor]:
    """Nested fields of the signals that have one value a token."""
    names = ("logprob", "entropy", "reference_logprob", "adapter_residual")
    values = {f"credit_{name}": getattr(signals, name) for name in names}
    return {name: to_nested(v, rollouts.completion_mask) for name, v in values.items() if v is not None}


def marked(rollouts: Rollouts, fields: Mapping[str, Tensor]) -> Rollouts:
    """The rollouts with the answers and steps that the workers found."""
    start = fields["credit_answer_start"]
    start = start.values() if start.is_nested else start.flatten()
    step = from_nested(fields["credit_step_index"], rollouts.completion_mask)
    return replace(rollouts, answer_start=start, step_index=step.masked_fill(~rollouts.completion_mask, -1))


def unpack(
    method: Method, rollouts: Rollouts, advantages: Tensor, fields: Mapping[str, Tensor], step: int | None
) -> Credit:
    """Credit from what the workers shipped.

    Args:
        rollouts: marked, and with `group` and `correct` where the method asks for groups.
        advantages: (B,), the outcome advantages.
    """
    needs, mask = method.needs, rollouts.completion_mask
    if needs.policy and weighed_by_worker(needs):
        by_sign = {sign: from_nested(fields[name], mask) for sign, name in _WEIGHTS.items()}
        chosen = torch.stack([by_sign[sign] for sign in (-1, 0, 1)])
        weights = chosen[advantages.sign().long() + 1, torch.arange(len(rollouts))]
        return multiplicative(rollouts, advantages, weights)
    names = ("logprob", "entropy", "reference_logprob", "adapter_residual")
    by_token: dict[str, Any] = {n: from_nested(fields[f"credit_{n}"], mask) for n in names if f"credit_{n}" in fields}
    attention = _unpack_attention(needs, mask, fields[_ATTENTION]) if needs.answer_heads else {}
    return method(rollouts, advantages, Signals(answer_heads=attention, **by_token), step=step)


def _weights(method: Method, rollouts: Rollouts, signals: Signals) -> dict[str, Tensor]:
    """Weights depend on the outcome advantage by its sign alone."""
    fields = {}
    for sign, name in _WEIGHTS.items():
        outcome = torch.full((len(rollouts),), float(sign), device=rollouts.completion_ids.device)
        weights = method(rollouts, outcome, signals).weights
        assert weights is not None, f"{method.name} has no weights that a worker could ship"
        fields[name] = to_nested(weights, rollouts.completion_mask)
    return fields


def _unpack_attention(needs: Needs, mask: Tensor, shipped: Tensor) -> dict[tuple[int, int], Tensor]:
    """(layer, head) -> (B, T)."""
    heads = sorted(needs.answer_heads)
    values = (shipped.values() if shipped.is_nested else shipped.flatten()).view(int(mask.sum()), len(heads))
    grid = values.new_zeros(*mask.shape, len(heads))
    grid[mask] = values
    return {head: grid[..., i] for i, head in enumerate(heads)}
