"""A process reward model for the testbed: a token classifier on the warm-up policy's body, trained on exact labels.

It says, at the end of a step, whether the reasoning is sound so far. Labels: steps before the first error are right,
the step that holds it is wrong, and what follows is not labelled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tokencredit.files import replacing_directory
from tokencredit.signals import RewardModel
from tokencredit.steps import TokenPieces
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import Problem, Task, label_tokens
from tokencredit.testbed.tasks.base import EOS
from tokencredit.testbed.warmup import WarmUp, cache_folder, fingerprint

UNLABELLED = -100


@dataclass(frozen=True)
class RewardTraining:
    """AdamW at a linearly falling rate, on fresh completions of the teacher."""

    steps: int = 1600
    batch_size: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class StepQuality:
    """How well a process reward model knows right steps from wrong ones, on held-out problems.

    `auroc`: over all steps, right or wrong, up to the first error; `right` and `wrong`: how many there were.
    """

    auroc: float
    right: int
    wrong: int


def process_reward_model(
    task: Task,
    warm_up: WarmUp,
    policy: Qwen3ForCausalLM,
    tokenizer: Any,
    recipe: RewardTraining | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Qwen3ForTokenClassification:
    """The trained model, from the cache where it is there.

    Args:
        warm_up: the recipe of `policy`, whose body the training starts from.
        on_step: called with the number of steps done.
    """
    recipe = recipe or RewardTraining()
    folder = reward_model_folder(task, warm_up, recipe)
    if (folder / "model.safetensors").is_file():
        return Qwen3ForTokenClassification.from_pretrained(folder)
    model = _fresh(policy, recipe.seed)
    problems = generate_problems(task, recipe.steps * recipe.batch_size, held_out=False, seed=recipe.seed)
    _train(model, _Lessons(task, problems, tokenizer, recipe.seed), tokenizer, recipe, on_step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder) as partial:
        model.save_pretrained(partial)
    return model


def reward_model_folder(task: Task, warm_up: WarmUp, recipe: RewardTraining) -> Path:
    """Where the cache has the reward model of this training."""
    return cache_folder() / f"reward-{task.name}-{fingerprint(task, warm_up, extra=asdict(recipe))}"


def step_quality(
    model: Qwen3ForTokenClassification, tokenizer: Any, task: Task, problems: Sequence[Problem], *, seed: int = 1
) -> StepQuality:
    """On the teacher's completions of `problems`, one each.

    Raises:
        ValueError: all steps are right, or all are wrong.
    """
    lessons = _Lessons(task, problems, tokenizer, seed)
    scorer, embeddings = RewardModel(model), model.get_input_embeddings()
    device = model.device
    scores: dict[int, list[float]] = {0: [], 1: []}
    with torch.no_grad():
        for i in range(len(lessons)):
            ids, labels = torch.tensor(lessons[i]["input_ids"], device=device), lessons[i]["labels"]
            score = scorer(embeddings(ids)[None], torch.ones(1, len(ids), dtype=torch.bool, device=device))[0]
            for label, value in zip(labels, score.tolist(), strict=True):
                if label != UNLABELLED:
                    scores[label].append(value)
    if not scores[0] or not scores[1]:
        raise ValueError(f"{len(scores[1])} right and {len(scores[0])} wrong steps: both are needed to tell them apart")
    u = mannwhitneyu(scores[1], scores[0]).statistic
    return StepQuality(float(u / (len(scores[1]) * len(scores[0]))), len(scores[1]), len(scores[0]))


class _Lessons(Dataset):
    """One completion of the teacher a problem; a label at the last token of each step up to the first error."""

    def __init__(self, task: Task, problems: Sequence[Problem], tokenizer: Any, seed: int) -> None:
        self._task, self._problems, self._tokenizer, self._seed = task, problems, tokenizer, seed
        self._pieces = TokenPieces(tokenizer)

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        problem = self._problems[i]
        text = self._task.teach(problem, Random(f"reward-{self._seed}-{i}")) + EOS
        prompt, completion = (self._tokenizer(part).input_ids for part in (problem.prompt, text))
        labels = [UNLABELLED] * len(completion)
        found = label_tokens(self._task.label(problem, text), self._pieces(completion))
        error = len(completion) if found.first_error is None else found.first_error
        for k in range(len(found.essential)):
            first, last = (pick(t for t, step in enumerate(found.step_index) if step == k) for pick in (min, max))
            if first <= error:
                labels[last] = int(error > last)
        return {"input_ids": prompt + completion, "labels": [UNLABELLED] * len(prompt) + labels}


def _fresh(policy: Qwen3ForCausalLM, seed: int) -> Qwen3ForTokenClassification:
    config = Qwen3Config(
        **{**policy.config.to_dict(), "num_labels": 2, "architectures": None, "classifier_dropout": 0.0}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForTokenClassification(config)
    model.model.load_state_dict(policy.model.state_dict())
    return model


def _train(
    model: Qwen3ForTokenClassification,
    lessons: _Lessons,
    tokenizer: Any,
    recipe: RewardTraining,
    on_step: Callable[[int], None],
) -> None:
    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step(state.global_step)

    with tempfile.TemporaryDirectory(prefix="tokencredit-") as scratch, torch.random.fork_rng(devices=[]):
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=recipe.steps,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                adam_beta2=0.98,
                warmup_steps=20,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=recipe.seed,
            ),
            train_dataset=lessons,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
