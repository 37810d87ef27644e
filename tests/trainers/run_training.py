"""A small training run in a process of its own, for tests of several processes and of resuming. Not a test."""

from __future__ import annotations

import argparse
import json
import os
import signal
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tiny_run import DATASET, arguments, policy_that_answers, reward
from transformers import TrainerCallback

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

NAMES = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


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
        rollouts = tc.mark_spans(tc.Rollouts(*(batch[name] for name in NAMES)), build_tokenizer())
        alone = tc.assign(policy_that_answers(), rollouts, self.credit_method, advantages=outcome)
        torch.testing.assert_close(found, alone.advantages, atol=1e-5, rtol=1e-4)
        self.compared = True

    def _assign(self, batch):
        credit = super()._assign(batch)
        self.steps = [*getattr(self, "steps", []), self.state.global_step]
        if not self.compared and self.state.global_step == 0:
            assert (credit.weights.std(1) > 1e-3).any()
            self._compare(batch, credit.advantages, batch["advantages"])
        return credit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--credit", type=json.loads, default={"credit_method": "atpo"})
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = arguments(asked.out, per_device_train_batch_size=4, max_steps=6, save_strategy="steps", save_steps=2)
    args = CreditGRPOConfig(**given, **asked.credit)
    torch.manual_seed(0)
    trainer = Checking(
        policy_that_answers(),
        reward,
        args=args,
        train_dataset=DATASET,
        processing_class=build_tokenizer(),
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
            "steps": getattr(trainer, "steps", []),
        }
        with open(os.path.join(asked.out, "result.json"), "w") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
