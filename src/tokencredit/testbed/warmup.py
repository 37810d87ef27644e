"""Warm-up: the policy imitates an imperfect teacher until RL has something to improve. The checkpoint is cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from tokencredit.testbed.files import replacing_directory
from tokencredit.testbed.muon import Muon
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import is_held_out
from tokencredit.testbed.tasks import Task
from tokencredit.testbed.tasks.base import EOS

_RECIPE = 1
"""Counts up when code below changes what is learnt, so that no stale checkpoint is used."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised training on the teacher's completions."""

    steps: int = 700
    batch_size: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    seed: int = 0
    size: PolicySize = field(default_factory=PolicySize)


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
    key = json.dumps([_RECIPE, task.name, task.level, asdict(recipe)], sort_keys=True)
    folder = cache_folder() / f"warmup-{task.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if (folder / "model.safetensors").is_file():
        return Qwen3ForCausalLM.from_pretrained(folder), True
    policy = _train(task, recipe, on_step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder) as partial:
        policy.save_pretrained(partial)
    return policy, False


def _train(task: Task, recipe: WarmUp, on_step: Callable[[int, float], None]) -> Qwen3ForCausalLM:
    policy = build_policy(recipe.size, recipe.seed).train()
    hidden = [p for name, p in policy.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for p in policy.parameters() if all(p is not h for h in hidden)]
    optimizers: list[Any] = [
        Muon(hidden, lr=recipe.muon_lr),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: _learning_rate(s, recipe.steps)) for o in optimizers]
    for step, (input_ids, labels) in enumerate(_batches(task, recipe), start=1):
        logits = policy(input_ids=input_ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        on_step(step, loss.item())
    return policy.eval()


def _learning_rate(step: int, steps: int) -> float:
    """Linear to 1 in 30 steps, level, then linear to nearly 0 over the last 40 %: the heads that copy and compare form
    while it is level, and the earlier it falls, the more seeds end without them."""
    return min(1.0, (step + 1) / 30) * min(1.0, max(0.03, (steps - step) / (0.4 * steps)))


def _batches(task: Task, recipe: WarmUp) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and labels (batch_size, N), right-padded; batches of similar length, which pads less."""
    rng = Random(f"warm-up-{recipe.seed}")
    tokenizer = build_tokenizer()
    batch, done = recipe.batch_size, 0
    while done < recipe.steps:
        examples = sorted((_example(task, tokenizer, rng) for _ in range(8 * batch)), key=lambda e: len(e[0]))
        chunks = [examples[i : i + batch] for i in range(0, len(examples), batch)]
        rng.shuffle(chunks)
        for chunk in chunks[: recipe.steps - done]:
            length = max(len(ids) for ids, _ in chunk)
            input_ids = torch.zeros(batch, length, dtype=torch.long)
            labels = torch.full((batch, length), -100)
            for i, (ids, prompt_length) in enumerate(chunk):
                input_ids[i, : len(ids)] = torch.tensor(ids)
                labels[i, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
            yield input_ids, labels
            done += 1


def _example(task: Task, tokenizer: Any, rng: Random) -> tuple[list[int], int]:
    """Token ids of a problem with the teacher's completion, and how many of them are the prompt."""
    while is_held_out(problem := task.problem(rng)):
        pass
    prompt = tokenizer(problem.prompt).input_ids
    completion = tokenizer(task.teach(problem, rng) + EOS).input_ids
    return prompt + completion, len(prompt)
