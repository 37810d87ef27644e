"""Which statistics of which layers and heads serve a set of needs, and how they become signals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import Probe, Statistic, Tell
from tokencredit.signals.attention_kernels import kernels_named
from tokencredit.signals.attention_reach import seen_by_any
from tokencredit.signals.attention_statistics import Attention, HeadDistances
from tokencredit.signals.layers import ModelLayers, text_config
from tokencredit.signals.placement import heads_differ
from tokencredit.signals.row_sums import with_log_sum_exp, with_look_back
from tokencredit.signals.types import DistanceNeed, Needs

_ANSWER, _REACH = "answer", "reach"
_Placed = list[tuple[int, int]]
"""Heads of a layer, each with its place among all that were asked for."""


class AttentionPlan:
    """What `probe_attention` is asked for a model with some layers, and what is made of its findings.

    Attributes:
        asked: layer -> name -> statistic. tell: layer -> how its own attention is called, so that it tells more.

    Raises:
        ValueError: a layer that the model does not have or that has no attention, or kernels that do not exist.
    """

    def __init__(self, rollouts: Rollouts, needs: Needs, layers: ModelLayers, kernels: str = "torch") -> None:
        self._rollouts, self._kernels = rollouts, kernels_named(kernels)
        self._answer = {layer: layers.index(layer) for layer in needs.answer_attention}
        self._answer_heads = tuple(sorted(needs.answer_heads))
        self._placed = _by_layer(self._answer_heads, layers)
        self._distances = {need: _layers_of(need, layers) for need in needs.distances}
        self.asked: dict[int, dict[Hashable, Statistic]] = defaultdict(dict)
        self.tell: dict[int, Tell] = {}
        self._ask()

    def _ask(self) -> None:
        for index in self._answer.values():
            self.asked[index][_ANSWER] = partial(self._answer_rows, None)
            self.asked[index][_REACH] = self._answer_reach
        for index, placed in self._placed.items():
            self.asked[index].setdefault(_ANSWER, partial(self._answer_rows, placed))
        for need, by_layer in self._distances.items():
            for index, heads in by_layer:
                self.asked[index][need] = partial(self._head_distances, need, heads)
                if heads is not None:
                    self.tell.setdefault(index, with_log_sum_exp)
                elif self._kernels.fused:
                    self.tell[index] = with_look_back

    def signals(self, probe: Probe) -> dict[str, Any]:
        """The fields of `Signals` that come from attention."""
        device, prompt = self._rollouts.completion_ids.device, self._rollouts.prompt_ids.shape[1]
        of_heads = {}
        for index, placed in self._placed.items():
            rows = probe.found[index, _ANSWER]
            whole = index in self._answer.values()
            for i, (head, place) in enumerate(placed):
                own = rows[:, _head(head, rows.shape[1]) if whole else i]
                of_heads[self._answer_heads[place]] = own[:, prompt:].to(device)
        return {
            "answer_attention": {
                layer: probe.found[index, _ANSWER][..., prompt:].to(device) for layer, index in self._answer.items()
            },
            "answer_reach": {
                layer: probe.found[index, _REACH][:, prompt:].to(device) for layer, index in self._answer.items()
            },
            "answer_heads": of_heads,
            "distances": {need: self._found(need, probe).to(device) for need in self._distances},
        }

    def _found(self, need: DistanceNeed, probe: Probe) -> HeadDistances:
        by_layer = self._distances[need]
        found = HeadDistances.join([probe.found[index, need] for index, _ in by_layer], dim=1)
        places = [place for _, placed in by_layer for _, place in placed or ()]
        return found.of_heads([places.index(i) for i in range(len(places))]) if places else found

    def _answer_rows(self, placed: _Placed | None, attention: Attention) -> Tensor:
        return self._kernels.answer_row_mean(self._of(placed, attention), self._rows_of_answers(attention))

    def _answer_reach(self, attention: Attention) -> Tensor:
        return seen_by_any(attention, self._rows_of_answers(attention))

    def _rows_of_answers(self, attention: Attention) -> Tensor:
        """(B, N) bool, where the attention is."""
        rows = torch.cat([torch.zeros_like(self._rollouts.prompt_mask), self._rollouts.answer_mask], 1)
        return rows.to(attention.query.device)

    def _head_distances(self, need: DistanceNeed, placed: _Placed | None, attention: Attention) -> HeadDistances:
        mask = self._rollouts.completion_mask.to(attention.query.device)
        chosen = self._of(placed, attention)
        return self._kernels.head_distances(chosen, mask, need.window, need.horizon, look_back=placed is None)

    def _of(self, placed: _Placed | None, attention: Attention) -> Attention:
        if placed is None:
            return attention
        return attention.of_heads([_head(head, attention.query.shape[1]) for head, _ in placed])


def check_attention(model: Any, needs: Needs) -> None:
    """Raise a ValueError where a transformers causal LM has no such layers or heads as `needs` names.

    A pass would find it out too, once rollouts have been generated.
    """
    if not needs.attention:
        return
    layers, config = ModelLayers.of(model), text_config(model)
    for layer in needs.answer_attention:
        layers.index(layer)
    for need in needs.distances:
        layers.sample(need)
    named = needs.answer_heads.union(*(need.heads or () for need in needs.distances))
    count = getattr(config, "num_attention_heads", None)
    for layer, head in sorted(named):
        layers.index(layer)
        if isinstance(count, int) and not heads_differ(config):
            _head(head, count)


def _layers_of(need: DistanceNeed, layers: ModelLayers) -> list[tuple[int, _Placed | None]]:
    """The layers that are read, and of each the heads; None for all."""
    if need.heads is None:
        return [(layer, None) for layer in layers.sample(need)]
    return list(_by_layer(need.heads, layers).items())


def _by_layer(heads: Sequence[tuple[int, int]], layers: ModelLayers) -> dict[int, _Placed]:
    by_layer: dict[int, _Placed] = defaultdict(list)
    for place, (layer, head) in enumerate(heads):
        by_layer[layers.index(layer)].append((head, place))
    return dict(sorted(by_layer.items()))


def _head(head: int, heads: int) -> int:
    if not -heads <= head < heads:
        raise ValueError(
            f"head {head} asked for, but the policy has {heads} heads a layer: use {-heads} to {heads - 1}"
        )
    return head % heads
