"""Signals out of the log-prob passes that TRL makes anyway to score a generation batch.

There is one over the policy where losses need old log-probs (several updates on a batch, vLLM), and with beta > 0 one
over the reference, which is the policy with its adapter off where there is one. What they show is not read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, Signals, causal_lm, observe
from tokencredit.signals.final_states import predicting, state_distance, watch_final_states
from tokencredit.signals.policy import adapter_is_off, adapter_off, reading

LogProbPass = Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
"""TRL's function of (model, input_ids, attention_mask, logits_to_keep, ...): log-probs, entropies, auxiliary loss."""


_OF_TOKENS = ("token_type_ids", "mm_token_type_ids")
"""Arguments (B, N) that say of each token whether it stands for text, which is 0, or for an image."""

_COUNTS = ("num_images", "num_tiles")
"""Arguments that say how many images each completion has."""


def _of_text(name: str, value: Any) -> bool:
    """An argument of TRL's function, other than None, that says no more than that all of the batch is text."""
    return (name in _OF_TOKENS and not value.any()) or (name in _COUNTS and not any(value))


class ScoringPasses:
    """What the passes over one generation batch show.

    Args:
        forward: TRL's function.
        mark: marks answers and steps of rollouts.
        share_states: states may be compared for the adapter's residual: no autocast rounds them.
        kernels: as in `collect`.
    """

    def __init__(
        self,
        forward: LogProbPass,
        policy: nn.Module,
        needs: Needs,
        mark: Callable[[Rollouts], Rollouts],
        *,
        share_states: bool,
        kernels: str,
    ) -> None:
        self._forward, self._policy, self._mark, self._kernels = forward, policy, mark, kernels
        self._needs = replace(needs, reference_logprob=False, adapter_residual=False, reward=frozenset())
        self._with_reference = needs.reference_logprob
        self._by_states = needs.adapter_residual and share_states
        self._adapter = getattr(policy, "active_adapter", None)
        self._read: list[Signals] = []
        self._states: dict[bool, list[Tensor]] = defaultdict(list)  # adapter off? -> (b, T, D) of each slice
        self._again: Callable[[], Any] | None = None
        self.rollouts: Rollouts | None = None

    def run(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`forward` over the policy, watched, in slices of `batch_size` as it takes them itself.

        Processors of vision-language models add arguments to prompts of text alone (`_OF_TOKENS`), which are passed on.
        A pass with any other argument, such as images, is not watched.
        """
        if self.rollouts is None:
            ids, mask = ((x[:, :-logits_to_keep], x[:, -logits_to_keep:]) for x in (input_ids, attention_mask))
            self.rollouts = self._mark(Rollouts(ids[0], mask[0], ids[1], mask[1]))
        given_too = {name: value for name, value in kwargs.items() if value is not None}
        self._again = lambda: self.run(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        # TRL calls the policy with a copy of an earlier adapter the reference, too.
        other_adapter = getattr(self._policy, "active_adapter", None) != self._adapter
        if other_adapter or not all(_of_text(name, value) for name, value in given_too.items()):
            return self._forward(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
        logprobs = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            given = (model, input_ids[rows], attention_mask[rows], logits_to_keep)
            of_tokens = {name: value[rows] for name, value in given_too.items() if name in _OF_TOKENS}
            logprobs.append(self._slice(given, of_tokens, self.rollouts.rows(rows)))
        return torch.cat(logprobs), None, None

    def signals(self, reference_logprob: Tensor | None) -> Signals:
        """What has been read, with the reference's log-probs as TRL has them, (B, T), where the method asks for them.

        Of the two passes that the residual takes TRL may have made one; the other is then made here.
        """
        if self._again is not None and len(self._states) == 1:
            off = adapter_off(self._policy) if False in self._states else nullcontext()
            with reading(self._policy), off:
                self._again()
        if self._with_reference and not self._read and self._again is not None:
            # Both sides of a comparison come out of one kind of pass: equal policies must give equal log-probs.
            with reading(self._policy):
                self._again()
        if self.rollouts is None:
            return Signals()
        found = Signals.concatenate(self._read) if self._read else Signals()
        if self._with_reference and reference_logprob is not None:
            on_tokens = reference_logprob.float().masked_fill(~self.rollouts.completion_mask, 0.0)
            found |= Signals(reference_logprob=on_tokens)
        if not self._states:
            return found
        states, base = (torch.cat(self._states.pop(off)) for off in (False, True))
        return found | Signals(adapter_residual=state_distance(states, base, self.rollouts))

    def _slice(self, given: tuple[Any, ...], of_tokens: dict[str, Tensor], rollouts: Rollouts) -> Tensor:
        off = adapter_is_off(self._policy)
        needs = Needs() if off else self._needs
        with observe(self._policy, rollouts, needs, kernels=self._kernels) as read, self._watch_states() as states:
            logprob, entropy, _ = self._forward(*given, compute_entropy=needs.logits, **of_tokens)
        if not off:
            self._read.append(read(**({"logprob": logprob, "entropy": entropy} if needs.logits else {})))
        if self._by_states:
            self._states[off] += [predicting(each, rollouts) for each in states]
        return logprob

    @contextmanager
    def _watch_states(self) -> Iterator[list[Tensor]]:
        if not self._by_states:
            yield []
            return
        with watch_final_states(causal_lm(self._policy)) as states:
            yield states
