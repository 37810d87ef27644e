"""The credit method of a verl run: what stands under `algorithm.credit`, and whether the run can carry it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

from tokencredit.methods import Method, method
from tokencredit.methods.base import check_choice, check_number
from tokencredit.signals import Needs, kernels_named
from tokencredit.steps import SPLITTERS, check_answer
from tokencredit.trainers.verl.correct import check_correct
from tokencredit.trainers.verl.fields import check_shippable

_ACTOR = "actor_rollout_ref.actor"
_REFERENCE = "actor_rollout_ref.ref"
_MODEL = "actor_rollout_ref.model"


@dataclass(frozen=True)
class CreditSettings:
    """`algorithm.credit`. Raises ValueError at once for what cannot be.

    Attributes:
        method: how the advantage is spread over the tokens, a name from tokencredit.methods().
        params: parameters of the method.
        splitter: how reasoning splits into steps: phrases, sentence, newline or paragraph.
        end_of_reasoning: what ends the reasoning in a completion; the answer follows it.
        answer: where the answer starts: auto, end_of_reasoning, or a regular expression (see `mark_spans`).
        correct_reward: the key of the reward function's result that says whether an answer is right; the score by
            default, where the function gives nothing else.
        correct_threshold: from which value on it is right (for methods that ask).
        kernels: what computes attention statistics: torch; fused, on CPUs; or triton, on GPUs.
    """

    method: str = "uniform"
    params: Mapping[str, Any] = field(default_factory=dict)
    splitter: str = "phrases"
    end_of_reasoning: str = "</think>"
    answer: str = "auto"
    correct_reward: str | None = None
    correct_threshold: float = 1.0
    kernels: str = "torch"

    def __post_init__(self) -> None:
        if not isinstance(self.params, Mapping) or not all(isinstance(name, str) for name in self.params):
            raise ValueError(f"algorithm.credit.params must be a mapping from names to values; got {self.params!r}")
        check_choice("algorithm.credit.splitter", self.splitter, tuple(SPLITTERS))
        texts = {"end_of_reasoning": self.end_of_reasoning}
        texts |= {} if self.correct_reward is None else {"correct_reward": self.correct_reward}
        for name, value in texts.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"algorithm.credit.{name} must be a text that is not empty; got {value!r}")
        try:
            check_answer(self.answer)
        except ValueError as error:
            raise ValueError(f"algorithm.credit.{error}") from None
        check_number("algorithm.credit.correct_threshold", self.correct_threshold, -float("inf"))
        kernels_named(self.kernels)
        self.build()

    @classmethod
    def of(cls, config: Any) -> CreditSettings:
        """The settings of a verl configuration."""
        node = OmegaConf.select(config, "algorithm.credit")
        if node is None:
            raise ValueError("name a credit method: +algorithm.credit.method=rhythm, or any of tokencredit.methods()")
        if not OmegaConf.is_dict(node):
            raise ValueError(f"algorithm.credit must be a mapping, with a method; got {node!r}")
        given: Any = OmegaConf.to_container(node, resolve=True)
        valid = [f.name for f in fields(cls)]
        if unknown := sorted(map(str, given.keys() - set(valid))):
            raise ValueError(
                f"algorithm.credit has no {', '.join(map(repr, unknown))}. Valid: {', '.join(valid)}; parameters of "
                "the method stand under algorithm.credit.params"
            )
        return cls(**given)

    def build(self) -> Method:
        """The method that `method` and `params` name."""
        return method(self.method, **self.params)


def has_adapter(config: Any) -> bool:
    """The policy is trained by a LoRA adapter, whose base is then verl's reference."""
    chosen = (OmegaConf.select(config, f"{_MODEL}.{key}") for key in ("lora_rank", "lora.rank"))
    return any(rank or 0 for rank in chosen) or OmegaConf.select(config, f"{_MODEL}.lora_adapter_path") is not None


