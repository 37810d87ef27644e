"""Signals from a forward pass that somebody else makes anyway, such as that of the loss."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.signals.attention import Statistic, probe_attention
from tokencredit.signals.attention_kernels import kernels_named
from tokencredit.signals.attention_plan import AttentionPlan
from tokencredit.signals.attention_statistics import Attention
from tokencredit.signals.identity import check_models
from tokencredit.signals.layers import ModelLayers
from tokencredit.signals.micro_batches import refuse_left_padding
from tokencredit.signals.placement import input_device, refuse_tensor_parallel
from tokencredit.signals.policy import causal_lm
from tokencredit.signals.types import Needs, Signals

ReadSignals = Callable[..., Signals]


@contextmanager
def observe(
    policy: nn.Module,
    rollouts: Rollouts,
    needs: Needs,
    *,
    on_grid: Callable[[Attention], Attention] | None = None,
    kernels: str = "torch",
) -> Iterator[ReadSignals]:
    """While open, one forward pass over prompt and completion of `rollouts` is watched; it computes what it would.

    The block is given a function, to be called behind the pass, that returns the signals. Attention it has read itself;
    what the pass has computed anyway is handed to it: `read(logprob=..., entropy=..., reference_logprob=...)`, (B, T)
    each, none where it is not needed.

    The model is watched as it is: with dropout, signals are those of the units that are left.

    Args:
        on_grid: brings attention onto the grid of `rollouts`, for a pass that has its tokens elsewhere, and no padding
            on the left.
        kernels: as in `collect`; with `fused`, a pass without gradients computes what it would up to rounding.

    Raises:
        ValueError: `needs` names what no pass of the policy shows (`unobservable`), or attention cannot be read: heads
            are spread over processes, or states depend on padding.
    """
    if missing := unobservable(needs):
        raise ValueError(f"{missing} cannot be read from a forward pass of the policy: use collect")
    check_models(policy, needs)
    model = causal_lm(policy)
    if needs.attention:
        refuse_tensor_parallel(model)
        kernels_named(kernels).check(input_device(model, rollouts.completion_ids.device))
        if on_grid is None:
            refuse_left_padding(model, rollouts)
    plan = AttentionPlan(rollouts, needs, ModelLayers.of(model), kernels)
    asked: dict[int, dict[Hashable, Statistic]] = {
        layer: {name: _after(on_grid, statistic) for name, statistic in named.items()}
        for layer, named in plan.asked.items()
    }
    with probe_attention(model, asked, tell=plan.tell) as probe:

        def read(**computed: Tensor | None) -> Signals:
            on_tokens = rollouts.completion_mask
            shown = {name: value for name, value in computed.items() if value is not None}
            grid = {name: value.detach().float().masked_fill(~on_tokens, 0.0) for name, value in shown.items()}
            fields: dict[str, Any] = {**plan.signals(probe), **grid}
            return Signals(**fields)

        yield read


def _after(on_grid: Callable[[Attention], Attention] | None, statistic: Statistic) -> Statistic:
    if on_grid is None:
        return statistic
    return lambda attention: statistic(on_grid(attention))


def unobservable(needs: Needs) -> str:
    """What of `needs` takes more than a forward pass of the policy, in words; empty where there is nothing."""
    beyond = {"the adapter's residual": needs.adapter_residual, "what tokens are worth to a reward model": needs.reward}
    return " and ".join(name for name, needed in beyond.items() if needed)
