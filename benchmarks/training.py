"""What credit costs in a GRPO step in TRL.

    python benchmarks/training.py [--sizes 0.3M 3M 18M] [--methods atpo rhythm entropy arca] [--steps 8]

Credit's share of a whole step (generation, rewards, losses, updates): what the passes that carry the signals take
longer than the same passes without, measured in turns on each batch, and what is computed from them. As medians over
pairs of steps, with the least and the greatest. `two updates`: the quickstart's two on each generation batch, read in
TRL's pass for the old log-probs. `one update`: TRL's default, read in the pass of the loss. `loss`: two updates, in
their losses. `own pass`: one update, with the table of completions, which takes a pass of our own. `memory`: peak of a
training process of its own over that with uniform credit, two updates.

`0.3M` is the quickstart's policy. The larger ones are untrained: they write random text to the maximum length, in which
`</think>` is made likely, so that there are answers; the reward is the share of digits.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from measure import THREADS, arguments, finish, in_own_process, peak_memory, spread
from peft import LoraConfig
from policies import SHAPES
from transformers import PrinterCallback, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOTrainer

from tokencredit.cli.terminal import quiet_libraries
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import step_starts, task
from tokencredit.testbed.training import correctness
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

METHODS = ("atpo", "rhythm", "entropy", "arca")
WARM_UP_STEPS = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "two updates": {"steps_per_generation": 2},
    "one update": {"steps_per_generation": 1},
    "loss": {"steps_per_generation": 2, "credit_timing": "loss"},
    "own pass": {"steps_per_generation": 1, "log_completions": True},
}
COMMON = ("two updates", "one update")


@dataclass(frozen=True)
class Size:
    """A policy, and how long it is trained.

    Attributes:
        shape: of a policy with random weights; None: the quickstart's, after its warm-up.
        steps: generation batches, of which the first `WARM_UP_STEPS` do not count.
        methods: those that are measured when none are asked for. memory: of a training process is measured too.
    """

    shape: PolicySize | None
    rollouts: int
    steps: int
    methods: tuple[str, ...] = ("atpo", "rhythm")
    timings: tuple[str, ...] = COMMON
    memory: bool = False

    def policy(self) -> Qwen3ForCausalLM:
        return warmed_up_policy(task("gather"), WarmUp())[0] if self.shape is None else build_policy(self.shape)


SIZES = {
    "0.3M": Size(None, rollouts=128, steps=8, methods=METHODS, timings=tuple(SETTINGS), memory=True),
    "3M": Size(SHAPES["3M"], rollouts=32, steps=8),
    "18M": Size(SHAPES["18M"], rollouts=16, steps=8),
}
QUICK: dict[str, Any] = {"sizes": ["0.3M", "3M"], "methods": ["rhythm"], "steps": 4}


class Timed(CreditGRPOTrainer):
    """Makes each pass that carries signals twice, watched and not, in one order and then in the other: the second of
    two passes finds memory as the first has left it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds = {"watched": 0.0, "plain": 0.0}
        self._pairs = 0

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if self._scoring is None and self._loss_inputs is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        makers = {
            "watched": super()._get_per_token_logps_and_entropies,
            "plain": partial(GRPOTrainer._get_per_token_logps_and_entropies, self),
        }
        found = {}
        self._pairs += 1
        for name in sorted(makers, reverse=self._pairs % 2 == 0):
            started = time.perf_counter()
            found[name] = makers[name](*args, **kwargs)
            self.seconds[name] += time.perf_counter() - started
        return found["watched"]


def trainer_for(size: Size, method: str, steps: int, folder: str, **settings: Any) -> Timed:
    gather, tokenizer = task("gather"), build_tokenizer()
    problems = generate_problems(gather, 400, held_out=False, seed=0)
    updates = settings["steps_per_generation"]
    args = CreditGRPOConfig(
        credit_method=method,
        output_dir=folder,
        max_steps=steps * updates,
        per_device_train_batch_size=size.rollouts // updates,
        gradient_accumulation_steps=1,
        num_generations=8,
        max_completion_length=gather.max_new_tokens,
        generation_kwargs=None if size.shape is None else _random_text(tokenizer),
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
        size.policy(),
        correctness(gather, problems, tokenizer) if size.shape is None else share_of_digits,
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


def share_of_digits(completions: list[str], **_: Any) -> list[float]:
    """A reward that random text differs in."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


def _random_text(tokenizer: Any) -> dict[str, Any]:
    """Of nearly uniform tokens: never an end, and the reasoning ends after about 40."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    return {"sequence_bias": [[[tokenizer.eos_token_id], -100.0], [[end], math.log(len(tokenizer) / 40)]]}


def shares_of_step(size: Size, method: str, steps: int, **settings: Any) -> list[float]:
    """Of each two steps in turn, one in each order of passes, but for the first, which warm up."""
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

    # Around training: the table of completions is printed.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_for(size, method, steps, folder, **settings)
        trainer.add_callback(Steps())
        trainer.train()
    return [sum(two) / 2 for two in zip(shares[WARM_UP_STEPS::2], shares[WARM_UP_STEPS + 1 :: 2], strict=False)]


def _memory(size: str, method: str) -> float:
    """MiB of a process that trains three steps."""
    torch.set_num_threads(THREADS)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        trainer_for(SIZES[size], method, 3, folder, **SETTINGS["two updates"]).train()
    return peak_memory()


def figures(
    sizes: Sequence[str] = tuple(SIZES), methods: Sequence[str] | None = None, steps: int | None = None
) -> dict[str, Any]:
    """For each size, each method's `share` of a step by timing, and its `memory` over that of uniform credit.

    Args:
        methods, steps: in place of each size's own.
    """
    torch.set_num_threads(THREADS)
    quiet_libraries()
    return {"sizes": [_of_size(name, methods or SIZES[name].methods, steps or SIZES[name].steps) for name in sizes]}


def _of_size(name: str, methods: Sequence[str], steps: int) -> dict[str, Any]:
    size = SIZES[name]
    base = in_own_process(_memory, name, "uniform") if size.memory else None
    found = {}
    for method in methods:
        timings = [timing for timing in size.timings if not (method == "arca" and timing == "loss")]
        shares = {timing: spread(shares_of_step(size, method, steps, **SETTINGS[timing])) for timing in timings}
        found[method] = {
            "share": {timing: shares.get(timing) for timing in size.timings},
            "memory": in_own_process(_memory, name, method) / base if base else None,
        }
    return {
        "parameters": sum(p.numel() for p in size.policy().parameters()),
        "policy": "the quickstart's" if size.shape is None else "untrained",
        "rollouts": size.rollouts,
        "tokens": task("gather").max_new_tokens,
        "steps": steps - WARM_UP_STEPS,
        "timings": list(size.timings),
        "methods": found,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", help="in place of each size's own")
    parser.add_argument("--steps", type=int, help="in place of each size's own; an even number, at least 4")
    asked = parser.parse_args()
    found = figures(**QUICK) if asked.quick else figures(asked.sizes, asked.methods, asked.steps)
    finish("training", found, asked)


if __name__ == "__main__":
    main()
