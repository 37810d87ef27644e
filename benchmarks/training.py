"""What credit costs in a GRPO step on the quickstart's policy.

    python benchmarks/training.py [--steps 12] [--methods atpo rhythm entropy arca]

Credit's share of a whole step (generation, rewards, losses, updates): what the passes that carry the signals take
longer than the same passes without, measured in turns on each batch, and what is computed from them. As medians over
the steps, with the least and the greatest. `two updates`: the quickstart's two on each generation batch, read in TRL's
pass for the old log-probs. `one update`: TRL's default, read in the pass of the loss. `loss`: two updates, in their
losses. `own pass`: one update, with the table of completions, which takes a pass of our own.
`memory`: peak of a training process of its own over that with uniform credit, two updates.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from tokencredit.cli.terminal import quiet_libraries
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import step_starts, task
from tokencredit.testbed.training import correctness
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

THREADS, ROLLOUTS = 2, 128


SETTINGS = {
    "two updates": {"steps_per_generation": 2},
    "one update": {"steps_per_generation": 1},
    "loss": {"steps_per_generation": 2, "credit_timing": "loss"},
    "own pass": {"steps_per_generation": 1, "log_completions": True},
}


class Timed(CreditGRPOTrainer):
    """Makes each pass that carries signals twice, watched and not, in either order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds = {"watched": 0.0, "plain": 0.0}

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if self._scoring is None and self._loss_inputs is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        makers = {
            "watched": super()._get_per_token_logps_and_entropies,
            "plain": partial(GRPOTrainer._get_per_token_logps_and_entropies, self),
        }
        found = {}
        for name in sorted(makers, reverse=self.state.global_step % 4 > 1):
            started = time.perf_counter()
            found[name] = makers[name](*args, **kwargs)
            self.seconds[name] += time.perf_counter() - started
        return found["watched"]


def trainer_for(method: str, steps: int, folder: str, **settings) -> Timed:
    gather, tokenizer = task("gather"), build_tokenizer()
    policy, _ = warmed_up_policy(gather, WarmUp())
    problems = generate_problems(gather, 400, held_out=False, seed=0)
    updates = settings["steps_per_generation"]
    args = CreditGRPOConfig(
        credit_method=method,
        output_dir=folder,
        max_steps=steps * updates,
        per_device_train_batch_size=ROLLOUTS // updates,
        gradient_accumulation_steps=1,
        num_generations=8,
        max_completion_length=gather.max_new_tokens,
        logging_steps=updates,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        **settings,
    )
    adapter = {"peft_config": LoraConfig(r=8, target_modules="all-linear")} if method in ("arca", "divergence") else {}
    trainer = Timed(
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
    trainer.remove_callback(PrinterCallback)
    return trainer


def shares_of_step(method: str, steps: int, folder: str, **settings) -> list[float]:
    """Of each step but the first two, which warm up."""
    shares, before = [], {"watched": 0.0, "plain": 0.0}

    class Steps(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "credit/seconds" not in logs:
                return
            watched, plain = (trainer.seconds[name] - before[name] for name in ("watched", "plain"))
            before.update(trainer.seconds)
            # In the loss the credit is computed within the pass; and the pass without signals is the bench's own.
            computed = 0.0 if trainer._in_loss else float(logs["credit/seconds"])
            step = float(logs["step_time"]) * settings["steps_per_generation"] - plain
            shares.append((watched - plain + computed) / step)

    trainer = trainer_for(method, steps, folder, **settings)
    trainer.add_callback(Steps())
    with contextlib.redirect_stdout(io.StringIO()):  # the table of completions
        trainer.train()
    return shares[2:]


def peak_memory(method: str) -> float:
    """MiB of a process that trains three steps."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # freed blocks go back at once: the peak is of what is in use
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (method,))


def _peak_memory(method: str) -> float:
    torch.set_num_threads(THREADS)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        trainer_for(method, 3, folder, **SETTINGS["two updates"]).train()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", nargs="+", default=["atpo", "rhythm", "entropy", "arca"])
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    quiet_libraries()
    table = Table("method", *SETTINGS, "memory", box=SIMPLE)
    base = peak_memory("uniform")
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods:
            timings = [name for name in SETTINGS if not (method == "arca" and name == "loss")]
            shares = {name: shares_of_step(method, asked.steps, folder, **SETTINGS[name]) for name in timings}
            memory = peak_memory(method) / base
            table.add_row(method, *(_percent(shares.get(name, [])) for name in SETTINGS), f"{memory:.3f}")
    console = Console(width=110)
    console.print(f"gather, 0.3 M parameters, {ROLLOUTS} rollouts a step, {THREADS} threads, torch {torch.__version__}")
    console.print(table)


def _percent(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.1%} [{min(values):.1%}, {max(values):.1%}]"


if __name__ == "__main__":
    main()
