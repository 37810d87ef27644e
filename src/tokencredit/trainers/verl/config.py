"""The credit method of a verl run: what stands under `algorithm.credit`, and whether the run can carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

from tokencredit.methods import Method, method
from tokencredit.signals import Needs, kernels_named
from tokencredit.steps import SPLITTERS

_ACTOR = "actor_rollout_ref.actor"
_MODEL = "actor_rollout_ref.model"


@dataclass(frozen=True)
class CreditSettings:
    """`algorithm.credit`. Raises ValueError at once for what cannot be.

    Attributes:
        method: how the advantage is spread over the tokens, a name from tokencredit.methods().
        params: parameters of the method.
        splitter: how reasoning splits into steps: phrases, newline or paragraph.
        end_of_reasoning: what ends the reasoning in a completion; the answer follows it.
        correct_reward: the key of the reward function's result that says whether an answer is right; the score by
            default.
        correct_threshold: from which value on it is right (for methods that ask).
        kernels: what computes attention statistics: torch; fused, on CPUs; or triton, on GPUs.
    """

    method: str = "uniform"
    params: Mapping[str, Any] = field(default_factory=dict)
    splitter: str = "phrases"
    end_of_reasoning: str = "</think>"
    correct_reward: str | None = None
    correct_threshold: float = 1.0
    kernels: str = "torch"

    def __post_init__(self) -> None:
        if not isinstance(self.params, Mapping):
            raise ValueError(f"algorithm.credit.params must be a mapping; got {self.params!r}")
        if self.splitter not in SPLITTERS:
            raise ValueError(f"algorithm.credit.splitter must be one of {', '.join(SPLITTERS)}; got {self.splitter!r}")
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


def check_run(config: Any, name: str, needs: Needs) -> None:
    """Raise a ValueError where a verl run cannot carry a method of these needs.

    Args:
        name: the method's.
    """
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
    if needs.policy:
        _check_passes(config, name, needs)
    if needs.adapter:
        _check_reference(config, needs)


def _check_passes(config: Any, name: str, needs: Needs) -> None:
    """The log-prob pass is made, by an engine of ours, and shows what the method reads."""
    strategy = OmegaConf.select(config, f"{_ACTOR}.strategy")
    if strategy not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"{name} reads the policy, which {_ACTOR}.strategy={strategy} does not show: use fsdp or fsdp2"
        )
    if OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        raise ValueError(
            f"{name} reads the policy in verl's log-prob pass, which algorithm.rollout_correction.bypass_mode=True "
            "leaves out: set it to False"
        )
    for key in ("ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size"):
        if (OmegaConf.select(config, f"{_ACTOR}.{key}") or 1) > 1:
            raise ValueError(f"{name} reads whole sequences, which {_ACTOR}.{key} splits over devices: set it to 1")
    temperature = OmegaConf.select(config, "actor_rollout_ref.rollout.temperature")
    if needs.logits and temperature != 1 and OmegaConf.select(config, f"{_MODEL}.use_fused_kernels"):
        raise ValueError(
            f"{name} reads log-probs at temperature 1, and {_MODEL}.use_fused_kernels=True gives those at "
            f"rollout.temperature={temperature} only: set either otherwise"
        )


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
