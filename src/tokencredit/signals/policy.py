"""The policy as signals find it: which model it is, what its adapter can tell, and in which state it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tokencredit.signals.types import Needs


def causal_lm(policy: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself. Its LoRA layers stay active."""
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    if not hasattr(model, "get_decoder"):
        raise ValueError(
            f"cannot read signals from {type(policy).__name__}: pass a transformers causal LM, or a PEFT model around "
            "one, without a distributed wrapper (accelerator.unwrap_model(model) removes it)"
        )
    return model


def check_adapter(policy: nn.Module, needs: Needs, reference_model: nn.Module | None = None) -> None:
    """Raise a ValueError where `needs` compares with an adapter that is off, and the policy has none."""
    if hasattr(policy, "disable_adapter"):
        _check_adapter_state(policy, needs)
        return
    if needs.adapter_residual:
        raise ValueError(
            f"this method reads what a LoRA adapter changes, but {type(policy).__name__} has none: train with a PEFT "
            "adapter (peft_config=LoraConfig(...)), or choose another method"
        )
    if needs.reference_logprob and reference_model is None:
        raise ValueError(
            f"this method compares the policy with a reference, and {type(policy).__name__} has no adapter to switch "
            "off: pass reference_model=, or train with a PEFT adapter (peft_config=LoraConfig(...))"
        )


def _check_adapter_state(policy: Any, needs: Needs) -> None:
    # A policy with an adapter is peft's own, so peft is there; it is an extra of this package.
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(config.is_prompt_learning for config in policy.peft_config.values()):
        raise ValueError("a prompt-learning adapter cannot be read: its virtual tokens are not in the rollouts")
    if not needs.adapter:
        return
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer) and (module.disable_adapters or module.merged):
            state = "switched off" if module.disable_adapters else "merged into the weights"
            raise ValueError(f"this method compares the adapter on and off, but the adapter is {state}")


def adapter_is_off(policy: nn.Module) -> bool:
    """The policy is a PEFT model whose adapter is switched off at the moment."""
    if not hasattr(policy, "disable_adapter"):
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in policy.modules())


@contextmanager
def adapter_off(policy: Any) -> Iterator[None]:
    """PEFT makes an adapter trainable again when it switches it back on; a frozen one stays frozen here."""
    trainable = [(p, p.requires_grad) for p in policy.parameters()]
    try:
        with policy.disable_adapter():
            yield
    finally:
        for p, requires_grad in trainable:
            p.requires_grad_(requires_grad)


@contextmanager
def reading(policy: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's training flag is restored."""
    in_training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in in_training:
            module.training = True


@contextmanager
def frozen(model: nn.Module | None) -> Iterator[None]:
    """No parameter requires a gradient, so that a backward pass keeps nothing for theirs; then each does as before."""
    trainable = [p for p in model.parameters() if p.requires_grad] if model is not None else []
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
