"""Which model heads belong to: its shape, and a fingerprint of its embeddings that outlives training."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.signals.layers import text_config
from tokencredit.signals.placement import device_of, is_sharded
from tokencredit.signals.policy import causal_lm
from tokencredit.signals.types import Needs

_BITS, _TOKENS = 256, 64
_AGREEMENT = 0.75
"""Share of equal bits from which two fingerprints are of one model. Independent bits agree by half, give or take 0.03;
those of a model and of what it was trained into differ only where an entry has crossed the median."""
_EMBEDDINGS = ", embeddings "


def model_signature(policy: nn.Module) -> str:
    """What must agree for the heads of one model to be those of another, in words.

    Its shape, and in hexadecimal digits the fingerprint of its input embeddings: whether each of 256 fixed entries is
    above their median. Training hardly changes it, adapters and quantised layers leave it alone, and other models have
    another one. A model whose weights are spread over processes has a signature without fingerprint.
    """
    model = causal_lm(policy)
    config = text_config(model)
    shape = (
        f"{config.model_type} of {config.num_hidden_layers} layers, {config.num_attention_heads} heads, "
        f"width {config.hidden_size}"
    )
    if is_sharded(policy):
        return shape
    return f"{shape}{_EMBEDDINGS}{_fingerprint(model, config.vocab_size):0{_BITS // 4}x}"


def check_models(policy: nn.Module, needs: Needs) -> None:
    """Raise a ValueError where `needs` was made for another model.

    Where one of the two has no fingerprint (an older head file, a policy that is spread over processes) the shape alone
    is compared; for such a policy a warning says so.
    """
    if not needs.models:
        return
    shape, _, own = model_signature(policy).partition(_EMBEDDINGS)
    for signature in sorted(needs.models):
        wanted, _, fingerprint = signature.partition(_EMBEDDINGS)
        if wanted != shape:
            raise ValueError(f"these heads are those of {wanted}, but the policy is {shape}: find its own heads")
        if fingerprint and not own:
            warnings.warn(
                "the policy's weights are spread over processes, so that only its shape tells whether the heads are "
                "its own",
                stacklevel=3,
            )
        elif fingerprint and (share := _agreement(fingerprint, own)) < _AGREEMENT:
            raise ValueError(
                f"these heads are those of another model than the policy, though both are {shape}: the signs of "
                f"their embeddings agree in {share:.0%} of the places that are compared, where a model and what it "
                f"was trained into agree in {_AGREEMENT:.0%} or more. Find the policy's own heads"
            )


@torch.no_grad()
def _fingerprint(model: Any, vocabulary: int) -> int:
    """256 bits of the input embeddings, read through the module: its weights may be offloaded, or packed."""
    embed = model.get_input_embeddings()
    # A power of two, so that the places stay the same where a few tokens are added to the vocabulary.
    known = min(1024, 1 << (vocabulary.bit_length() - 1))
    token = torch.arange(_TOKENS) * known // _TOKENS
    rows: Tensor = embed(token.to(device_of(embed, torch.device("cpu")))).float().cpu()
    slot, turn = torch.arange(_BITS) % _TOKENS, torch.arange(_BITS) // _TOKENS
    # Four columns of each token, a quarter of the width apart; the prime spreads those of different tokens.
    columns = (slot * 7919 + turn * max(1, rows.shape[1] // 4)) % rows.shape[1]
    values = rows[slot, columns]
    bits = (values > values.median()).tolist()
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def _agreement(fingerprint: str, other: str) -> float:
    try:
        different = int(fingerprint, 16) ^ int(other, 16)
    except ValueError:
        raise ValueError(f"{fingerprint!r} is no fingerprint of embeddings, which has {_BITS // 4} digits") from None
    return 1 - different.bit_count() / _BITS
