"""Signals out of one micro-batch of a log-prob pass, in whichever layout verl makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu

from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, Signals, causal_lm, observe
from tokencredit.signals.final_states import predicting, state_distance, watch_final_states
from tokencredit.signals.layers import refuse_packed
from tokencredit.signals.logits import logprob_and_entropy_of
from tokencredit.signals.observe import ReadSignals
from tokencredit.steps import find_spans
from tokencredit.trainers.verl.fields import Asked, pack, pack_by_token
from tokencredit.trainers.verl.layout import Layout, rollouts_of

States = dict[bytes, Tensor]
"""The states that predict a completion's tokens, (T_i, D), under the ids of its whole sequence."""


@contextmanager
def watch_pass(
    policy: nn.Module, micro_batch: TensorDict, asked: Asked, tokenizer: Any, states: States
) -> Iterator[WatchedPass]:
    """While open, verl's forward pass over a micro-batch is watched; it computes what it would.

    Args:
        states: filled by the pass over the policy, for methods that compare its states with the reference's.
    """
    _refuse_images(micro_batch)
    rollouts = rollouts_of(micro_batch["prompts"], micro_batch["responses"])
    if not asked.reference:
        rollouts = find_spans(
            rollouts, tokenizer, asked.splitter, end_of_reasoning=asked.end_of_reasoning, answer=asked.answer
        )
    packed = tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True)
    if packed:
        refuse_packed(causal_lm(policy))
    layout = Layout.packed(rollouts) if packed else Layout.padded(rollouts)
    temperature = torch.as_tensor(tu.get_non_tensor_data(micro_batch, "temperature", default=1.0))
    with ExitStack() as stack:
        # The reference's log-probs are computed from the pass's output, and watched by nobody.
        watched = Needs() if asked.reference else asked.needs
        read = stack.enter_context(observe(policy, rollouts, watched, on_grid=layout.attention, kernels=asked.kernels))
        by_states = asked.method.needs.adapter_residual
        seen = stack.enter_context(watch_final_states(causal_lm(policy))) if by_states else []
        yield WatchedPass(asked, rollouts, layout, bool((temperature != 1).any()), read, seen, states)


@dataclass(frozen=True)
class WatchedPass:
    """A pass over rollouts, and what has been seen of it.

    Attributes:
        tempered: verl's log-probs and entropies are at another temperature than 1.
        read: reads the signals of attention.
        seen: the pass's final states, where the method compares them.
        states: the policy's, of this worker's completions.
    """

    asked: Asked
    rollouts: Rollouts
    layout: Layout
    tempered: bool
    read: ReadSignals
    seen: list[Tensor]
    states: States

    def fields(self, output: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The fields to ship, from the pass's raw output and from what verl has made of it."""
        own = [predicting(self.layout.on_grid(state), self.rollouts) for state in self.seen]
        if self.asked.reference:
            return pack_by_token(self.rollouts, self._beside_policy(output, found, own))
        for hidden in own:
            self.states.update(_by_sequence(hidden, self.rollouts))
        wanted = self.asked.needs.logits
        logprob, entropy = self._logprob_and_entropy(output, found) if wanted else (None, None)
        signals = self.read(logprob=logprob, entropy=entropy)
        return pack(self.asked.method, self.rollouts, signals, self.asked.step)

    def _beside_policy(self, output: Any, found: dict[str, Tensor], own: list[Tensor]) -> Signals:
        """The signals of a pass over the reference."""
        logprob = residual = None
        if self.asked.needs.reference_logprob:
            logprob, _ = self._logprob_and_entropy(output, found)
        if own:
            policys = _of_policy(own[0], self.rollouts, self.states)
            residual = state_distance(policys, own[0], self.rollouts)
        return Signals(reference_logprob=logprob, adapter_residual=residual)

    def _logprob_and_entropy(self, output: Any, found: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B, T) each, at temperature 1; no entropy where verl computes none."""
        rollouts = self.rollouts
        predicts = slice(rollouts.prompt_ids.shape[1] - 1, -1)
        if self.tempered:
            return logprob_and_entropy_of(output.logits.flatten(0, 1), self.layout.index[:, predicts], rollouts)
        packed = Layout.packed(rollouts)
        grid = {
            name: packed.on_grid(found[name].values()[None])[:, predicts]
            .float()
            .masked_fill(~rollouts.completion_mask, 0.0)
            for name in ("log_probs", "entropy")
            if name in found
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
