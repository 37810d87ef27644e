"""Credit inside TRL's GRPOTrainer: change two names, and choose a method.

    args = CreditGRPOConfig(credit_method="atpo", credit_params={"floor": 0.5}, ...)
    trainer = CreditGRPOTrainer(model, reward_funcs, args=args, train_dataset=...)

TRL generates, scores and computes the outcome advantages (B,); this replaces them by per-token advantages (B, T), which
its losses take as they are. Credit is read once a generation batch, from the policy that generated it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from tokencredit.assignment import assign
from tokencredit.credit import Credit
from tokencredit.methods import Method, method
from tokencredit.rollouts import Rollouts
from tokencredit.signals import check_adapter, reward_model_for
from tokencredit.steps import SPLITTERS, Splitter, mark_spans


@dataclass
class CreditGRPOConfig(GRPOConfig):
    """GRPOConfig with a credit method. Raises ValueError at once for an unknown method, parameter or splitter."""

    credit_method: str = field(
        default="uniform",
        metadata={"help": "How the advantage is spread over the tokens: a name from tokencredit.methods()."},
    )
    credit_params: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Parameters of the credit method, as a JSON object."}
    )
    credit_splitter: str = field(
        default="phrases", metadata={"help": "How reasoning splits into steps: phrases, newline or paragraph."}
    )
    credit_end_of_reasoning: str = field(
        default="</think>", metadata={"help": "What ends the reasoning in a completion; the answer follows it."}
    )
    credit_correct_reward: str | None = field(
        default=None,
        metadata={"help": "The reward function that says whether an answer is right; the weighted sum by default."},
    )
    credit_correct_threshold: float = field(
        default=1.0, metadata={"help": "An answer counts as right from this reward on (for methods that ask)."}
    )

    # Lets the parameters be given as JSON on a command line, as for TRL's own dict arguments.
    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit_params"]  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.credit_splitter not in SPLITTERS:
            raise ValueError(f"credit_splitter must be one of {', '.join(SPLITTERS)}; got {self.credit_splitter!r}")
        self.build_credit_method()

    def build_credit_method(self) -> Method:
        """The method that `credit_method` and `credit_params` name."""
        params = self.credit_params or {}
        if not isinstance(params, dict):
            raise ValueError(f"credit_params must be a JSON object; got {params!r}")
        return method(self.credit_method, **params)


class CreditGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose advantages are spread over the tokens by `args.credit_method`.

    `splitter` takes a function that splits reasoning into steps, in place of `args.credit_splitter`. `reward_model` is
    what P2T reads: a transformers classifier with the policy's tokenizer, a function from embeddings to rewards, or a
    `tokencredit.RewardModel`; it is moved to the policy's device.
    Logs `credit/<diagnostic>` (means over the generation batch, see `Credit.diagnostics`) and `credit/seconds`.
    """

    args: CreditGRPOConfig
    _tag_names = ["trl", "tokencredit"]  # noqa: RUF012
    _name = "tokencredit GRPO"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: CreditGRPOConfig | None = None,
        *rest: Any,
        splitter: Splitter | None = None,
        reward_model: Any = None,
        **kwargs: Any,
    ) -> None:
        args = CreditGRPOConfig() if args is None else args
        if not isinstance(args, CreditGRPOConfig):
            raise ValueError(
                f"args must be a CreditGRPOConfig, which names the credit method; got {type(args).__name__}"
            )
        self.credit_method = args.build_credit_method()
        self._splitter = splitter or args.credit_splitter
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        named = args.credit_correct_reward
        if named is not None and named not in self.reward_func_names:
            raise ValueError(
                f"credit_correct_reward {named!r} is none of the reward functions: {', '.join(self.reward_func_names)}"
            )
        check_adapter(self.accelerator.unwrap_model(self.model), self.credit_method.needs, self.ref_model)
        self._reward_model = reward_model_for(self.credit_method.needs, reward_model)
        if self._reward_model is not None:
            self._reward_model.to(self.accelerator.device)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._last_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._last_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        started = time.perf_counter()
        credit = self._assign(batch)
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        self._metrics[mode]["credit/seconds"].append(time.perf_counter() - started)
        for name, values in sorted(credit.diagnostics.items()):
            self._metrics[mode][f"credit/{name}"].append(self._mean(values))
        return {**batch, "advantages": credit.advantages.to(batch["advantages"].dtype)}

    def _assign(self, batch: dict[str, Any]) -> Credit:
        for key, what in (("pixel_values", "images"), ("tool_mask", "tools")):
            if key in batch:
                raise ValueError(f"credit is not defined for rollouts with {what} yet: train without them")
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        rollouts = mark_spans(
            Rollouts(*(batch[name] for name in names), **self._groups(len(batch["completion_ids"]))),
            self.processing_class,
            self._splitter,
            end_of_reasoning=self.args.credit_end_of_reasoning,
        )
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        # Outside autocast: a small residual would drown in the rounding of bfloat16.
        return assign(
            self.accelerator.unwrap_model(self.model),
            rollouts,
            self.credit_method,
            advantages=batch["advantages"],
            reward_model=self._reward_model,
            step=self.state.global_step,
            reference_model=reference,
            batch_size=self.args.per_device_train_batch_size,
        )

    def _groups(self, size: int) -> dict[str, Tensor]:
        """`group` and `correct` of this process's completions; nothing where a group is split over processes."""
        training = self.model.training  # type: ignore[union-attr]
        generations = (self.num_generations if training else self.num_generations_eval) or 1
        if size % generations and self.accelerator.num_processes > 1:
            return {}
        first = self.accelerator.process_index * size
        rewards = self._last_rewards[first : first + size]
        if self.args.credit_correct_reward is None:
            value = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        else:
            value = rewards[:, self.reward_func_names.index(self.args.credit_correct_reward)]
        group = torch.arange(size, device=rewards.device) // generations
        return {"group": group, "correct": value >= self.args.credit_correct_threshold}

    def _mean(self, values: Tensor) -> float:
        return self.accelerator.gather(values).mean().item()
