"""Where the weights of a model are: on which device, offloaded, or spread over processes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

_PER_LAYER_HEADS = ("num_attention_heads_per_layer", "num_attention_groups", "attention_other_setting")
"""Fields of configs in which the layers have different numbers of heads."""


def is_sharded(model: nn.Module) -> bool:
    """FSDP, DeepSpeed's ZeRO-3 or tensor parallelism has left this process a part of the weights."""
    by_deepspeed = any(hasattr(p, "ds_id") for p in model.parameters())
    return by_deepspeed or _has_distributed_parameters(model) or _is_fsdp(model)


def _is_fsdp(model: nn.Module) -> bool:
    kinds = _classes("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel")
    return any(isinstance(module, kinds) for module in model.modules())


def _has_distributed_parameters(model: nn.Module) -> bool:
    kinds = _classes("torch.distributed.tensor", "DTensor")
    return any(isinstance(p, kinds) for p in model.parameters())


def _classes(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a module, none where nobody has imported it: then there can be no instance either."""
    found = (getattr(sys.modules.get(module), name, None) for name in names)
    return tuple(kind for kind in found if kind is not None)


def refuse_fsdp(model: nn.Module, what: str) -> None:
    """Raise a ValueError where the weights of `model` are FSDP's: only a pass of the root gathers them.

    Args:
        what: the model, in words.
    """
    if _is_fsdp(model):
        raise ValueError(
            f"{what} is sharded by FSDP, and this process holds a part of its weights: a forward pass of our own "
            "cannot gather them. Read signals in a pass that the trainer makes anyway (in TRL with "
            'credit_timing="loss"; in verl always), or from a copy that is not sharded'
        )


def refuse_tensor_parallel(model: Any) -> None:
    """Raise a ValueError where transformers has spread the heads of `model` over processes."""
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise ValueError(
            f"{type(model).__name__} is loaded with tensor parallelism over {model._tp_size} processes: each of them "
            "computes a part of the heads, so that means over heads would differ between processes. Load the policy "
            "without tp_plan, or choose a method that reads no attention"
        )


def refuse_split_heads(attention: nn.Module, heads: int) -> None:
    """Raise a ValueError where an attention module computes a part of its heads, the rest being elsewhere.

    Args:
        heads: how many it has computed.
    """
    config = getattr(attention, "config", None)
    expected = getattr(config, "num_attention_heads", None)
    if (
        has_varying_heads(config)
        or not isinstance(expected, int)
        or heads >= expected
        or not _on_several_processes(attention)
    ):
        return
    raise ValueError(
        f"{type(attention).__name__} shows {heads} of its {expected} heads in this process: with tensor parallelism "
        "means over heads would differ between processes. Load the policy without it, or choose a method that reads no "
        "attention"
    )


def has_varying_heads(config: Any) -> bool:
    """The layers of a model with this config may have different numbers of heads."""
    return any(getattr(config, name, None) is not None for name in _PER_LAYER_HEADS)


def _on_several_processes(module: nn.Module) -> bool:
    if _has_distributed_parameters(module):
        return True
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def input_device(model: Any, otherwise: torch.device) -> torch.device:
    """Where a transformers model takes its input; `otherwise` as in `device_of`."""
    return device_of(model.get_input_embeddings(), device_of(model, otherwise))


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module takes its input.

    Args:
        otherwise: where all weights are offloaded: accelerate, which has done it, moves any input to where it computes.
    """
    return next((p.device for p in module.parameters() if p.device.type != "meta"), otherwise)


def embedding_count(embed: nn.Module) -> int:
    """How many tokens input embeddings know; not the shape of their weight, which is packed where it is quantised."""
    count = getattr(embed, "num_embeddings", None)
    return count if isinstance(count, int) else next(embed.parameters()).shape[0]
