"""The whole story on a laptop: warm-up, GRPO with each credit method from the same start, accuracy, traces, report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import Qwen3ForCausalLM

from tokencredit.assignment import assignable
from tokencredit.head_files import HeadRank
from tokencredit.methods import Method
from tokencredit.methods.specs import check_specs
from tokencredit.testbed.arms import build_arm, heads_in_words
from tokencredit.testbed.evaluate import evaluate
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems, load_problems
from tokencredit.testbed.reward_model import RewardTraining, process_reward_model, step_quality
from tokencredit.testbed.runs import RunFolder
from tokencredit.testbed.tasks import Problem, Task, task
from tokencredit.testbed.traces import collect_traces
from tokencredit.testbed.training import Budget, train
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy

WARM_ENOUGH = 0.2
"""Greedy accuracy after warm-up below which a warning is due."""


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart is asked. Every method gets the same checkpoint, problems, seed and budget.

    Attributes:
        problems: a user's JSONL file of problems; generated ones by default.
        evaluation_problems: how many held-out problems accuracy is measured on (all of a user's, if fewer).
        trace_problems: on how many of them credit is shown, one group of completions each.
    """

    methods: tuple[str, ...] = ("uniform", "atpo")
    task: str = "gather"
    level: int | None = None
    seed: int = 0
    problems: str | None = None
    training_problems: int = 4000
    evaluation_problems: int = 300
    trace_problems: int = 12
    budget: Budget = field(default_factory=Budget)
    warm_up: WarmUp = field(default_factory=WarmUp)
    reward_training: RewardTraining = field(default_factory=RewardTraining)

    def __post_init__(self) -> None:
        check_specs(self.methods)
        self.build_task()

    def as_config(self) -> dict[str, Any]:
        """JSON-ready, with the version that ran it."""
        own = {} if self.problems is None else {"problems_sha256": sha256(Path(self.problems).read_bytes()).hexdigest()}
        return {"command": "quickstart", "tokencredit": version("tokencredit"), **asdict(self), **own}

    def build_task(self) -> Task:
        return task(self.task, level=self.level)


class Progress(Protocol):
    """Told what happens, stage by stage."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, done: int, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Problems:
    """What is trained on, and what accuracy is measured on; no problem is in both."""

    training: Sequence[Problem]
    held_out: Sequence[Problem]


def prepare(q: Quickstart) -> Problems:
    """Generate the problems, or read the user's. Raises ValueError naming a broken line."""
    chosen = q.build_task()
    if q.problems is not None:
        training, held_out = load_problems(chosen, Path(q.problems))
        return Problems(training, held_out[: q.evaluation_problems])
    return Problems(
        generate_problems(chosen, q.training_problems, held_out=False, seed=q.seed),
        generate_problems(chosen, q.evaluation_problems, held_out=True, seed=q.seed),
    )


def run(q: Quickstart, problems: Problems, folder: RunFolder, progress: Progress) -> None:
    """Warm up, then train, evaluate and trace each method that the folder does not hold yet."""
    folder.drop_unfinished()
    chosen, tokenizer = q.build_task(), build_tokenizer()
    progress.stage("warm-up", q.warm_up.steps)
    checkpoint, cached = warmed_up_policy(chosen, q.warm_up, lambda n, loss: progress.advance(n, f"loss {loss:.2f}"))
    progress.advance(q.warm_up.steps, "from the cache" if cached else "")
    before = folder.results["before"]
    if before is None:
        before = _accuracies(checkpoint, tokenizer, chosen, problems, q.seed)
        folder.record_before(before)
    if before["greedy"]["value"] < WARM_ENOUGH:
        progress.message(
            f"greedy accuracy after the warm-up is {before['greedy']['value']:.2f}; below {WARM_ENOUGH} GRPO hardly "
            "moves: raise --warmup-steps"
        )
    finished = set(q.methods) & folder.results["methods"].keys()
    for name in sorted(finished):
        progress.message(f"{name} is finished already")
    if finished == set(q.methods):
        return

    def on_heads(ranks: list[HeadRank]) -> None:
        progress.message(heads_in_words(ranks))
        folder.record_heads(ranks)

    arms = {name: build_arm(name, checkpoint, chosen, problems.training, on_heads) for name in q.methods}
    for name in q.methods:
        if name not in finished:
            _run_method(q, name, arms, checkpoint, problems, folder, progress)


def _run_method(
    q: Quickstart,
    name: str,
    arms: Mapping[str, Method],
    checkpoint: Qwen3ForCausalLM,
    problems: Problems,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Train the method of that name; its policy's traces get the credit of all arms that it can give."""
    chosen, tokenizer, m = q.build_task(), build_tokenizer(), arms[name]
    scorer, quality = _reward_model(q, checkpoint, problems, progress) if m.needs.reward else (None, {})
    progress.stage(name, q.budget.steps)

    def on_step(row: dict[str, Any]) -> None:
        folder.record_step({"method": name, **row})
        progress.advance(row["step"], f"reward {row['reward']:.2f}")

    with tempfile.TemporaryDirectory(prefix="tokencredit-") as scratch:
        trained = train(
            checkpoint,
            tokenizer,
            chosen,
            m,
            problems.training,
            problems.held_out,
            q.budget,
            Path(scratch),
            on_step,
            reward_model=scorer,
        )
    traces = collect_traces(
        trained.policy,
        tokenizer,
        chosen,
        assignable(arms, trained.policy, scorer)[0],
        problems.held_out[: q.trace_problems],
        group_size=q.budget.group_size,
        seed=q.seed,
        reward_model=scorer,
    )
    result = {
        "params": vars(m),
        "after": _accuracies(trained.policy, tokenizer, chosen, problems, q.seed),
        "seconds": round(trained.seconds, 1),
        "tokens": trained.tokens,
        "adapter": m.needs.adapter,
        **quality,
    }
    folder.record_method(name, result, [{"source": name, **row} for row in traces], trained.policy)


def _reward_model(
    q: Quickstart, checkpoint: Qwen3ForCausalLM, problems: Problems, progress: Progress
) -> tuple[nn.Module, dict[str, Any]]:
    """A process reward model trained on exact step labels, and how good it is on the held-out problems."""
    chosen, tokenizer = q.build_task(), build_tokenizer()
    progress.stage("reward model", q.reward_training.steps)
    model = process_reward_model(chosen, q.warm_up, checkpoint, tokenizer, q.reward_training, progress.advance)
    progress.advance(q.reward_training.steps)
    quality = step_quality(model, tokenizer, chosen, problems.held_out)
    progress.message(
        f"process reward model: AUROC {quality.auroc:.3f} on {quality.right} right and {quality.wrong} wrong held-out "
        "steps of the teacher"
    )
    return model, {"reward_model": asdict(quality)}


def _accuracies(
    policy: nn.Module, tokenizer: Any, chosen: Task, problems: Problems, seed: int
) -> dict[str, dict[str, Any]]:
    return {
        name: asdict(evaluate(policy, tokenizer, chosen, problems.held_out, temperature=temperature, seed=seed))
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }
