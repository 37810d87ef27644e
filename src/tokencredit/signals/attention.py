"""Attention, read beside the model's own.

The model keeps its attention implementation (SDPA, eager, FlashAttention, flex attention). While a probe is open,
transformers' table of implementations holds a wrapper under the same name, which calls the original and computes the
statistics that are asked for from the same queries and keys. The model's config is not touched: masks are chosen by the
implementation's name, and FlashAttention looks its kernel up by it.

The table is one for the whole process. Probes that are open at once, in several threads, share one wrapper, which finds
the probe of its own thread in a context variable and does nothing where there is none; the last one takes it away.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokencredit.signals.attention_statistics import Attention, check_mask
from tokencredit.signals.layers import text_config
from tokencredit.signals.placement import refuse_split_heads
from tokencredit.signals.row_sums import RowSums

Statistic = Callable[[Attention], Any]
Tell = Callable[..., tuple[Any, RowSums]]
"""Calls an attention function, and says what the call told of its rows."""


@dataclass
class Probe:
    """`asked`: layer -> name -> what to compute there. `found`: (layer, name) -> what came out.

    `stop`: break the forward pass off once all is found. `tell`: layer -> how its attention is called.
    """

    asked: dict[int, dict[Hashable, Statistic]]
    stop: bool = False
    tell: dict[int, Tell] = field(default_factory=dict)
    found: dict[tuple[int, Hashable], Any] = field(default_factory=dict)
    memory: list[Tensor] = field(default_factory=list)

    @property
    def missing(self) -> set[int]:
        """The layers where something that was asked is not found yet."""
        return {layer for layer, names in self.asked.items() for name in names if (layer, name) not in self.found}


class _AllFound(Exception):
    """Ends a forward pass that has nothing more to tell."""


_ACTIVE: ContextVar[Probe | None] = ContextVar("tokencredit_probe", default=None)


@contextmanager
def probe_attention(
    model: Any,
    asked: dict[int, dict[Hashable, Statistic]],
    *,
    stop: bool = False,
    tell: Mapping[int, Tell] = MappingProxyType({}),
) -> Iterator[Probe]:
    """While open, a forward pass of `model` fills `Probe.found`. Where nothing is asked, the model is left alone.

    Args:
        stop: end the block when all is found, in the midst of the forward pass, unless hooks on the model count on
            seeing its end.
        tell: layer -> how its attention is called, where it is SDPA on a CPU in full precision; the call that others
            make by default.

    Raises:
        ValueError: when the block ends, if the attention of a layer was not seen.
    """
    implementation = text_config(model)._attn_implementation
    probe = Probe(asked, stop and not _hooked(model), dict(tell) if implementation == "sdpa" else {})
    if not asked:
        yield probe
        return
    token = _ACTIVE.set(probe)
    try:
        with _wrapped(implementation):
            yield probe
    except _AllFound:
        pass
    finally:
        _ACTIVE.reset(token)
    if probe.missing:
        raise ValueError(
            f"the attention of layers {sorted(probe.missing)} could not be read: {type(model).__name__} does not route "
            "it through transformers' AttentionInterface"
        )


@dataclass
class _Wrapper:
    """What stands in transformers' table under a name, `function`, and for how many open probes.

    `before`: the entry that it has replaced in the table's local part; None if there was none.
    """

    function: Callable[..., Any]
    before: Callable[..., Any] | None
    users: int = 0


_WRAPPERS: dict[str, _Wrapper] = {}
_TABLE_LOCK = threading.Lock()


@contextmanager
def _wrapped(name: str) -> Iterator[None]:
    """The table of implementations holds the probing wrapper under `name`; nests, in one thread or several."""
    table = ALL_ATTENTION_FUNCTIONS
    with _TABLE_LOCK:
        wrapper = _WRAPPERS.get(name)
        # Others may have registered a function of this name since: then theirs is what must be wrapped.
        if wrapper is None or table._local_mapping.get(name) is not wrapper.function:
            wrapper = _Wrapper(_probing(table.get(name)), table._local_mapping.get(name))
            _WRAPPERS[name], table[name] = wrapper, wrapper.function
        wrapper.users += 1
    try:
        yield
    finally:
        with _TABLE_LOCK:
            wrapper.users -= 1
            if wrapper.users == 0:
                _take_away(name, wrapper)


def _take_away(name: str, wrapper: _Wrapper) -> None:
    """The table holds what it held before `wrapper`, unless somebody has registered something else meanwhile."""
    if _WRAPPERS.get(name) is wrapper:
        del _WRAPPERS[name]
    if ALL_ATTENTION_FUNCTIONS._local_mapping.get(name) is not wrapper.function:
        return
    if wrapper.before is None:
        del ALL_ATTENTION_FUNCTIONS[name]
    else:
        ALL_ATTENTION_FUNCTIONS[name] = wrapper.before


def _probing(original: Callable[..., Any] | None) -> Callable[..., Any]:
    """The wrapper around an implementation; None is eager, of which each model's file has its own."""

    def attention_forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> Any:
        base = original or sys.modules[type(module).__module__].eager_attention_forward
        probe = _ACTIVE.get()
        layer = getattr(module, "layer_idx", None)
        if probe is None or layer not in probe.asked:
            return base(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        _refuse_unreadable(module, query, key, attention_mask, kwargs)
        refuse_split_heads(module, query.shape[1])
        call = probe.tell.get(layer, _plainly) if _tells_of_what_it_is_given(query, kwargs) else _plainly
        output, sums = call(base, module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        seen = Attention(
            query.detach(),
            key.detach(),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=attention_mask,
            window=kwargs.get("sliding_window"),
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
            log_sum_exp=sums.log_sum_exp,
            look_back=sums.look_back,
            memory=probe.memory,
        )
        # Under autocast a matmul would round to bfloat16, however its inputs were cast.
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            for name, statistic in probe.asked[layer].items():
                # Once only: gradient checkpointing runs a layer again in the backward pass.
                if (layer, name) not in probe.found:
                    probe.found[layer, name] = statistic(seen)
        if probe.stop and not probe.missing:
            raise _AllFound
        return output

    return attention_forward


def _tells_of_what_it_is_given(query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Sums that SDPA tells are those of the scores that we compute from the same queries and keys, in full precision.

    Under autocast it would round them first, in half precision its exponentials are coarse, and a softcap it ignores.
    """
    full = query.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(query.device.type)
    return full and query.device.type == "cpu" and kwargs.get("softcap") is None


def _plainly(attend: Callable[..., Any], *given: Any, **kwargs: Any) -> tuple[Any, RowSums]:
    return attend(*given, **kwargs), RowSums()


def _hooked(model: nn.Module) -> bool:
    """Some module that a broken-off forward pass would leave half way has hooks (FSDP, DeepSpeed, accelerate, ...).

    Those with which transformers records outputs do not count: they stay on a model once it was asked for any.
    """
    return any(
        hasattr(m, "_hf_hook")
        or "FullySharded" in type(m).__name__
        or any(
            hook.__module__ != "transformers.utils.output_capturing"
            for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        )
        for m in model.modules()
        if m._modules
    )


def _refuse_unreadable(module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
    if query.shape[2] != key.shape[2]:
        raise ValueError("attention cannot be read behind a KV-cache prefix: pass whole sequences with use_cache=False")
    if not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} is not causal: attention credit is defined for causal models only")
    if kwargs.get("position_bias") is not None:
        raise ValueError(f"{type(module).__name__} adds a position bias to its scores, which is not supported")
    check_mask(mask)
