"""Which layers of a model have attention, and which of those see every earlier token.

Hybrid models (Qwen3-Next, Qwen3.5, LFM2, Jamba, ...) mix in layers without attention. Layer numbers are always the
model's own; choices that range over layers (samples, numbers that count from the last) range over those with attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.signals.types import AnswerLayer, DistanceNeed, FullAttentionLayer

_WITHOUT_ATTENTION = frozenset({"linear_attention", "conv", "mamba", "recurrent", "moe", "mlp"})
"""Kinds of layers in `config.layer_types` that have no attention over tokens. A kind that is not known counts as
attention: where it has none, reading it fails by name."""
_WINDOWED = frozenset(
    {
        "sliding_attention",
        "chunked_attention",
        "window_attention",
        "hybrid_sliding",
        "reference_sliding_attention",
    }
)
"""Kinds whose rows do not see all earlier tokens."""


def text_config(model: Any) -> Any:
    """The part of a transformers model's config that describes its language model."""
    return model.config.get_text_config(decoder=True)


@dataclass(frozen=True)
class ModelLayers:
    """The layers of a model.

    Attributes:
        kinds: what `config.layer_types` calls each layer; "attention" for every layer where the config says nothing.
    """

    kinds: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> ModelLayers:
        """The layers of a transformers causal LM."""
        config = text_config(model)
        kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
        return cls(tuple(kinds)[: config.num_hidden_layers])

    @property
    def attending(self) -> tuple[int, ...]:
        """The layers that have attention, by the model's own numbers."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind not in _WITHOUT_ATTENTION)

    @property
    def full(self) -> tuple[int, ...]:
        """The layers with full attention; where there is none, all that have attention."""
        return tuple(i for i in self.attending if self.kinds[i] not in _WINDOWED) or self.attending

    def index(self, layer: AnswerLayer) -> int:
        """The model's own number of a layer.

        Args:
            layer: that number; or a negative one, which counts from the last layer with attention; or a
                `FullAttentionLayer`.

        Raises:
            ValueError: the model has no such layer, or the layer has no attention.
        """
        if isinstance(layer, FullAttentionLayer):
            return _counted(layer.index, self.full, "with full attention")
        if layer < 0 and len(self.attending) < len(self.kinds):
            return _counted(layer, self.attending, "with attention")
        count = len(self.kinds)
        if not -count <= layer < count:
            raise ValueError(f"layer {layer} asked for, but the policy has {count}: use {-count} to {count - 1}")
        if layer % count not in self.attending:
            raise ValueError(
                f"layer {layer} has no attention (its kind is {self.kinds[layer]}): the layers of this policy that "
                f"have attention are {_listed(self.attending)}"
            )
        return layer % count

    def sample(self, need: DistanceNeed) -> list[int]:
        """The layers that `need` names, by the model's own numbers."""
        if not isinstance(need.layers, str):
            return [self.index(layer) for layer in need.layers]
        if not self.attending:
            raise ValueError("no layer of this policy has attention, so it cannot be read")
        return [self.attending[i] for i in need.sample(len(self.attending))]


def refuse_packed(model: Any) -> None:
    """Raise a ValueError where sequences that are packed in one row would run into each other.

    Positions that start again tell attention where a sequence begins; layers without attention do not look at them.
    """
    layers = ModelLayers.of(model)
    others = sorted({kind for i, kind in enumerate(layers.kinds) if i not in layers.attending})
    if others:
        raise ValueError(
            f"{type(model).__name__} has layers without attention ({', '.join(others)}), which carry their state from "
            "one packed sequence into the next: signals cannot be read from packed passes (verl: set "
            "actor_rollout_ref.model.use_remove_padding=False)"
        )


def _counted(index: int, layers: Sequence[int], what: str) -> int:
    if not -len(layers) <= index < len(layers):
        raise ValueError(
            f"layer {index} of the layers {what} asked for, but the policy has {len(layers)} of them"
            + (f": {_listed(layers)}" if layers else "")
        )
    return layers[index]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
