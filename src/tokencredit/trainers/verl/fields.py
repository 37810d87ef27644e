"""What workers ship to the trainer: signals of the completions' tokens, as fields of verl's batch.

Attention has many values per token. Where a method's weights depend on the completion alone, and on its outcome
advantage by the sign alone (`sign_only`), the worker applies the method, once for each sign, and ships three weights
per token instead, with the method's own diagnostics.
"""

from __future__ import annotations

import json
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
_DIAGNOSTICS = "credit_diagnostics"
_ATTENTION = "credit_attention"


@dataclass(frozen=True)
class Asked:
    """What the trainer asks of a log-prob pass.

    Attributes:
        reference: the pass is over the reference: another model, or the policy with its adapter off.
        kernels: as in `tokencredit.signals.collect`.
        answer: as in `tokencredit.mark_spans`.
        step: the training step, for methods with a schedule.
    """

    method: Method
    splitter: str
    end_of_reasoning: str
    reference: bool
    kernels: str = "torch"
    answer: str = "auto"
    step: int | None = None

    @property
    def needs(self) -> Needs:
        """What is read in this very pass."""
        if self.reference:
            return Needs(reference_logprob=self.method.needs.reference_logprob)
        return replace(self.method.needs, reference_logprob=False, adapter_residual=False)


def weighed_by_worker(method: Method) -> bool:
    """The worker applies the method, and ships its weights. It knows no outcome advantages and no whole groups."""
    needs = method.needs
    reads_attention = bool(needs.distances or needs.answer_attention or needs.answer_heads)
    return reads_attention and not needs.group and getattr(method, "sign_only", False)


def check_shippable(method: Method) -> None:
    """Raise a ValueError where workers can ship neither the method's weights nor the signals that it reads."""
    needs = method.needs
    if (needs.distances or needs.answer_attention) and not weighed_by_worker(method):
        raise ValueError(
            f"{method.name} reads the attention of whole layers, which is too much to ship from verl's workers. They "
            "ship weights instead, for each sign of the outcome advantage, where a method declares sign_only = True "
            f"and reads no groups, which {method.name} does not: use it with tokencredit.trainers.trl, or let it read "
            "single heads (answer_heads)"
        )


def shipped(method: Method) -> list[str]:
    """The fields that workers add to a batch."""
    needs = method.needs
    if not needs.policy:
        return []
    if weighed_by_worker(method):
        return [*_MARKS, *_WEIGHTS.values(), _DIAGNOSTICS]
    given = {
        "credit_logprob": needs.logits,
        "credit_entropy": needs.logits,
        "credit_reference_logprob": needs.reference_logprob,
        "credit_adapter_residual": needs.adapter_residual,
        _ATTENTION: bool(needs.answer_heads),
    }
    return [*_MARKS, *(name for name, asked in given.items() if asked)]


def pack(method: Method, rollouts: Rollouts, signals: Signals, step: int | None = None) -> dict[str, Tensor]:
    """Nested fields of what the pass over the policy showed.

    Args:
        step: the training step, for a method that the worker applies.
    """
    assert rollouts.answer_start is not None
    assert rollouts.step_index is not None
    fields = {
        "credit_answer_start": torch.nested.as_nested_tensor(list(rollouts.answer_start[:, None]), layout=torch.jagged),
        "credit_step_index": to_nested(rollouts.step_index, rollouts.completion_mask),
    }
    if weighed_by_worker(method):
        return fields | _weights(method, rollouts, signals, step)
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
    if weighed_by_worker(method):
        place = advantages.sign().long() + 1  # among the signs -1, 0, 1
        by_sign = torch.stack([from_nested(fields[name], mask) for name in _WEIGHTS.values()])
        weights = by_sign[place, torch.arange(len(rollouts))]
        return multiplicative(rollouts, advantages, weights, **_own_diagnostics(fields[_DIAGNOSTICS], place))
    names = ("logprob", "entropy", "reference_logprob", "adapter_residual")
    by_token: dict[str, Any] = {n: from_nested(fields[f"credit_{n}"], mask) for n in names if f"credit_{n}" in fields}
    attention = _unpack_attention(needs, mask, fields[_ATTENTION]) if needs.answer_heads else {}
    return method(rollouts, advantages, Signals(answer_heads=attention, **by_token), step=step)


def _weights(method: Method, rollouts: Rollouts, signals: Signals, step: int | None) -> dict[str, Tensor]:
    """The method's weights and own diagnostics for an outcome advantage of each sign."""
    fields, own = {}, []
    for sign, name in _WEIGHTS.items():
        outcome = torch.full((len(rollouts),), float(sign), device=rollouts.completion_ids.device)
        credit = method(rollouts, outcome, signals, step=step)
        if credit.weights is None:
            raise ValueError(
                f"{method.name} declares sign_only = True, but its credit has no weights: only a multiplicative method "
                "may declare it"
            )
        fields[name] = to_nested(credit.weights, rollouts.completion_mask)
        own.append({key: values.tolist() for key, values in credit.diagnostics.items() if key not in _COMMON})
    rows = [{key: [each[key][i] for each in own] for key in own[0]} for i in range(len(rollouts))]
    return fields | {_DIAGNOSTICS: _as_bytes(rows, rollouts.completion_ids.device)}


_COMMON = ("gini", "effective_ratio", "broadcast", "sparse", "sign_flip", "no_answer")
"""The diagnostics of every method, which the trainer computes itself."""


def _as_bytes(rows: list[dict[str, list[float]]], device: torch.device) -> Tensor:
    """JSON, one flat row of uint8 per completion: verl's batches carry tensors only, and which diagnostics there are
    may depend on the signals."""
    texts = [torch.frombuffer(bytearray(json.dumps(row).encode()), dtype=torch.uint8) for row in rows]
    return torch.nested.as_nested_tensor(texts, layout=torch.jagged).to(device)


def _own_diagnostics(shipped: Tensor, place: Tensor) -> dict[str, Tensor]:
    """The reverse of `_as_bytes`, at each completion's own sign: name -> (B,).

    Args:
        place: (B,) long, the place of the sign in the lists.
    """
    rows = [json.loads(bytes(row.tolist())) for row in shipped.unbind()]
    names = rows[0].keys() if rows else ()
    if any(row.keys() != names for row in rows):
        raise ValueError("the workers have shipped different diagnostics for completions of one batch")
    chosen = list(zip(rows, place.tolist(), strict=True))
    return {name: torch.tensor([row[name][sign] for row, sign in chosen]) for name in names}


def _unpack_attention(needs: Needs, mask: Tensor, shipped: Tensor) -> dict[tuple[int, int], Tensor]:
    """(layer, head) -> (B, T)."""
    heads = sorted(needs.answer_heads)
    values = (shipped.values() if shipped.is_nested else shipped.flatten()).view(int(mask.sum()), len(heads))
    grid = values.new_zeros(*mask.shape, len(heads))
    grid[mask] = values
    return {head: grid[..., i] for i, head in enumerate(heads)}
