"""What can be read from models (`Needs`), and what was read (`Signals`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from tokencredit.signals.attention_statistics import HeadDistances


@dataclass(frozen=True, order=True)
class FullAttentionLayer:
    """A layer that is named by its place among the layers with full attention, whose rows see all earlier tokens.

    `FullAttentionLayer(-1)` is the last of them, which need not be the model's last layer: in Gemma 3 that one sees a
    sliding window. In a model without any such layer (Mistral: a window everywhere) the place is among all layers that
    have attention.
    """

    index: int


AnswerLayer = int | FullAttentionLayer


@dataclass(frozen=True)
class DistanceNeed:
    """Look-back distance, WAAD and FAI of every head of some layers.

    Attributes:
        layers: five evenly spaced layers of the `bottom`, `middle` or `top` third, `all`, or the layers themselves.
            Thirds and negative numbers count the layers that have attention; other numbers are the model's own.
        window: W of WAAD. horizon: (low, high) of FAI.
        heads: (layer, head) pairs: only they are read, and not their look-back distance; `layers` are then theirs.
    """

    layers: str | tuple[int, ...] = "middle"
    window: int = 10
    horizon: tuple[int, int] = (10, 100)
    heads: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.heads is not None:
            if not self.heads or not all(len(pair) == 2 and all(type(i) is int for i in pair) for pair in self.heads):
                raise ValueError(f"heads must be (layer, head) pairs, at least one; got {self.heads!r}")
            object.__setattr__(self, "heads", tuple(tuple(pair) for pair in self.heads))
            object.__setattr__(self, "layers", tuple(sorted({layer for layer, _ in self.heads})))
        if isinstance(self.layers, str):
            if self.layers not in ("bottom", "middle", "top", "all"):
                raise ValueError(f"layers must be bottom, middle, top, all, or layer numbers; got {self.layers!r}")
            return
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or not all(type(layer) is int for layer in self.layers):
            raise ValueError(f"layers must be whole numbers, at least one; got {self.layers!r}")

    def sample(self, count: int) -> list[int]:
        """Of `count` layers that have attention, which: for `middle` round(linspace(L//3, 2*L//3, 5)), each once."""
        if not isinstance(self.layers, str):
            return list(self.layers)
        if self.layers == "all":
            return list(range(count))
        third = {"bottom": (0, count // 3), "middle": (count // 3, 2 * count // 3), "top": (2 * count // 3, count - 1)}
        low, high = third[self.layers]
        return sorted({min(count - 1, round(low + (high - low) * i / 4)) for i in range(5)})


@dataclass(frozen=True)
class RewardNeed:
    """What each completion token is worth to a reward model.

    Attributes:
        null: the token that stands for nothing: `pad`, `eos`, `zero` or `mean` (of the vocabulary's embeddings).
        estimator: `taylor` (one forward and backward pass), `exact` (one forward pass a token), or `integrated` (as
            taylor, at `path_points` points).
        backward: `single`, of the sum of the step rewards, or `per_step`, each token by its own step's reward.
    """

    null: str = "pad"
    estimator: str = "taylor"
    backward: str = "single"
    path_points: int = 16


@dataclass(frozen=True, eq=False)
class RewardAttribution:
    """A reward model's rewards, and what each token of a completion is worth to them; (B, T) each.

    Attributes:
        reward: float32, the reward of the token's segment; 0 outside the segments.
        influence: float32, the reward lost if a null token stood here, as estimated; 0 outside the segments and where
            the token is not covered.
        segment: long, -1 outside the segments. The completion is one, or each reasoning step is.
        covered: bool, some token of the reward model covers the token.
    """

    reward: Tensor
    influence: Tensor
    segment: Tensor
    covered: Tensor

    def to(self, device: torch.device) -> RewardAttribution:
        return RewardAttribution(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[RewardAttribution]) -> RewardAttribution:
        """Those of several slices of a batch, as one."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})


@dataclass(frozen=True)
class Needs:
    """What a method reads. `a | b` is what two methods need together, collected in one go.

    Attributes:
        answer_attention: the layers whose answer rows are read, by the model's own numbers; negative numbers count from
            the last layer that has attention, and a `FullAttentionLayer` from the last one with full attention.
        answer_heads: (layer, head) pairs whose answer rows are read.
        distances: how far heads look back, and how much they are looked back at.
        logits: log-prob and entropy of each completion token.
        reference_logprob: log-prob of each completion token under the reference: the policy with its LoRA adapter
            off, or a given model (a second forward pass).
        adapter_residual: the change that the LoRA adapter makes to the final hidden state (a second forward pass,
            adapter off; it serves `reference_logprob` too).
        reward: what the tokens are worth to a reward model (its forward and backward pass, none of the policy).
        group: no signal, but the whole group of a completion: its credit depends on the others.
        models: signatures of the models that the layers and heads are of (`model_signature`); the policy must be one.
    """

    answer_attention: frozenset[AnswerLayer] = frozenset()
    answer_heads: frozenset[tuple[int, int]] = frozenset()
    distances: frozenset[DistanceNeed] = frozenset()
    logits: bool = False
    reference_logprob: bool = False
    adapter_residual: bool = False
    reward: frozenset[RewardNeed] = frozenset()
    group: bool = False
    models: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    def __bool__(self) -> bool:
        return self != Needs()

    def beyond(self, signals: Signals) -> Needs:
        """What of it `signals` lack."""
        answer_attention = self.answer_attention - signals.answer_attention.keys()
        answer_heads = self.answer_heads - signals.answer_heads.keys()
        distances = self.distances - signals.distances.keys()
        return replace(
            self,
            answer_attention=answer_attention,
            answer_heads=answer_heads,
            distances=distances,
            logits=self.logits and (signals.logprob is None or signals.entropy is None),
            reference_logprob=self.reference_logprob and signals.reference_logprob is None,
            adapter_residual=self.adapter_residual and signals.adapter_residual is None,
            reward=self.reward - signals.reward.keys(),
            models=self.models if answer_attention or answer_heads or distances else frozenset(),
        )

    @property
    def policy(self) -> bool:
        """Something is read from the policy itself."""
        return replace(self, reward=frozenset(), group=False) != Needs()

    @property
    def attention(self) -> bool:
        """The attention of the policy is read."""
        return bool(self.answer_attention or self.answer_heads or self.distances)

    @property
    def adapter(self) -> bool:
        """A PEFT policy gives these signals by switching its adapter off."""
        return self.adapter_residual or self.reference_logprob


@dataclass(frozen=True, eq=False)
class Signals:
    """What was read for B completions, detached and finite. What was not asked for is absent.

    Log-prob-aligned signals stand at the token that they are about, read at the position that predicts it.

    Attributes:
        answer_attention: layer, as it was asked for -> (B, H, T) float32: the mean over the completion's answer rows of
            the attention that a head pays to each completion token; 0 where there is no answer.
        answer_reach: layer, as it was asked for in `answer_attention` -> (B, T) bool: the completion tokens that at
            least one answer row can see in that layer; those behind its sliding window or chunk are not among them.
        answer_heads: (layer, head), as it was asked for -> (B, T) float32, likewise, of one head.
        distances: need -> `HeadDistances` of its `heads`, or of all heads of its layers, in (layer, head) order.
        logprob: (B, T) float32, log pi(y_t).
        entropy: (B, T) float32, H_t in nats.
        reference_logprob: (B, T) float32, log pi_ref(y_t).
        adapter_residual: (B, T) float32, ||h_adapted - h_base||_2.
        reward: need -> `RewardAttribution`.

    Raises:
        ValueError: a signal is NaN or infinite.
    """

    answer_attention: dict[AnswerLayer, Tensor] = field(default_factory=dict)
    answer_reach: dict[AnswerLayer, Tensor] = field(default_factory=dict)
    answer_heads: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    distances: dict[DistanceNeed, HeadDistances] = field(default_factory=dict)
    logprob: Tensor | None = None
    entropy: Tensor | None = None
    reference_logprob: Tensor | None = None
    adapter_residual: Tensor | None = None
    reward: dict[RewardNeed, RewardAttribution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self._read().items():
            if not torch.isfinite(values).all():
                raise ValueError(f"signal {name} is not finite: the model's activations are NaN or infinite")

    def check(self, needs: Needs) -> None:
        """Raise a ValueError where something that `needs` names was not read."""
        missing = {f"answer_attention[{layer}]" for layer in needs.answer_attention - self.answer_attention.keys()}
        missing |= {f"answer_heads[{pair}]" for pair in needs.answer_heads - self.answer_heads.keys()}
        missing |= {f"distances[{need}]" for need in needs.distances - self.distances.keys()}
        missing |= {f"reward[{need}]" for need in needs.reward - self.reward.keys()}
        wanted = {
            "logprob": needs.logits,
            "entropy": needs.logits,
            "reference_logprob": needs.reference_logprob,
            "adapter_residual": needs.adapter_residual,
        }
        missing |= {name for name, asked in wanted.items() if asked and getattr(self, name) is None}
        if missing:
            lacking = ", ".join(sorted(missing))
            raise ValueError(f"these signals lack {lacking}: read them with collect(policy, rollouts, method.needs)")

    def _read(self) -> dict[str, Tensor]:
        plain = {name: getattr(self, name) for name in _PLAIN if getattr(self, name) is not None}
        heads = {
            f"distances.{f.name}": getattr(found, f.name) for found in self.distances.values() for f in fields(found)
        }
        worth = {f"reward.{n}": getattr(found, n) for found in self.reward.values() for n in ("reward", "influence")}
        rows = {f"answer_attention[{layer}]": a for layer, a in self.answer_attention.items()}
        return plain | heads | worth | rows | {f"answer_heads[{pair}]": a for pair, a in self.answer_heads.items()}

    def __or__(self, other: Signals) -> Signals:
        """What either of two readings of the same rollouts holds; `other` where both do."""
        joined: dict[str, Any] = {name: getattr(self, name) | getattr(other, name) for name in _MAPPINGS}
        for name in _PLAIN:
            joined[name] = getattr(self, name) if getattr(other, name) is None else getattr(other, name)
        return Signals(**joined)

    @staticmethod
    def concatenate(parts: Sequence[Signals]) -> Signals:
        """The signals of consecutive slices of one batch, as one."""
        first = parts[0]
        return Signals(
            answer_attention={k: torch.cat([p.answer_attention[k] for p in parts]) for k in first.answer_attention},
            answer_reach={k: torch.cat([p.answer_reach[k] for p in parts]) for k in first.answer_reach},
            answer_heads={k: torch.cat([p.answer_heads[k] for p in parts]) for k in first.answer_heads},
            distances={k: HeadDistances.join([p.distances[k] for p in parts], dim=0) for k in first.distances},
            reward={k: RewardAttribution.join([p.reward[k] for p in parts]) for k in first.reward},
            **{n: torch.cat([getattr(p, n) for p in parts]) for n in _PLAIN if getattr(first, n) is not None},
        )


_MAPPINGS = ("answer_attention", "answer_reach", "answer_heads", "distances", "reward")
_PLAIN = ("logprob", "entropy", "reference_logprob", "adapter_residual")
