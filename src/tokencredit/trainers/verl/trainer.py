"""verl's synchronous trainer, whose advantages are spread over the tokens by `algorithm.credit.method`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from tokencredit.credit import Credit
from tokencredit.rollouts import Rollouts, numbered
from tokencredit.steps import find_spans
from tokencredit.trainers.degenerate import warn_if_degenerate
from tokencredit.trainers.verl.config import CreditSettings, check_run
from tokencredit.trainers.verl.correct import correctness
from tokencredit.trainers.verl.fields import ASKED, Asked, marked, shipped, unpack
from tokencredit.trainers.verl.layout import from_nested, rollouts_of, to_nested
from tokencredit.trainers.verl.log import carrying_loss, diagnostic_means, new_notices

_READ = ("prompts", "responses", "loss_mask", "response_mask", "advantages", "rm_scores", "uid", "extra_fields")


@register_trainer("tokencredit")
class CreditTrainer(PPOTrainerSync):
    """Asks verl's log-prob passes for signals, and rescales the advantages that verl has computed.

    Logs `credit/<diagnostic>` (means over the completions that carry loss, see `Credit.diagnostics`),
    `credit/with_loss`, their share, and `credit/seconds`, the time that the trainer took for it. A warning says once
    per reason which completions the method left uniform, and why.
    """

    def __init__(self, config: Any) -> None:
        self.credit_settings = CreditSettings.of(config)
        self.credit_method = self.credit_settings.build()
        check_run(config, self.credit_method, self.credit_settings)
        self._warned = False
        self._known_reasons: set[str] = set()
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        # verl tells its trainers apart by the name they are registered under, and takes unknown ones for asynchronous.
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        needs = self.credit_method.needs
        if not needs.policy:
            return super()._compute_old_log_prob(batch, metrics)
        with self._asking(batch, reference=False):
            batch = super()._compute_old_log_prob(batch, metrics)
        if needs.adapter and not self.use_reference_policy:
            batch = self._compute_ref_log_prob(batch, metrics)
        return batch

    def _compute_ref_log_prob(self, batch: Any, metrics: dict) -> Any:
        if not self.credit_method.needs.adapter:
            return super()._compute_ref_log_prob(batch, metrics)
        with self._asking(batch, reference=True):
            return super()._compute_ref_log_prob(batch, metrics)

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        started = time.perf_counter()
        data = self._fetch(batch)
        real = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        rollouts = self._rollouts(data, real)
        # What verl has masked out since the rollout stays so.
        counted = from_nested(data["response_mask"], rollouts.completion_mask).bool()
        outcome = _outcome(from_nested(data["advantages"], rollouts.completion_mask), counted)
        credit = unpack(self.credit_method, rollouts, outcome, data, self.global_steps)
        advantages = credit.advantages * counted
        nested = {"advantages": to_nested(advantages, rollouts.completion_mask)}
        fields = TensorDict(nested, batch_size=len(batch))
        batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        carrying = carrying_loss(credit, outcome, counted)
        means = diagnostic_means(credit, carrying, real)
        metrics |= {f"credit/{name}": value for name, value in means.items()}
        metrics["credit/seconds"] = time.perf_counter() - started
        self._warn(credit, carrying & real, means)
        return batch

    def _warn(self, credit: Credit, rows: Tensor, means: dict[str, float]) -> None:
        """Warn, once per reason, of completions that the method left uniform, and once of credit that has degenerated.

        Args:
            rows: (B,) bool, the completions that carry loss. means: of their diagnostics.
        """
        needs, first = self.credit_method.needs, self.global_steps == 1
        # Before the first update a new adapter changes nothing, which every run with one would be warned of.
        if not rows.any() or (first and needs.adapter):
            return
        for sentence in new_notices(self.credit_method, credit, rows, self._known_reasons):
            warnings.warn(sentence, UserWarning, stacklevel=2)
        # A method that reads nothing is as unequal as it is meant to be.
        if not self._warned and needs and not first:
            self._warned = warn_if_degenerate(self.credit_method.name, means)

    @contextmanager
    def _asking(self, batch: Any, *, reference: bool) -> Iterator[None]:
        """The passes made over `batch` in the block show signals."""
        settings = self.credit_settings
        asked = Asked(
            method=self.credit_method,
            splitter=settings.splitter,
            end_of_reasoning=settings.end_of_reasoning,
            answer=settings.answer,
            kernels=settings.kernels,
            reference=reference,
            step=self.global_steps,
        )
        batch.extra_info[ASKED] = asked
        try:
            yield
        finally:
            batch.extra_info.pop(ASKED, None)

    def _fetch(self, batch: Any) -> TensorDict:
        """The batch's fields that credit is computed from."""
        asked = shipped(self.credit_method)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[*_READ, *asked])
        if missing := [name for name in asked if name not in data]:
            raise ValueError(
                f"the workers have not shipped what {self.credit_method.name} reads ({', '.join(missing)}): "
                "run `tokencredit doctor` on each node, which says whether verl can load the plugin there"
            )
        return data

    def _rollouts(self, data: TensorDict, real: Tensor) -> Rollouts:
        """The batch's completions, marked, in the batch's order; `real` where verl has not made them up as padding."""
        settings = self.credit_settings
        rollouts = rollouts_of(data["prompts"], data["responses"])
        generated = from_nested(data["loss_mask"], rollouts.completion_mask).bool()
        if (rollouts.completion_mask & ~generated)[real].any():
            raise ValueError("credit is not defined for rollouts with tools yet: train without them")
        if shipped(self.credit_method):
            rollouts = marked(rollouts, data)
        else:
            rollouts = find_spans(
                rollouts,
                self.tokenizer,
                settings.splitter,
                end_of_reasoning=settings.end_of_reasoning,
                answer=settings.answer,
            )
        rollouts = replace(rollouts, group=torch.tensor(numbered(data["uid"])))
        if not self.credit_method.needs.group:
            return rollouts
        scores = data["rm_scores"]
        scores = (scores.to_padded_tensor(0.0) if scores.is_nested else scores).sum(1)
        values = correctness(self.credit_method.name, scores, data["extra_fields"], settings.correct_reward)
        return replace(rollouts, correct=values >= settings.correct_threshold)


def _outcome(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B,): the advantage that all tokens of a completion have.

    Args:
        advantages: (B, T). mask: (B, T) bool, the tokens that count.

    Raises:
        ValueError: they differ within a completion.
    """
    first = advantages.gather(1, mask.int().argmax(1, keepdim=True))
    first = torch.where(mask.any(1, keepdim=True), first, 0.0)
    if ((advantages != first) & mask).any():
        raise ValueError(
            "verl's advantages differ between the tokens of a completion; credit spreads one advantage a completion: "
            "set algorithm.adv_estimator to one that gives such, as grpo or rloo do"
        )
    return first[:, 0]
