"""A small training run in a process of its own, for tests of several processes and of resuming. Not a test."""

from __future__ import annotations

import argparse
import json
import os
import signal
import warnings
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tiny_run import DATASET, arguments, policy_that_answers, reward
from transformers import TrainerCallback

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

NAMES = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def every_character(text):
    """A splitter that finds several steps in random text."""
    return list(range(len(text)))


class KilledAt(TrainerCallback):
    """Dies as by kill -9, in the midst of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Checking(CreditGRPOTrainer):
    """Compares the credit of the first generation batch with that of one process on the same completions."""

    compared = False

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        given = self._loss_inputs
        if given is not None and not self.compared and self.state.global_step == 0:
            assert (given["advantages"].std(1) > 1e-3).any()
            self._compare(given, given["advantages"], self.spread)
        return found

    def _compute_loss(self, model, inputs):
        self.spread = inputs["advantages"].clone()
        return super()._compute_loss(model, inputs)

    def _compare(self, batch, found, outcome):
        rollouts = tc.mark_spans(tc.Rollouts(*(batch[name] for name in NAMES)), build_tokenizer(), self._splitter)
        if self.credit_method.needs.group:
            rollouts = self._with_groups(rollouts)
        alone = tc.assign(policy_that_answers(), rollouts, self.credit_method, advantages=outcome)
        torch.testing.assert_close(found, alone.advantages, atol=1e-5, rtol=1e-4)
        self.compared = True

    def _with_groups(self, rollouts):
        """One group of all processes' completions, whose fraction of correct ones differs from that of this process."""
        correct = self._last_rewards[:, 0] >= self.args.credit_correct_threshold
        first = self.accelerator.process_index * len(rollouts)
        own = correct[first : first + len(rollouts)]
        assert len(correct) == self.num_generations > len(rollouts)
        assert own.float().mean() != correct.float().mean()
        return replace(rollouts, correct=own, group_correct=correct.float().mean().expand(len(rollouts)))

    def _assign(self, batch):
        credit = super()._assign(batch)
        self.steps = [*getattr(self, "steps", []), self.state.global_step]
        if not self.compared and self.state.global_step == 0:
            assert self.accelerator.gather((credit.weights.std(1) > 1e-3).float()).any()
            self._compare(batch, credit.advantages, self._outcome(batch))
        return credit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--credit", type=json.loads, default={"credit_method": "atpo"})
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = arguments(asked.out, per_device_train_batch_size=4, max_steps=6, save_strategy="steps", save_steps=2)
    given |= {"num_generations": asked.group}
    args = CreditGRPOConfig(**given, **asked.credit)
    torch.manual_seed(0)
    trainer = Checking(
        policy_that_answers(),
        reward,
        args=args,
        train_dataset=DATASET,
        processing_class=build_tokenizer(),
        splitter=every_character if "attnpo" in asked.credit.values() else None,
        callbacks=[] if asked.kill_at is None else [KilledAt(asked.kill_at)],
    )
    assert trainer.accelerator.num_processes == asked.processes, trainer.accelerator.num_processes
    trainer.train(resume_from_checkpoint=asked.resume or None)
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    assert trainer.compared or asked.resume
    everywhere = trainer.accelerator.gather(weights[None])
    assert len(everywhere) == asked.processes
    assert all(torch.equal(row, everywhere[0]) for row in everywhere)
    if trainer.accelerator.is_main_process:
        rows = [row for row in trainer.state.log_history if "credit/gini" in row]
        result = {
            "weights": weights.double().tolist(),
            "gini": [row["credit/gini"] for row in rows],
            "with_loss": [row["credit/with_loss"] for row in rows],
            "steps": getattr(trainer, "steps", []),
            "completions": list(trainer._logs["completion"]),
            "table": {name: list(values) for name, values in trainer._logs["extra"].items()},
            "advantages": list(trainer._logs["advantages"]),
        }
        with open(os.path.join(asked.out, "result.json"), "w") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
