"""Short training runs of TRL's trainer with every method, and what they log."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from tiny_models import SYMBOLS, adapted, hashed, norm, reward_classifier, trained_policy, word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        method: see `credit_method`. params: of the method.
        settings: further ones of `CreditGRPOConfig`.
        lora: train an adapter. reward_model: give the trainer one.
        from_folder: load the policy from a folder, from which TRL also loads the reference.
    """

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    reward_model: bool = False
    from_folder: bool = False

    @property
    def name(self) -> str:
        """Unique among `RUNS`."""
        given = {**self.params, **self.settings, **({"lora": True} if self.lora else {})}
        return self.method + "".join(f" {key}={value}" for key, value in given.items())


LOSS = {"credit_timing": "loss"}
RHYTHM = {"horizon": [1, 4]}
ATTNPO = {"heads": [[0, 1], [1, 0]], "beta": 0.1, "delay": 0}
CORRECT = {"credit_correct_threshold": 0.3, "credit_splitter": "newline"}
KL = {"beta": 0.1}
RUNS = [
    *(
        Run(method, params, settings)
        for method, params in (
            ("uniform", {}),
            ("random", {}),
            ("position", {}),
            ("entropy", {}),
            ("entropy_selection", {}),
            ("entropy_reduction", {}),
            ("surprisal", {}),
            ("atpo", {}),
            ("rhythm", RHYTHM),
        )
        for settings in ({}, LOSS)
    ),
    Run("attnpo", ATTNPO, CORRECT),
    Run("arca", lora=True),
    Run("divergence", lora=True),
    Run("divergence", {}, KL, lora=True),
    Run("divergence", {}, {**LOSS, **KL}, lora=True),
    Run("divergence", {}, KL, from_folder=True),
    Run("p2t", reward_model=True),
    Run("rhythm", RHYTHM, {"credit_kernels": "fused"}),
    Run("rhythm", RHYTHM, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    Run("rhythm", RHYTHM, {**LOSS, "gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    Run("atpo", {}, {"loss_type": "grpo", "credit_outcome": "rloo"}),
    Run("atpo", {}, {**LOSS, "loss_type": "dr_grpo", "scale_rewards": "none"}),
    Run("atpo", {}, {"credit_answer": "="}, lora=True),
]
KEPT = [Run("rhythm", RHYTHM), Run("atpo", {}, LOSS), Run("arca", lora=True)]
"""Those that the golden test repeats."""

PROMPTS = Dataset.from_dict({"prompt": [f"{i}+{i + 1}=" for i in range(8)]})


def reward(completions, **_):
    """Dense and varied, so that random text has advantages: the share of digits."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


class Norms(TrainerCallback):
    """Keeps the norm of all parameters after each step."""

    def __init__(self):
        self.values: list[float] = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.values.append(norm(model))


TIMES = ("credit/seconds", "credit/share_of_step")


def recorded(run: Run, steps: int = 5) -> dict[str, list[float] | str]:
    """Under its name, what is logged and the norm of the parameters, a number per step; and a hash of the last ones.

    What TRL logs once per generation batch has fewer numbers. Times are left out.
    """
    norms = Norms()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(run, steps, folder)
        trainer.add_callback(norms)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == len(norms.values) == steps
    names = {name for row in logged for name in row if name in ("loss", "grad_norm", "reward", "kl")}
    names |= {name for row in logged for name in row if name.startswith("credit/") and name not in TIMES}
    values = {name: [float(row[name]) for row in logged if name in row] for name in sorted(names)}
    return {**values, "norm of the parameters": norms.values, "SHA-256 of the parameters": hashed(trainer.model)}


def _policy(run: Run, folder: str) -> nn.Module:
    policy = trained_policy()
    if run.from_folder:
        policy.save_pretrained(folder)
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return adapted(policy) if run.lora else policy


def _trainer(run: Run, steps: int, folder: str) -> CreditGRPOTrainer:
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 20,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
        **run.settings,
    }
    given = {}
    if run.reward_model:
        given["reward_model"] = reward_classifier(torch.float32, vocabulary=len(SYMBOLS))
    return CreditGRPOTrainer(
        _policy(run, f"{folder}/policy"),
        reward,
        args=CreditGRPOConfig(**settings, credit_method=run.method, credit_params=run.params),
        train_dataset=PROMPTS,
        processing_class=word_tokenizer(),
        **given,
    )
