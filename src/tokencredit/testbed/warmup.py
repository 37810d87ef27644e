"""Warm-up: the policy imitates an imperfect teacher until RL has something to improve. The checkpoint is cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from tokencredit.files import replacing_directory
from tokencredit.testbed.muon import Muon
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import is_held_out
from tokencredit.testbed.tasks import Task
from tokencredit.testbed.tasks import task as task_named
from tokencredit.testbed.tasks.base import END_THINK, EOS

_RECIPE = 1
"""Counts up when the training below changes. The task, its teacher and the policy tell of their changes themselves."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised training on the teacher's completions.

    The learning rate is level, then falls to nearly 0 over the last `decay_steps`. It falls once the policy copies its
    answer from its reasoning, which some seeds learn late: after `level_steps` at least, and in time to end at `steps`.
    The first `easy_steps` are on problems of level 1: from long reasoning alone, few seeds learn to copy at all.
    """

    steps: int = 1100
    level_steps: int = 400
    decay_steps: int = 250
    batch_size: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    seed: int = 0
    easy_steps: int = 0
    size: PolicySize = field(default_factory=PolicySize)


# With these, both seeds tried learnt to copy over long reasoning, in 4 to 5 CPU minutes.
_SETTINGS: dict[str, dict[str, int]] = {
    "long_gather": {"level_steps": 550, "easy_steps": 300},
    "two_hop": {"steps": 1200, "level_steps": 800},
}


def recipe_for(task_name: str, **changes: Any) -> WarmUp:
    """The warm-up that suits a task; `changes` take precedence, but for None: `recipe_for("two_hop", seed=1)`."""
    given = {name: value for name, value in changes.items() if value is not None}
    return WarmUp(**{**_SETTINGS.get(task_name, {}), **given})


def cache_folder() -> Path:
    """`$TOKENCREDIT_CACHE`, else `tokencredit` in the user's cache folder."""
    if own := os.environ.get("TOKENCREDIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokencredit"


def warmed_up_policy(
    task: Task, recipe: WarmUp, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> tuple[Qwen3ForCausalLM, bool]:
    """The policy after warm-up, and whether it came from the cache.

    Args:
        on_step: called with the number of steps done and the loss.
    """
    folder = warm_up_folder(task, recipe)
    if (folder / "model.safetensors").is_file():
        return Qwen3ForCausalLM.from_pretrained(folder), True
    policy = _train(task, recipe, on_step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder) as partial:
        policy.save_pretrained(partial)
    return policy, False


def warm_up_folder(task: Task, recipe: WarmUp) -> Path:
    """Where the cache has the policy after this warm-up."""
    return cache_folder() / f"warmup-{task.name}-{fingerprint(task, recipe)}"


def fingerprint(task: Task, recipe: WarmUp, extra: Any = None) -> str:
    """Of everything that the checkpoint comes from: the recipe, the policy's config, and what the teacher says; and of
    what else a model that starts from it comes from."""
    rng, tokenizer = Random("fingerprint"), build_tokenizer()
    lessons = [_example(task, tokenizer, rng) for _ in range(64)]
    settings = {k: v for k, v in asdict(recipe).items() if k != "easy_steps" or v}
    config = {k: v for k, v in build_policy(recipe.size).config.to_dict().items() if k != "transformers_version"}
    key = json.dumps(
        [_RECIPE, task.name, task.level, settings, config, lessons, *([] if extra is None else [extra])],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _train(task: Task, recipe: WarmUp, on_step: Callable[[int, float], None]) -> Qwen3ForCausalLM:
    policy = build_policy(recipe.size, recipe.seed).train()
    hidden = [p for name, p in policy.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for p in policy.parameters() if all(p is not h for h in hidden)]
    optimizers: list[Any] = [
        Muon(hidden, lr=recipe.muon_lr),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedule = _Schedule(recipe)
    for step, (input_ids, labels, is_answer) in enumerate(_batches(task, recipe), start=1):
        for optimizer, full in zip(optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = full * schedule.factor(step)
        logits = policy(input_ids=input_ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        on_step(step, loss.item())
        right = logits.argmax(-1) == labels[:, 1:]
        schedule.saw(step, right[is_answer[:, 1:]].float().mean().item())
        if step == schedule.last:
            break
    return policy.eval()


class _Schedule:
    """The learning rate as a factor, and the step to end at, which moves forward once answers are copied."""

    def __init__(self, recipe: WarmUp) -> None:
        self.last = recipe.steps
        self._level = recipe.level_steps
        self._decay = min(recipe.decay_steps, max(1, recipe.steps // 2))
        self._copied = 0.0

    def factor(self, step: int) -> float:
        """Linear to 1 in 30 steps; linear to 0.03 over the last ones."""
        return min(1.0, step / 30) * min(1.0, max(0.03, (self.last - step) / self._decay))

    def saw(self, step: int, answers_right: float) -> None:
        """Told which share of the answer tokens was predicted, given the teacher's reasoning."""
        self._copied += 0.1 * (answers_right - self._copied)
        if step >= self._level and self._copied > 0.96:
            self.last = min(self.last, step + self._decay)


def _batches(task: Task, recipe: WarmUp) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Without end: input ids, labels and whether a token is of the answer, (batch_size, N) each, right-padded.

    The completions of a batch are of similar length, which pads less.
    """
    rng = Random(f"warm-up-{recipe.seed}")
    tokenizer = build_tokenizer()
    (end_think,) = tokenizer(END_THINK).input_ids
    batch = recipe.batch_size
    for first_step in count(0, 8):
        lesson = task_named(task.name, level=1) if first_step < recipe.easy_steps else task
        examples = sorted((_example(lesson, tokenizer, rng) for _ in range(8 * batch)), key=lambda e: len(e[0]))
        chunks = [examples[i : i + batch] for i in range(0, len(examples), batch)]
        rng.shuffle(chunks)
        for chunk in chunks:
            length = max(len(ids) for ids, _ in chunk)
            input_ids = torch.zeros(batch, length, dtype=torch.long)
            labels = torch.full((batch, length), -100)
            for i, (ids, prompt_length) in enumerate(chunk):
                input_ids[i, : len(ids)] = torch.tensor(ids)
                labels[i, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
            ends = torch.eq(input_ids, end_think)
            yield input_ids, labels, (ends.cumsum(1) > 0) & ~ends & (labels != -100)


def _example(task: Task, tokenizer: Any, rng: Random) -> tuple[list[int], int]:
    """Token ids of a problem with the teacher's completion, and how many of them are the prompt."""
    while is_held_out(problem := task.problem(rng)):
        pass
    prompt = tokenizer(problem.prompt).input_ids
    completion = tokenizer(task.teach(problem, rng) + EOS).input_ids
    return prompt + completion, len(prompt)
