"""verl's synchronous trainer, whose advantages are spread over the tokens by `algorithm.credit.method`."""

from __future__ import annotations

import time
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
from tokencredit.trainers.verl.fields import ASKED, Asked, marked, shipped, unpack
from tokencredit.trainers.verl.layout import from_nested, rollouts_of, to_nested

_READ = ("prompts", "responses", "loss_mask", "response_mask", "advantages", "rm_scores", "uid", "extra_fields")


@register_trainer("tokencredit")
class CreditTrainer(PPOTrainerSync):
    """Asks verl's log-prob passes for signals, and rescales the advantages that verl has computed.

    Logs `credit/<diagnostic>` (means over completions, see `Credit.diagnostics`) and `credit/seconds`, what the trainer
    took for it.
    """

    def __init__(self, config: Any) -> None:
        self.credit_settings = CreditSettings.of(config)
        self.credit_method = self.credit_settings.build()
        check_run(config, self.credit_method.name, self.credit_method.needs)
        self._warned = False
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
        credit = self._assign(data, rollouts)
        # What verl has masked out since the rollout stays so.
        advantages = credit.advantages * from_nested(data["response_mask"], rollouts.completion_mask)
        nested = {"advantages": to_nested(advantages, rollouts.completion_mask)}
        fields = TensorDict(nested, batch_size=len(batch))
        batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        means = {name: values[real].mean().item() for name, values in credit.diagnostics.items()}
        metrics |= {f"credit/{name}": value for name, value in means.items()}
        metrics["credit/seconds"] = time.perf_counter() - started
        # A method that reads nothing is as unequal as it is meant to be; a fresh adapter changes nothing yet.
        if not self._warned and self.credit_method.needs and self.global_steps > 1:
            self._warned = warn_if_degenerate(self.credit_method.name, means)
        return batch

    @contextmanager
    def _asking(self, batch: Any, *, reference: bool) -> Iterator[None]:
        """The passes made over `batch` in the block show signals."""
        settings = self.credit_settings
        asked = Asked(self.credit_method, settings.splitter, settings.end_of_reasoning, reference, settings.kernels)
        batch.extra_info[ASKED] = asked
        try:
            yield
        finally:
            batch.extra_info.pop(ASKED, None)

    def _fetch(self, batch: Any) -> TensorDict:
        """The batch's fields that credit is computed from."""
        asked = shipped(self.credit_method.needs)
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
        if shipped(self.credit_method.needs):
            rollouts = marked(rollouts, data)
        else:
            end = settings.end_of_reasoning
            rollouts = find_spans(rollouts, self.tokenizer, settings.splitter, end_of_reasoning=end)
        group = torch.tensor(numbered(data["uid"]))
        return replace(rollouts, group=group, correct=self._correct(data) >= settings.correct_threshold)

    def _correct(self, data: TensorDict) -> Tensor:
        """(B,): what says whether an answer is right."""
        key = self.credit_settings.correct_reward
        if key is None:
            scores = data["rm_scores"]
            return (scores.to_padded_tensor(0.0) if scores.is_nested else scores).sum(1)
        given = [(extra or {}).get("reward_extra_info", {}) for extra in data["extra_fields"]]
        if missing := [info for info in given if key not in info]:
            raise ValueError(
                f"algorithm.credit.correct_reward={key} is nothing that the reward function gives: "
                f"{', '.join(missing[0]) or 'it gives a score alone'}"
            )
        return torch.tensor([float(info[key]) for info in given])

    def _assign(self, data: TensorDict, rollouts: Rollouts) -> Credit:
        mask = rollouts.completion_mask
        outcome = _outcome(from_nested(data["advantages"], mask), from_nested(data["response_mask"], mask).bool())
        return unpack(self.credit_method, rollouts, outcome, data, self.global_steps)


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
