"""What credit costs in a GRPO step on the quickstart's policy.

    python benchmarks/training.py [--steps 12] [--methods atpo rhythm entropy arca]

`rollout`: credit's share of the whole step (generation, rewards, losses, update), as the trainer logs it. `loss`: the
loss with credit read in its own pass, forward and backward, over the same without credit, less one; in turns, on the
same batches. Medians, with the least and the greatest. `memory`: peak of a training process of its own over that with
uniform credit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tokencredit.cli.terminal import quiet_libraries
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import step_starts, task
from tokencredit.testbed.training import correctness
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

THREADS, ROLLOUTS = 2, 128


def trainer_for(method: str, timing: str, steps: int, folder: str) -> CreditGRPOTrainer:
    gather, tokenizer = task("gather"), build_tokenizer()
    policy, _ = warmed_up_policy(gather, WarmUp())
    problems = generate_problems(gather, 400, held_out=False, seed=0)
    args = CreditGRPOConfig(
        credit_method=method,
        credit_timing=timing,
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=ROLLOUTS,
        gradient_accumulation_steps=1,
        num_generations=8,
        max_completion_length=gather.max_new_tokens,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
    )
    adapter = {"peft_config": LoraConfig(r=8, target_modules="all-linear")} if method in ("arca", "divergence") else {}
    return CreditGRPOTrainer(
        policy,
        correctness(gather, problems, tokenizer),
        args=args,
        train_dataset=Dataset.from_dict(
            {"prompt": [p.prompt for p in problems], "problem": list(range(len(problems)))}
        ),
        processing_class=tokenizer,
        splitter=step_starts,
        **adapter,
    )


def shares_of_step(method: str, steps: int, folder: str) -> list[float]:
    trainer = trainer_for(method, "rollout", steps, folder)
    trainer.train()
    found = [row["credit/share_of_step"] for row in trainer.state.log_history if "credit/share_of_step" in row]
    return found[1:]  # the first step warms up


def loss_overheads(method: str, rounds: int, folder: str) -> list[float]:
    uniform, credited = (trainer_for(name, "loss", 1, folder) for name in ("uniform", method))
    uniform.train()
    credited.train()
    batch = credited._buffered_inputs[0]

    def seconds(trainer: CreditGRPOTrainer) -> float:
        trainer.model.train()
        started = time.perf_counter()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        took = time.perf_counter() - started
        trainer.model.zero_grad()
        return took

    seconds(uniform), seconds(credited)
    return [seconds(credited) / seconds(uniform) - 1 for _ in range(rounds)]


def peak_memory(method: str, timing: str) -> float:
    """MiB of a process that trains three steps."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # freed blocks go back at once: the peak is of what is in use
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (method, timing))


def _peak_memory(method: str, timing: str) -> float:
    torch.set_num_threads(THREADS)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        trainer_for(method, timing, 3, folder).train()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", nargs="+", default=["atpo", "rhythm", "entropy", "arca"])
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    quiet_libraries()
    table = Table("method", "rollout: share of the step", "loss: overhead", "memory", box=SIMPLE)
    base = peak_memory("uniform", "rollout")
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods:
            shares = shares_of_step(method, asked.steps, folder)
            in_loss = [] if method in ("arca", "divergence") else loss_overheads(method, 4 * asked.steps, folder)
            memory = peak_memory(method, "rollout") / base
            table.add_row(method, _percent(shares), _percent(in_loss), f"{memory:.3f}")
    console = Console(width=110)
    console.print(f"gather, 0.3 M parameters, {ROLLOUTS} rollouts a step, {THREADS} threads, torch {torch.__version__}")
    console.print(table)


def _percent(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.1%} [{min(values):.1%}, {max(values):.1%}]"


if __name__ == "__main__":
    main()
