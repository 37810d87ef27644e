"""A batch of rollouts in micro-batches of completions of similar length, each without the padding of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokencredit.rollouts import Rollouts
from tokencredit.signals.layers import text_config
from tokencredit.signals.types import Signals


def micro_batches(rollouts: Rollouts, size: int, *, equal_prompts: bool = False) -> list[Tensor]:
    """The rows (b,) of each micro-batch; together they are all rows.

    Args:
        size: completions of a micro-batch, at most.
        equal_prompts: the prompts of a micro-batch have the same length, so that none of them needs padding.
    """
    rows = torch.arange(len(rollouts))
    if not equal_prompts and size >= len(rollouts):
        return [rows]
    prompts, completions = (mask.sum(1).tolist() for mask in (rollouts.prompt_mask, rollouts.completion_mask))
    if not equal_prompts:
        order = sorted(rows.tolist(), key=lambda i: (completions[i], prompts[i]))
        return list(torch.tensor(order).split(size))
    found: list[Tensor] = []
    for length in sorted(set(prompts)):
        same = sorted((i for i in rows.tolist() if prompts[i] == length), key=lambda i: completions[i])
        found += torch.tensor(same).split(size)
    return found or [rows]


def trimmed(rollouts: Rollouts) -> Rollouts:
    """The same rollouts without the columns that are padding in all of them, one column being left at least."""
    prompt, completion = rollouts.prompt_mask.any(0), rollouts.completion_mask.any(0)
    first = prompt.shape[0] - max(1, int(prompt.sum()))
    last = max(1, int(completion.sum()))
    if len(rollouts) == 0 or (first == 0 and last == completion.shape[0]):
        return rollouts
    width = completion.shape[0]
    cut: dict[str, Any] = {}
    for f in fields(rollouts):
        value = getattr(rollouts, f.name)
        if isinstance(value, Tensor) and f.name.startswith("prompt_"):
            cut[f.name] = value[:, first:]
        elif isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == width:
            cut[f.name] = value[:, :last]
    return replace(rollouts, **cut)


def joined(parts: Sequence[Signals], rows: Sequence[Tensor], width: int) -> Signals:
    """The signals of all rollouts, in their order, on their grid of `width` completion columns.

    Args:
        parts: the signals of each micro-batch, on a grid of its own.
        rows: as `micro_batches` gives them.
    """

    def widened(name: str, values: Tensor) -> Tensor:
        missing = width - values.shape[-1]
        # This has one value per head, not per token.
        if name == "look_back" or missing == 0:
            return values
        return pad(values, (0, missing), value=-1 if name == "segment" else 0)

    whole = Signals.concatenate([_changed(part, widened) for part in parts])
    order = torch.cat(list(rows)).argsort()
    if torch.equal(order, torch.arange(len(order))):
        return whole
    return _changed(whole, lambda _, values: values[order.to(values.device)])


def _changed(signals: Signals, change: Callable[[str, Tensor], Tensor]) -> Signals:
    """The same signals with `change(name, values)` in the place of all values."""
    changed: dict[str, Any] = {}
    for f in fields(signals):
        held = getattr(signals, f.name)
        if isinstance(held, dict):
            changed[f.name] = {key: _changed_value(f.name, value, change) for key, value in held.items()}
        elif held is not None:
            changed[f.name] = change(f.name, held)
    return Signals(**changed)


def _changed_value(name: str, value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    return replace(value, **{f.name: change(f.name, getattr(value, f.name)) for f in fields(value)})


def left_padding_matters(model: Any, length: int) -> bool:
    """The states of a model's tokens depend on how much padding stands before them.

    Two models of transformers: RecurrentGemma runs its recurrence and its convolution over padding, and Llama 4 scales
    the queries of its layers without rotary embedding by their column, from the column `floor_scale` on.

    Args:
        length: of the passes, in columns.
    """
    config = text_config(model)
    if config.model_type == "recurrent_gemma":
        return True
    scaled = config.model_type == "llama4_text" and getattr(config, "attn_temperature_tuning", False)
    return bool(scaled) and length >= config.floor_scale


def refuse_left_padding(model: Any, rollouts: Rollouts) -> None:
    """Raise a ValueError where a pass over `rollouts` as they are padded would depend on their padding."""
    if left_padding_matters(model, rollouts.input_ids.shape[1]) and not rollouts.prompt_mask.all():
        raise ValueError(
            f"{type(model).__name__} computes other states where prompts are padded on the left, so that credit would "
            "depend on the other prompts of the batch: use collect or assign, which read prompts of one length together"
        )
