"""One GRPO run on a testbed task, through TRL's trainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, Qwen3ForCausalLM, TrainerCallback

from tokencredit.methods import Method
from tokencredit.testbed.evaluate import completion_text, evaluate
from tokencredit.testbed.tasks import Problem, Task, step_starts
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer


@dataclass(frozen=True)
class Budget:
    """What every method of a comparison gets alike.

    A step is one batch of rollouts, `prompts` x `group_size`, and `updates_per_step` optimizer updates on it.
    """

    steps: int = 50
    prompts: int = 16
    group_size: int = 8
    updates_per_step: int = 2
    learning_rate: float = 3e-4
    lora_learning_rate: float = 3e-3
    lora_rank: int = 8
    evaluate_every: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A finished run: the credit method, the policy, the seconds it trained, the tokens of prompts and completions."""

    method: str
    policy: torch.nn.Module
    seconds: float
    tokens: int


def train(
    checkpoint: Qwen3ForCausalLM,
    tokenizer: Any,
    task: Task,
    m: Method,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
    budget: Budget,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] = lambda row: None,
    reward_model: Any = None,
    lora: bool | None = None,
) -> Trained:
    """Train a copy of `checkpoint`; with a LoRA adapter where the method reads one.

    Args:
        held_out: evaluated on, greedily, every `budget.evaluate_every` steps; may be empty.
        folder: for TRL's own output.
        on_step: called with one row of metrics a step.
        reward_model: for a method that reads one.
        lora: train an adapter; by default where the method reads one.
    """
    adapted = m.needs.adapter if lora is None else lora
    args = _config(task, m, budget, folder, adapted)
    prompts = [training[i % len(training)] for i in range(max(len(training), budget.prompts))]
    dataset = Dataset.from_dict({"prompt": [p.prompt for p in prompts], "problem": list(range(len(prompts)))})

    recorder = _Recorder(tokenizer, task, held_out, budget, on_step)
    adapter = LoraConfig(r=budget.lora_rank, lora_alpha=2 * budget.lora_rank, target_modules="all-linear")
    # The adapter's random start comes from here, so a method's run does not depend on which ran before it.
    torch.manual_seed(budget.seed)
    trainer = CreditGRPOTrainer(
        copy.deepcopy(checkpoint),
        correctness(task, prompts, tokenizer),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[recorder],
        splitter=step_starts,
        reward_model=reward_model,
        peft_config=adapter if adapted else None,
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started - recorder.evaluation_seconds
    policy = trainer.accelerator.unwrap_model(trainer.model).eval()
    return Trained(trainer.credit_method.name, policy, seconds, recorder.tokens)


def correctness(task: Task, problems: Sequence[Problem], tokenizer: Any) -> Callable[..., list[float]]:
    """A reward function for TRL: 1 where the answer is right. The dataset's column `problem` says which one it is."""

    def correct(completion_ids: list[list[int]], problem: list[int], **_: Any) -> list[float]:
        texts = [completion_text(ids, tokenizer) for ids in completion_ids]
        return [float(task.verify(problems[i], text)) for i, text in zip(problem, texts, strict=True)]

    return correct


def _config(task: Task, m: Method, budget: Budget, folder: Path, adapted: bool) -> CreditGRPOConfig:
    rollouts = budget.prompts * budget.group_size
    if rollouts % budget.updates_per_step:
        raise ValueError(f"{rollouts} rollouts a step cannot be split into {budget.updates_per_step} equal updates")
    return CreditGRPOConfig(
        credit_method=m.name,
        credit_params=dict(vars(m)),
        output_dir=str(folder),
        max_steps=budget.steps * budget.updates_per_step,
        per_device_train_batch_size=rollouts // budget.updates_per_step,
        steps_per_generation=budget.updates_per_step,
        gradient_accumulation_steps=1,
        num_generations=budget.group_size,
        max_completion_length=task.max_new_tokens,
        learning_rate=budget.lora_learning_rate if adapted else budget.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.98,
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        temperature=1.0,
        top_k=0,
        logging_steps=budget.updates_per_step,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=budget.seed,
    )


class _Recorder(TrainerCallback):
    """Turns TRL's log into one row a step, with held-out accuracy every few steps."""

    def __init__(self, tokenizer: Any, task: Task, held_out: Sequence[Problem], budget: Budget, on_step: Any) -> None:
        self.evaluation_seconds = 0.0
        self.tokens = 0
        self._evaluate = lambda policy: evaluate(policy, tokenizer, task, held_out)
        self._budget, self._held_out = budget, held_out
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "reward" not in logs:
            return
        step = state.global_step // self._budget.updates_per_step
        self.tokens = int(logs["num_tokens"])
        row = {
            "step": step,
            "reward": float(logs["reward"]),
            "length": float(logs["completions/mean_length"]),
            "tokens": self.tokens,
            **{name: float(value) for name, value in logs.items() if name.startswith("credit/")},
        }
        if self._held_out and (step % self._budget.evaluate_every == 0 or step == self._budget.steps):
            started = time.perf_counter()
            row["accuracy"] = self._evaluate(kwargs["model"]).value
            self.evaluation_seconds += time.perf_counter() - started
        self._on_step(row)
