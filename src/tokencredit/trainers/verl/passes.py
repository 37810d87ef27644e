"""Signals out of one micro-batch of a log-prob pass, in whichever layout verl makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu

from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, Signals, causal_lm, observe
from tokencredit.signals.final_states import predicting, state_distance, watch_final_states
from tokencredit.signals.logits import logprob_and_entropy_of
from tokencredit.steps import mark_spans
from tokencredit.trainers.verl.fields import Asked, pack, pack_by_token
from tokencredit.trainers.verl.layout import Layout, rollouts_of

Shown = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
"""Function of a pass's raw output, and of what verl made of it, to the fields to ship."""
States = dict[bytes, Tensor]
"""The states that predict a completion's tokens, (T_i, D), under the ids of its whole sequence."""


@contextmanager
def watch_pass(
    policy: nn.Module, micro_batch: TensorDict, asked: Asked, tokenizer: Any, states: States
) -> Iterator[Shown]:
    """While open, verl's forward pass over a micro-batch is watched; it computes what it would.

    Args:
        states: filled by the pass over the policy, for methods that compare its states with the reference's.
    """
    _refuse_images(micro_batch)
    rollouts = rollouts_of(micro_batch["prompts"], micro_batch["responses"])
    if not asked.reference:
        rollouts = mark_spans(rollouts, tokenizer, asked.splitter, end_of_reasoning=asked.end_of_reasoning)
    layout = _layout_of(micro_batch, rollouts)
    with ExitStack() as stack:
        # The reference's log-probs are computed from the pass's output, and watched by nobody.
        watched = Needs() if asked.reference else asked.needs
        read = stack.enter_context(observe(policy, rollouts, watched, on_grid=layout.attention))
        by_states = asked.method.needs.adapter_residual
        seen = stack.enter_context(watch_final_states(causal_lm(policy))) if by_states else []

        def shown(output: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
            own = [predicting(layout.on_grid(state), rollouts) for state in seen]
            if asked.reference:
                return pack_by_token(
                    rollouts, _beside_reference(asked, micro_batch, rollouts, output, found, own, states)
                )
            for hidden in own:
                states.update(_by_sequence(hidden, rollouts))
            given = _logprob_and_entropy(micro_batch, rollouts, output, found) if asked.needs.logits else (None, None)
            return pack(asked.method, rollouts, read(logprob=given[0], entropy=given[1]))

        yield shown


def _beside_reference(
    asked: Asked,
    micro_batch: TensorDict,
    rollouts: Rollouts,
    output: Any,
    found: dict[str, Tensor],
    own: list[Tensor],
    states: States,
) -> Signals:
    """The signals that a pass over the reference shows."""
    logprob = residual = None
    if asked.needs.reference_logprob:
        logprob, _ = _logprob_and_entropy(micro_batch, rollouts, output, found)
    if own:
        residual = state_distance(_of_policy(own[0], rollouts, states), own[0], rollouts)
    return Signals(reference_logprob=logprob, adapter_residual=residual)


def _layout_of(micro_batch: TensorDict, rollouts: Rollouts) -> Layout:
    packed = tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True)
    return Layout.packed(rollouts, micro_batch["input_ids"].values().shape[0]) if packed else Layout.padded(rollouts)


def _logprob_and_entropy(
    micro_batch: TensorDict, rollouts: Rollouts, output: Any, found: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """(B, T) each, at temperature 1, whatever temperature verl has them at; no entropy where verl computes none."""
    predicts = slice(rollouts.prompt_ids.shape[1] - 1, -1)
    temperature = tu.get_non_tensor_data(micro_batch, "temperature", default=1.0)
    if bool((torch.as_tensor(temperature) != 1).any()):
        places = _layout_of(micro_batch, rollouts).index[:, predicts]
        return logprob_and_entropy_of(output.logits.flatten(0, 1), places, rollouts)
    nested = {name: found[name].values()[None] for name in ("log_probs", "entropy") if name in found}
    packed = Layout.packed(rollouts, nested["log_probs"].shape[1])
    grid = {
        name: packed.on_grid(values)[:, predicts].float().masked_fill(~rollouts.completion_mask, 0.0)
        for name, values in nested.items()
    }
    return grid["log_probs"], grid.get("entropy")


def _by_sequence(hidden: Tensor, rollouts: Rollouts) -> States:
    """(B, T, D) as rows of their own in main memory, so that no micro-batch holds the device's."""
    keys, lengths = _sequences(rollouts), rollouts.lengths.tolist()
    return {key: row[:length].cpu() for key, row, length in zip(keys, hidden, lengths, strict=True)}


def _of_policy(base: Tensor, rollouts: Rollouts, states: States) -> Tensor:
    """(B, T, D): the policy's states of the sequences whose reference has the states `base`."""
    grid = torch.zeros_like(base)
    for i, key in enumerate(_sequences(rollouts)):
        if key not in states:
            raise ValueError(
                "the reference pass reached a worker that has not made the policy's pass over the same completions: "
                "methods that compare the two need both on the same worker"
            )
        grid[i, : len(states[key])] = states[key].to(base.device)
    return grid


def _sequences(rollouts: Rollouts) -> list[bytes]:
    """The token ids of each sequence, prompt and completion apart."""
    sides = (
        (rollouts.prompt_ids, rollouts.prompt_mask),
        (rollouts.completion_ids, rollouts.completion_mask),
    )
    prompts, completions = (
        [row[real].numpy().tobytes() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)] for ids, mask in sides
    )
    return [prompt + b"|" + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _refuse_images(micro_batch: TensorDict) -> None:
    given = micro_batch.get("multi_modal_inputs", None)
    if given is not None and any(len(getattr(each, "data", each) or ()) for each in given):
        raise ValueError("credit is not defined for rollouts with images yet: train without them")