def check_run(config: Any, method: Method, settings: CreditSettings) -> None:
    """Raise a ValueError where a verl run cannot carry a method."""
    name, needs = method.name, method.needs
    if needs.reward:
        raise ValueError(
            f"{name} reads a reward model's gradients, which no worker of verl's computes: use it with "
            "tokencredit.trainers.trl, or choose another method"
        )
    estimator = OmegaConf.select(config, "algorithm.adv_estimator")
    if estimator == "gae":
        raise ValueError(
            "algorithm.adv_estimator=gae has advantages per token already: credit spreads one advantage a completion, "
            "such as that of grpo or rloo"
        )
    _check_loss(config)
    if needs.group:
        check_correct(config, name, settings.correct_reward)
    check_shippable(method)
    if needs.policy:
        _check_passes(config, name, needs)
    if needs.adapter:
        _check_reference(config, needs)


def _check_loss(config: Any) -> None:
    """The loss takes an advantage for each token."""
    key = f"{_ACTOR}.policy_loss.loss_mode"
    mode = OmegaConf.select(config, key)
    if mode == "geo_mean":
        raise ValueError(
            f"{key}={mode} takes one advantage per completion, the mean over its tokens, so that it does not matter "
            "which tokens get credit: choose another loss, such as vanilla or gspo"
        )


def _check_passes(config: Any, name: str, needs: Needs) -> None:
    """The log-prob passes are made, by an engine of ours, and show what the method reads."""
    _check_engine(config, name, _ACTOR)
    if needs.adapter and not has_adapter(config):
        _check_engine(config, name, _REFERENCE)
    if OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        raise ValueError(
            f"{name} reads the policy in verl's log-prob pass, which algorithm.rollout_correction.bypass_mode=True "
            "leaves out: set it to False"
        )
    temperature = OmegaConf.select(config, "actor_rollout_ref.rollout.temperature")
    if needs.logits and temperature != 1 and OmegaConf.select(config, f"{_MODEL}.use_fused_kernels"):
        raise ValueError(
            f"{name} reads log-probs at temperature 1, and {_MODEL}.use_fused_kernels=True gives those at "
            f"rollout.temperature={temperature} only: set either otherwise"
        )


def _check_engine(config: Any, name: str, role: str) -> None:
    """A worker of that role has an engine of ours, and sees whole sequences and all heads of all layers.

    Args:
        role: the path of its configuration.
    """
    strategy = OmegaConf.select(config, f"{role}.strategy")
    if strategy not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"{name} reads the model in its log-prob pass, which {role}.strategy={strategy} does not show: use fsdp or "
            "fsdp2"
        )
    for key, value in _leaves(OmegaConf.select(config, role), role):
        if _SPLITTING.search(key) and isinstance(value, int) and value > 1:
            raise ValueError(
                f"{name} reads whole sequences, all heads and all layers on each device, and {key}={value} splits them "
                "over devices: set it to 1"
            )


_SPLITTING = re.compile(r"(tensor|context|sequence|ulysses|pipeline)(_model)?_parallel_size$")
"""The settings by which verl's engines split sequences, heads or layers over devices. FSDP splits none of them."""


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The path of each value of a configuration, and the value."""
    for key in node:
        child = OmegaConf.select(node, str(key))
        if OmegaConf.is_dict(child):
            yield from _leaves(child, f"{path}.{key}")
        else:
            yield f"{path}.{key}", child


def _check_reference(config: Any, needs: Needs) -> None:
    if has_adapter(config):
        return
    if needs.adapter_residual:
        raise ValueError(
            "this method reads what a LoRA adapter changes, but the policy has none: train with an adapter "
            f"({_MODEL}.lora_rank=32), or choose another method"
        )
    if not (
        OmegaConf.select(config, f"{_ACTOR}.use_kl_loss") or OmegaConf.select(config, "algorithm.use_kl_in_reward")
    ):
        raise ValueError(
            "this method compares the policy with a reference, and the policy has no adapter to switch off: set "
            f"{_ACTOR}.use_kl_loss=True, so that verl keeps a reference model, or train with an adapter "
            f"({_MODEL}.lora_rank=32)"
        )
