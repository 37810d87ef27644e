"""The policies of an audit of the testbed: warmed up, and trained from there by RL in full or by a LoRA adapter."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from torch import nn
from transformers import Qwen3ForCausalLM, Qwen3ForTokenClassification

from tokencredit.audit.parts import Parts
from tokencredit.audit.progress import Progress
from tokencredit.files import replacing_directory
from tokencredit.methods import method
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.reward_model import process_reward_model
from tokencredit.testbed.tasks import Problem
from tokencredit.testbed.training import train
from tokencredit.testbed.warmup import cache_folder, fingerprint, warmed_up_policy

if TYPE_CHECKING:
    from tokencredit.testbed.audit import TestbedAudit

POLICIES = ("before RL", "after RL", "after RL, LoRA")
REWARD_MODEL = "models/reward-model"
"""The part of an audit that the reward model is."""


def slug(name: str) -> str:
    """ "after RL, LoRA" -> "after-rl-lora", as the parts of a policy are called."""
    return name.lower().replace(",", "").replace(" ", "-")


def model_part(name: str) -> str:
    """The part of an audit that the policy of that name is."""
    return f"models/{slug(name)}"


def warmed_up(settings: TestbedAudit, progress: Progress) -> Qwen3ForCausalLM:
    progress.stage("warm-up", settings.warm_up.steps)
    policy, _ = warmed_up_policy(
        settings.build_task(), settings.warm_up, lambda n, loss: progress.advance(n, f"loss {loss:.2f}")
    )
    progress.advance(settings.warm_up.steps)
    return policy


def reward_model(
    settings: TestbedAudit, checkpoint: Qwen3ForCausalLM, progress: Progress
) -> Qwen3ForTokenClassification:
    progress.stage("reward model", settings.reward_training.steps)
    model = process_reward_model(
        settings.build_task(),
        settings.warm_up,
        checkpoint,
        build_tokenizer(),
        settings.reward_training,
        progress.advance,
    )
    progress.advance(settings.reward_training.steps)
    return model


def policy_named(
    name: str,
    settings: TestbedAudit,
    checkpoint: Qwen3ForCausalLM,
    training: Sequence[Problem],
    kept: Parts,
    progress: Progress,
) -> nn.Module:
    """The policy of that name, trained now or earlier."""
    if name == "before RL":
        return checkpoint
    lora = name.endswith("LoRA")

    def load(path: Path) -> nn.Module:
        return PeftModel.from_pretrained(copy.deepcopy(checkpoint), path).eval() if lora else loaded(path)

    make = partial(_trained, name, settings, checkpoint, training, progress, lora)
    return kept.model(model_part(name), lambda: load(make()), load)


def loaded(path: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(path).eval()


def trained_folder(settings: TestbedAudit, lora: bool) -> Path:
    """Where the cache has the policy that was trained with these settings."""
    key = fingerprint(
        settings.build_task(), settings.warm_up, extra=["trained", asdict(settings.budget), settings.seed, lora]
    )
    return cache_folder() / f"trained-{settings.task}-{key}"


def _trained(
    name: str,
    settings: TestbedAudit,
    checkpoint: Qwen3ForCausalLM,
    training: Sequence[Problem],
    progress: Progress,
    lora: bool,
) -> Path:
    """The folder of the policy in the cache, trained now if it is not there."""
    folder = trained_folder(settings, lora)
    if folder.is_dir():
        return folder
    progress.stage(f"{name}: RL", settings.budget.steps)
    with tempfile.TemporaryDirectory(prefix="tokencredit-") as scratch:
        trained = train(
            checkpoint,
            build_tokenizer(),
            settings.build_task(),
            method("uniform"),
            training,
            [],
            settings.budget,
            Path(scratch),
            lambda row: progress.advance(row["step"], f"reward {row['reward']:.2f}"),
            lora=lora,
        )
    # An audit that is resumed may be the first to write into this cache.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder) as partial_folder:
        trained.policy.save_pretrained(partial_folder)  # type: ignore[operator]
    return folder
