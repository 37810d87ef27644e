"""Supervised fine-tuning of a causal LM on prompts and completions: a warm-up before reinforcement learning.

All weights are trained, with AdamW. A checkpoint beside the output lets an interrupted run go on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from tokencredit import layouts
from tokencredit.chat import as_prompt, completion_text, end_of_turn
from tokencredit.prompts import encode_prompt, text_ids
from tokencredit.tables import read_each

_IGNORED = -100
_WINDOW = 8
"""Batches whose lessons are sorted by length together."""


class Lesson(NamedTuple):
    """Token ids; the completion ends with the end of sequence."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class Supervision:
    """The learning rate rises linearly over the first tenth of the steps and falls linearly to a tenth of itself.

    `bf16`: compute in bfloat16 over float32 weights; None where the hardware is fast at it (`is_bfloat16_fast`).
    `save_every`: steps between checkpoints.
    """

    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    bf16: bool | None = None
    save_every: int = 20

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every) < 1 or not 0 < self.learning_rate < 1:
            raise ValueError(
                "expected steps, batch_size and save_every of at least 1, and a learning rate between 0 and 1; got "
                f"{self.steps}, {self.batch_size}, {self.save_every} and {self.learning_rate}"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1 to `steps`."""
        rising = min(1.0, step / max(1, self.steps // 10))
        return self.learning_rate * rising * max(0.1, 1 - (step - 1) / self.steps)


def load_lessons(path: Path | str, tokenizer: Any, *, chat: bool = False) -> list[Lesson]:
    """Lessons from a file of rows with `prompt`, text or chat messages, and `completion`, text or a message of the
    assistant.

    A text ends with the tokenizer's end of sequence, a message with the token that ends the assistant's turn in the
    chat template, or the end of sequence where there is none.

    Args:
        chat: make each text prompt a user's message, for models with a chat template.

    Raises:
        ValueError: a row is broken or lacks one of them (its place is named), there is none, or the tokenizer has no
            end of sequence.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so the model could not learn where to stop")
    return read_each(path, lambda row: _lesson(row, tokenizer, chat), content="lesson")


def _lesson(record: dict[str, Any], tokenizer: Any, chat: bool) -> Lesson:
    row = layouts.with_names(record, layouts.TEXT)
    if row.get("prompt") is None or row.get("completion") is None:
        raise ValueError(layouts.mismatch(record, (layouts.TEXT,)))
    prompt = as_prompt(row["prompt"], chat=chat)
    ids = text_ids(completion_text(row["completion"]), tokenizer)
    end = [] if isinstance(row["completion"], str) or isinstance(prompt, str) else end_of_turn(prompt, tokenizer)
    return Lesson(encode_prompt(prompt, tokenizer), [*ids, *(end or [tokenizer.eos_token_id])])


def fine_tune(
    model: Any,
    lessons: Sequence[Lesson],
    recipe: Supervision,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `model` in place to continue each prompt with its completion. It is left in evaluation mode.

    Args:
        lessons: drawn in a random order, each once before any comes again.
        checkpoint: a file to save progress in; where it exists and is of the same recipe and lessons, training goes on
            from there. It may be removed once the trained model is saved.
        on_step: called with the number of steps done and the loss, the mean over the completions' tokens.

    Raises:
        ValueError: there is no lesson, the checkpoint is of another run, or the loss is no longer finite.
    """
    if not lessons:
        raise ValueError("there is no lesson to learn from")
    trained = list(_trained(model).values())
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    key = _fingerprint(lessons, recipe)
    done = 0 if checkpoint is None else _resume(model, optimizer, checkpoint, key)
    if done:
        on_step(done, float("nan"))
    model.train()
    for step in range(done + 1, recipe.steps + 1):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        loss = _loss(model, _batch(lessons, recipe, step), recipe)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss of step {step} is {loss.item()}: lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, loss.item())
        if checkpoint is not None and (step % recipe.save_every == 0 or step == recipe.steps):
            _save(model, optimizer, checkpoint, key, step)
    model.eval()


def is_bfloat16_fast(device: torch.device) -> bool:
    """GPUs with bfloat16, and CPUs with AMX; on other CPUs it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return device.type == "cpu" and bool(capabilities().get("amx_bf16"))


def _batch(lessons: Sequence[Lesson], recipe: Supervision, step: int) -> list[Lesson]:
    """Depends on the step alone, so that a resumed run sees what the interrupted one would have seen.

    The lessons of some successive batches are sorted by length and dealt out anew, which pads less.
    """
    batches_per_window = max(1, min(_WINDOW, len(lessons) // recipe.batch_size))
    window, place = divmod(step - 1, batches_per_window)
    size = batches_per_window * recipe.batch_size
    first = window * size
    drawn = sorted((_drawn(lessons, recipe, i) for i in range(first, first + size)), key=_length)
    batches = [drawn[i : i + recipe.batch_size] for i in range(0, size, recipe.batch_size)]
    Random(f"batches-{recipe.seed}-{window}").shuffle(batches)
    return batches[place]


def _drawn(lessons: Sequence[Lesson], recipe: Supervision, i: int) -> Lesson:
    epoch, place = divmod(i, len(lessons))
    return lessons[_order(len(lessons), recipe.seed, epoch)[place]]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    Random(f"lessons-{seed}-{epoch}").shuffle(order)
    return order


def _length(lesson: Lesson) -> int:
    return len(lesson.prompt) + len(lesson.completion)


def _loss(model: Any, batch: Sequence[Lesson], recipe: Supervision) -> torch.Tensor:
    """Cross entropy of the completions' tokens; logits are computed for those alone."""
    device = next(model.parameters()).device
    length = max(map(_length, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), _IGNORED)
    for i, (prompt, completion) in enumerate(batch):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    kept = length - min(len(lesson.prompt) for lesson in batch) + 1
    fast = is_bfloat16_fast(device) if recipe.bf16 is None else recipe.bf16
    # Padding is on the right, where causal attention never looks.
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=kept).logits
    targets = labels[:, -kept + 1 :].to(device)
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _fingerprint(lessons: Sequence[Lesson], recipe: Supervision) -> str:
    content = json.dumps([asdict(recipe) | {"save_every": 0}, [list(lesson) for lesson in lessons]])
    return hashlib.sha256(content.encode()).hexdigest()


def _resume(model: Any, optimizer: torch.optim.Optimizer, checkpoint: Path, key: str) -> int:
    """The number of steps done."""
    if not checkpoint.is_file():
        return 0
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["key"] != key:
        raise ValueError(f"{checkpoint} is of a run with other settings or lessons: remove it, or use another folder")
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(saved["parameters"][name])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def _save(model: Any, optimizer: torch.optim.Optimizer, checkpoint: Path, key: str, step: int) -> None:
    partial = checkpoint.with_name(f"{checkpoint.name}.partial")
    parameters = {name: parameter.detach() for name, parameter in _trained(model).items()}
    state = {"key": key, "step": step, "parameters": parameters, "optimizer": optimizer.state_dict()}
    torch.save(state, partial)
    partial.replace(checkpoint)
