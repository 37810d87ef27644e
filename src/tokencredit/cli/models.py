"""A user's model, by folder or hub name."""

from __future__ import annotations

from typing import Any


def load_policy(name: str) -> tuple[Any, Any]:
    """A causal LM, in evaluation mode, and its tokenizer, with a pad token.

    Raises:
        ValueError: one of them cannot be loaded, or the model's checkpoint lacks some of its weights.
    """
    from transformers import AutoTokenizer

    model = load_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer of {name} cannot be loaded: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def load_model(name: str) -> Any:
    """A causal LM in evaluation mode, in its own precision, on a GPU where there is one.

    Raises:
        ValueError: it cannot be loaded, or its checkpoint lacks some of its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tokencredit.checkpoints import load_complete

    model = load_complete(AutoModelForCausalLM, name, dtype="auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
