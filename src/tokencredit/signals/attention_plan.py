"""Which statistics of which layers serve a set of needs, and how they become signals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import Probe, Statistic
from tokencredit.signals.attention_statistics import Attention, HeadDistances, answer_row_mean, head_distances
from tokencredit.signals.types import DistanceNeed, Needs

_ANSWER = "answer"


class AttentionPlan:
    """What `probe_attention` is asked for a model of `layers` layers, and what is made of its findings.

    Raises:
        ValueError: a layer that the model does not have.
    """

    def __init__(self, rollouts: Rollouts, needs: Needs, layers: int) -> None:
        self._rollouts = rollouts
        self._answer = {layer: _index(layer, layers) for layer in needs.answer_attention}
        self._distances = {need: [_index(i, layers) for i in need.sample(layers)] for need in needs.distances}
        self.asked: dict[int, dict[Hashable, Statistic]] = defaultdict(dict)
        for index in self._answer.values():
            self.asked[index][_ANSWER] = self._answer_rows
        for need, sampled in self._distances.items():
            for index in sampled:
                self.asked[index][need] = partial(self._head_distances, need)

    def signals(self, probe: Probe) -> dict[str, Any]:
        """The fields of `Signals` that come from attention."""
        device, prompt = self._rollouts.completion_ids.device, self._rollouts.prompt_ids.shape[1]
        return {
            "answer_attention": {
                layer: probe.found[index, _ANSWER][..., prompt:].to(device) for layer, index in self._answer.items()
            },
            "distances": {
                need: HeadDistances.join([probe.found[index, need].to(device) for index in sampled], dim=1)
                for need, sampled in self._distances.items()
            },
        }

    def _answer_rows(self, attention: Attention) -> Any:
        rows = torch.cat([torch.zeros_like(self._rollouts.prompt_mask), self._rollouts.answer_mask], 1)
        return answer_row_mean(attention, rows.to(attention.query.device))

    def _head_distances(self, need: DistanceNeed, attention: Attention) -> Any:
        mask = self._rollouts.completion_mask.to(attention.query.device)
        return head_distances(attention, mask, need.window, need.horizon)


def _index(layer: int, layers: int) -> int:
    if not -layers <= layer < layers:
        raise ValueError(f"layer {layer} asked for, but the policy has {layers}: use {-layers} to {layers - 1}")
    return layer % layers
