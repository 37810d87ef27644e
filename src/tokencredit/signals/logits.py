"""Log-probs and entropies of the completion tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokencredit.rollouts import Rollouts
from tokencredit.signals.final_states import predicting
from tokencredit.signals.layers import text_config

_MAX_LOGITS = 1 << 24
"""Logits held at once, in elements: bounds memory whatever the batch and the vocabulary."""


def logprob_and_entropy(model: Any, hidden: Tensor, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """log pi(y_t) and H_t in nats, read at the position that predicts each token; float32 inside, chunk by chunk.

    Args:
        model: a transformers causal LM.
        hidden: (B, N, D), the states that enter its LM head.

    Returns:
        (B, T) and (B, T) float32, 0 on padding.
    """
    mask = rollouts.completion_mask
    states = predicting(hidden, rollouts)[mask.to(hidden.device)]
    targets = rollouts.completion_ids[mask].to(hidden.device)
    # Not the head's weight: that of a quantised one is packed, and its shape says nothing.
    chunk = max(1, _MAX_LOGITS // text_config(model).vocab_size)
    logprobs, entropies = [], []
    for h, target in zip(states.split(chunk), targets.split(chunk), strict=True):
        logprob, entropy = _of_logits(lm_head_logits(model, h), target)
        logprobs.append(logprob)
        entropies.append(entropy)
    return _on_grid(logprobs, mask), _on_grid(entropies, mask)


def logprob_and_entropy_of(logits: Tensor, places: Tensor, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """As `logprob_and_entropy`, from logits that a pass has made.

    Args:
        logits: (M, V), of all places of the pass.
        places: (B, T) long, the place that predicts each token; any on padding.
    """
    mask = rollouts.completion_mask
    chunk = max(1, _MAX_LOGITS // logits.shape[1])
    chunks = zip(places[mask].split(chunk), rollouts.completion_ids[mask].split(chunk), strict=True)
    read = [_of_logits(logits[place], target) for place, target in chunks]
    return _on_grid([logprob for logprob, _ in read], mask), _on_grid([entropy for _, entropy in read], mask)


def _of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(M, V) logits and (M,) tokens -> log-prob and entropy, (M,) each."""
    log_p = logits.float().log_softmax(-1)
    # p log p is 0 where p is 0, though log p may be -inf there.
    return log_p.gather(1, targets[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)


def lm_head_logits(model: Any, hidden: Tensor) -> Tensor:
    """(..., D) -> (..., V): the model's logits, with the scale or cap that its config asks for."""
    config = text_config(model)
    logits = model.get_output_embeddings()(hidden)
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def check_head(model: Any, hidden: Tensor, logits: Tensor) -> None:
    """Raise a ValueError where `lm_head_logits` is not how the model makes its logits.

    Args:
        hidden: (B, 1, D), the last states. logits: (B, 1, V), what the model's own forward made of them.
    """
    if not torch.allclose(lm_head_logits(model, hidden).float(), logits.float(), atol=1e-2, rtol=1e-2):
        raise ValueError(
            f"{type(model).__name__} does more to its logits than its LM head and a known scale or cap, so log-probs "
            "and entropies cannot be read from it"
        )


def _on_grid(parts: list[Tensor], mask: Tensor) -> Tensor:
    grid = torch.zeros(mask.shape, device=mask.device)
    grid[mask] = torch.cat(parts).to(mask.device)
    return grid
