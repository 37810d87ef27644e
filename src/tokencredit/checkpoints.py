"""Models from checkpoints that hold all of their weights."""

from __future__ import annotations

from typing import Any

_NAMED = 5
"""Weights that are named where some are missing; the others are counted."""


def load_complete(kind: Any, name: str, **how: Any) -> Any:
    """A transformers model by folder or hub name, all of whose weights are in the checkpoint.

    transformers draws the weights that a checkpoint lacks at random and says so in a warning: every load then gives
    other numbers. Weights that are tied to others, such as those of many LM heads, are not lacking.

    Args:
        kind: a class with `from_pretrained`, such as AutoModelForCausalLM. how: what that takes beside the name.

    Raises:
        ValueError: it cannot be loaded, or weights are missing or have another shape.
    """
    try:
        # Other shapes are named below; transformers' own error refers to a warning that may be hidden.
        model, loading = kind.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from None
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a {type(model).__name__}, or has them in another shape: "
            f"{', '.join(missing[:_NAMED])}{more}. They would be drawn at random, so that nothing read from this model "
            "would mean anything: give a checkpoint that was saved from such a model, with the config it was saved with"
        )
    return model
