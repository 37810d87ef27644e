"""Credit in TRL's GRPOTrainer.

    args = CreditGRPOConfig(credit_method="atpo", credit_params={"floor": 0.5}, ...)
    trainer = CreditGRPOTrainer(model, reward_funcs, args=args, train_dataset=...)

TRL generates, scores and computes the outcome advantages (B,); this replaces them by per-token advantages (B, T), which
its losses take as they are. With `credit_timing="rollout"` credit is that of the policy that generated a batch; with
"loss" that of the policy as it is at each update. Signals are read in a pass that TRL makes, where one shows them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from tokencredit.credit import Credit
from tokencredit.diagnostics import carrying_loss
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Signals, check_adapter, collect, observe, reward_model_for
from tokencredit.steps import Splitter, find_spans
from tokencredit.trainers.degenerate import warn_if_degenerate
from tokencredit.trainers.trl_card import add_credit_section
from tokencredit.trainers.trl_checks import (
    CorrectnessWatch,
    TruncationWatch,
    check_correct_reward,
    check_heads,
    check_parallelism,
    check_prompts,
    check_reference,
    check_rewards,
    checked_reward,
    dropout,
    refuse_bases,
)
from tokencredit.trainers.trl_config import CreditGRPOConfig
from tokencredit.trainers.trl_log import CreditLog, advantage_columns
from tokencredit.trainers.trl_passes import ScoringPasses
from tokencredit.trainers.trl_rewards import BatchRewards

__all__ = ["CreditGRPOConfig", "CreditGRPOTrainer"]

_GRID = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
_MARKS = ("answer_start", "step_index")


class CreditGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose advantages are spread over the tokens by `args.credit_method`.

    `splitter` takes a function that splits reasoning into steps, in place of `args.credit_splitter`. `reward_model` is
    what P2T reads: a transformers classifier with the policy's tokenizer, a function from embeddings to rewards, or a
    `tokencredit.RewardModel`; it is moved to the policy's device. `data_name` is what the model card calls the data.

    Logs `credit/<diagnostic>` (see `Credit.diagnostics`), means over the completions that carry loss;
    `credit/with_loss`, their share; `credit/seconds`, what credit took, and `credit/share_of_step`, its share of the
    whole step. With `log_completions` the table shows the outcome advantage that was spread, the mean, least and
    greatest advantage of a token, and each completion's concentration.

    Attributes:
        credit_logs: what has been collected for logging in "train" and "eval", see `CreditLog`.
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
        data_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_bases(type(self))
        args = CreditGRPOConfig() if args is None else args
        if not isinstance(args, CreditGRPOConfig):
            raise ValueError(
                f"args must be a CreditGRPOConfig, which names the credit method; got {type(args).__name__}"
            )
        self.credit_method = args.build_credit_method()
        self._splitter = splitter or args.credit_splitter
        self._loss_inputs: dict[str, Any] | None = None
        self._scoring: ScoringPasses | None = None
        self._warned: set[str] = set()
        self._data_name = data_name
        self._watch_truncation = TruncationWatch(args.max_completion_length) if args.credit_stop_if_truncated else None
        self._watch_correct = CorrectnessWatch(self.credit_method.name, args.credit_correct_threshold)
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        functions = None if reward_funcs is None else [checked_reward(function) for function in given]
        super().__init__(model, functions, args, *rest, **kwargs)
        self.credit_logs = {mode: CreditLog(self.accelerator.gather) for mode in ("train", "eval")}
        if self.train_dataset is not None:
            template = {"chat_template": self.chat_template} | dict(self.chat_template_kwargs)  # type: ignore[arg-type]
            check_prompts(self.train_dataset, self.processing_class, **template)
        check_correct_reward(args.credit_correct_reward, self.reward_func_names, self.credit_method)
        check_parallelism(self.accelerator.parallelism_config, self.credit_method)
        check_adapter(self._policy, self.credit_method.needs, self.ref_model)
        check_heads(self._policy, self.credit_method.needs)
        check_reference(self._policy, args, self.credit_method.needs)
        if args.credit_timing == "loss" and (name := dropout(self._policy)):
            raise ValueError(
                f'credit_timing="loss" reads the training pass, in which dropout is active ({name}): set it to 0 '
                "(lora_dropout=0.0, attention_dropout=0.0; disable_dropout=True for modules of dropout), or use "
                'credit_timing="rollout"'
            )
        self._in_loss = args.credit_timing == "loss" or self._loss_shows_generator()
        self._reward_model = reward_model_for(self.credit_method.needs, reward_model)
        if self._reward_model is not None:
            self._reward_model.to(self.accelerator.device)

    @property
    def _policy(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._last_rewards = super()._calculate_rewards(*args, **kwargs)
        # Where TRL makes the advantages, it leaves completions without any reward out, and warns.
        check_rewards(self._last_rewards, self.reward_func_names, none_at_all=self.args.credit_outcome == "trainer")
        return self._last_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._scoring = self._scoring_passes()
        try:
            batch = super()._generate_and_score_completions(inputs)
            if self._mode == "train":
                self._watch()
            return self._with_credit(batch)
        finally:
            self._scoring = None

    def _watch(self) -> None:
        """Look at a generation batch for what would make the run useless."""
        if self._watch_truncation is not None:
            truncated = self._metrics["train"]["completions/clipped_ratio"][-1]
            self._watch_truncation(truncated, self._weighted_rewards())
        correct = self._correct()
        if correct is not None and self.accelerator.is_main_process:
            self._watch_correct(correct)

    def _loss_shows_generator(self) -> bool:
        """In its first pass over a batch the loss still sees the policy that generated, and no batch is used again."""
        args = self.args
        updated = args.gradient_accumulation_steps % ((args.steps_per_generation or 1) * self.num_iterations) != 0
        scored = self.use_vllm and self.vllm_importance_sampling_correction
        # The table of completions is made before the loss, and random weights are drawn once.
        early = args.log_completions or not self.credit_method.needs.policy
        return not (updated or scored or early or args.why_not_in_loss() or dropout(self._policy))

    def _scoring_passes(self) -> ScoringPasses | None:
        """To read the passes that TRL makes over the policy, where they show what a pass of our own would."""
        args, needs = self.args, self.credit_method.needs
        tempered = args.temperature != 1.0 and (needs.logits or needs.reference_logprob)
        # A policy equal to its reference must give equal log-probs, so both come out of one kind of pass.
        alone = needs.reference_logprob and args.beta == 0.0
        if self._in_loss or not needs.policy or tempered or alone or dropout(self._policy):
            return None
        return ScoringPasses(
            super()._get_per_token_logps_and_entropies,
            self._policy,
            needs,
            self._mark,
            # A small residual would drown in the rounding of bfloat16.
            share_states=self.accelerator.mixed_precision == "no",
            kernels=self.args.credit_kernels,
        )

    def _with_credit(self, batch: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        kind = batch["advantages"].dtype
        self._show_outcome_in_table()
        if self._in_loss:
            rollouts = self._rollouts(batch)
            marks = {f"credit_{name}": getattr(rollouts, name) for name in _MARKS}
            return {**batch, **marks, "advantages": self._outcome(batch).to(kind)}
        credit, outcome, mask = self._assign(batch), self._outcome(batch), batch["completion_mask"].bool()
        self._record(credit, outcome, mask, time.perf_counter() - started)
        self._show_in_table(credit, mask)
        return {**batch, "advantages": self._for_loss(credit, outcome).to(kind)}

    def _for_loss(self, credit: Credit, outcome: Tensor) -> Tensor:
        """(B, T), or (B,) for a loss that has one importance weight a sequence, where credit is uniform."""
        return outcome if self.args.importance_sampling_level == "sequence" else credit.advantages

    def _show_outcome_in_table(self) -> None:
        """Replace TRL's own advantages, which it has put into its table of completions, where others are spread."""
        if self.args.credit_outcome != "trainer":
            advantages = self._rewards.advantages(self.args.credit_outcome).tolist()
            shown: Any = self._logs["advantages"]
            for _ in range(min(len(shown), len(advantages))):
                shown.pop()
            shown.extend(advantages)

    def _show_in_table(self, credit: Credit, mask: Tensor) -> None:
        """Add columns to TRL's table of completions, whose own column is the outcome advantage that is spread."""
        columns = {name: credit.diagnostics[name] for name in ("gini", "effective_ratio")}
        columns |= advantage_columns(credit, mask)
        gathered = self.accelerator.gather(torch.stack([*columns.values()], 1))
        for name, values in zip(columns, gathered.unbind(1), strict=True):
            self._logs["extra"][f"credit_{name}"].extend(values.tolist())  # type: ignore[index]

    def _assign(self, batch: dict[str, Any]) -> Credit:
        rollouts, needs = self._rollouts(batch), self.credit_method.needs
        known = Signals() if self._scoring is None else self._scoring.signals(batch.get("ref_per_token_logps"))
        # Outside autocast, and without dropout.
        read = collect(
            self._policy,
            rollouts,
            needs.beyond(known),
            self._reward_model,
            reference_model=None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model),
            batch_size=self.args.per_device_train_batch_size,
            kernels=self.args.credit_kernels,
        )
        return self.credit_method(rollouts, self._outcome(batch), known | read, step=self.state.global_step)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self._in_loss:
            return super()._compute_loss(model, inputs)
        # A copy: TRL reads its buffered batch again where num_iterations > 1.
        self._loss_inputs = dict(inputs)
        try:
            return super()._compute_loss(model, self._loss_inputs)
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._loss_inputs
        if self._scoring is not None and args[0] is self.model:
            return self._scoring.run(*args, **kwargs)
        if inputs is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        marks = {name: inputs[f"credit_{name}"] for name in _MARKS}
        rollouts, needs = Rollouts(*(inputs[name] for name in _GRID), **marks), self.credit_method.needs
        with observe(self._policy, rollouts, needs, kernels=self.args.credit_kernels) as read:
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            started = time.perf_counter()
            logprob, entropy, *_ = found
            signals = read(
                logprob=logprob if needs.logits else None,
                entropy=entropy if needs.logits else None,
                reference_logprob=inputs["ref_per_token_logps"] if needs.reference_logprob else None,
            )
        outcome = inputs["advantages"]
        credit = self.credit_method(rollouts, outcome, signals, step=self.state.global_step)
        inputs["advantages"] = self._for_loss(credit, outcome).to(outcome.dtype)
        self._record(credit, outcome, rollouts.completion_mask, time.perf_counter() - started)
        return found

    def _rollouts(self, batch: dict[str, Any]) -> Rollouts:
        for key, what in (("pixel_values", "images"), ("tool_mask", "tools")):
            if key in batch:
                raise ValueError(f"credit is not defined for rollouts with {what} yet: train without them")
        marked = None if self._scoring is None else self._scoring.rollouts
        rollouts = self._mark(Rollouts(*(batch[name] for name in _GRID))) if marked is None else marked
        return replace(rollouts, **self._groups(len(batch["completion_ids"])))

    def _mark(self, rollouts: Rollouts) -> Rollouts:
        return find_spans(
            rollouts,
            self.processing_class,
            self._splitter,
            end_of_reasoning=self.args.credit_end_of_reasoning,
            answer=self.args.credit_answer,
        )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"  # type: ignore[union-attr]

    @property
    def _rewards(self) -> BatchRewards:
        """Of the completions of all processes."""
        generations = self.num_generations if self._mode == "train" else self.num_generations_eval
        return BatchRewards(self._last_rewards, self.reward_weights, self.reward_func_names, generations or 1)

    def _weighted_rewards(self) -> Tensor:
        """The weighted sum of the rewards of all processes' completions."""
        return self._rewards.weighted()

    def _own(self, values: Tensor, size: int) -> Tensor:
        """This process's part of what all processes hold."""
        first = self.accelerator.process_index * size
        return values[first : first + size]

    def _outcome(self, batch: dict[str, Any]) -> Tensor:
        """(B,): the outcome advantages, by groups that may lie on several processes."""
        if self.args.credit_outcome == "trainer":
            return batch["advantages"]
        return self._own(self._rewards.advantages(self.args.credit_outcome), len(batch["advantages"]))

    def _correct(self) -> Tensor | None:
        """Which completions of all processes are correct, for a method that reads it."""
        if not self.credit_method.needs.group:
            return None
        return self._rewards.correct(self.args.credit_correct_reward, self.args.credit_correct_threshold)

    def _groups(self, size: int) -> dict[str, Tensor]:
        """`group` of this process's completions, and `correct` and `group_correct` for a method that reads them."""
        rewards, correct = self._rewards, self._correct()
        known = {"group": rewards.group}
        if correct is not None:
            known |= {"correct": correct, "group_correct": rewards.group_means(correct)}
        return {name: self._own(values, size) for name, values in known.items()}

    def _record(self, credit: Credit, outcome: Tensor, mask: Tensor, seconds: float) -> None:
        carrying = carrying_loss(credit.advantages, outcome, mask)
        self.credit_logs[self._mode].add(credit, carrying, self.state.global_step)
        self._metrics[self._mode]["credit/seconds"].append(seconds)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        log, step = self.credit_logs["train"], self.state.global_step
        # At the end of an optimizer step that has assigned credit, in one micro-batch or several.
        assigned = self.accelerator.sync_gradients and log.step == step
        if assigned and self.accelerator.is_main_process and (means := log.step_means()):
            warn_if_degenerate(self.credit_method, means, self._warned, updates=step)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            card = Path(str(self.args.output_dir), "README.md")
            add_credit_section(card, self.args, self.reward_func_names, self._data_name or "not named")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics[self._mode]
        for name, value in self.credit_logs[self._mode].means().items():
            metrics[f"credit/{name}"] = [value]
        took, steps = metrics.get("credit/seconds"), metrics.get("step_time")
        if took and steps:
            metrics["credit/share_of_step"] = [sum(took) / sum(steps)]
        super().log(logs, start_time)
