"""The whole story on a laptop: warm-up, GRPO with each credit method from the same start, accuracy, traces, report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from tokencredit.methods import method
from tokencredit.testbed.evaluate import evaluate
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems, load_problems
from tokencredit.testbed.runs import RunFolder
from tokencredit.testbed.tasks import Problem, Task, task
from tokencredit.testbed.traces import collect_traces
from tokencredit.testbed.training import Budget, train
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy


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

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"name at least one method, each once; got {', '.join(self.methods) or 'none'}")
        for name in self.methods:
            method(name)
        self.build_task()

    def build_task(self) -> Task:
        return task(self.task) if self.level is None else task(self.task, level=self.level)


class Progress(Protocol):
    """Told what happens, stage by stage."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, done: int, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


def run(q: Quickstart, out: Path, progress: Progress, *, overwrite: bool = False, resume: bool = False) -> RunFolder:
    """Run a quickstart into a folder. Methods that the folder already holds are not run again."""
    chosen = q.build_task()
    training, held_out = _problems(q, chosen)
    folder = RunFolder(out, asdict(q), overwrite=overwrite, resume=resume)
    tokenizer = build_tokenizer()

    progress.stage("warm-up", q.warm_up.steps)
    checkpoint, cached = warmed_up_policy(
        chosen, q.warm_up, lambda step, loss: progress.advance(step, f"loss {loss:.2f}")
    )
    progress.advance(q.warm_up.steps, "from the cache" if cached else "")
    if folder.results["before"] is None:
        folder.record_before(_accuracies(checkpoint, tokenizer, chosen, held_out, q.seed))
    greedy = folder.results["before"]["greedy"]["value"]
    if greedy < 0.2:
        progress.message(f"warm-up reached a greedy accuracy of {greedy:.2f} only: GRPO may have little to build on")

    for name in q.methods:
        if name in folder.results["methods"]:
            progress.message(f"{name} is finished already")
            continue
        progress.stage(name, q.budget.steps)
        m = method(name)

        def on_step(row: dict[str, Any], name: str = name) -> None:
            folder.record_step({"method": name, **row})
            progress.advance(row["step"], f"reward {row['reward']:.2f}")

        with tempfile.TemporaryDirectory(prefix="tokencredit-") as scratch:
            trained = train(
                checkpoint, tokenizer, chosen, m, training, held_out, q.budget, Path(scratch), on_step
            )
        shown = held_out[: q.trace_problems]
        traces = collect_traces(
            trained.policy, tokenizer, chosen, m, shown, group_size=q.budget.group_size, seed=q.seed
        )
        result = {
            "after": _accuracies(trained.policy, tokenizer, chosen, held_out, q.seed),
            "seconds": round(trained.seconds, 1),
            "tokens": trained.tokens,
            "adapter": m.needs.adapter,
        }
        folder.record_method(name, result, traces, trained.policy)
    return folder


def _problems(q: Quickstart, chosen: Task) -> tuple[Sequence[Problem], Sequence[Problem]]:
    if q.problems is not None:
        training, held_out = load_problems(chosen, Path(q.problems))
        return training, held_out[: q.evaluation_problems]
    return (
        generate_problems(chosen, q.training_problems, held_out=False, seed=q.seed),
        generate_problems(chosen, q.evaluation_problems, held_out=True, seed=q.seed),
    )


def _accuracies(
    policy: nn.Module, tokenizer: Any, chosen: Task, problems: Sequence[Problem], seed: int
) -> dict[str, Any]:
    return {
        name: asdict(evaluate(policy, tokenizer, chosen, problems, temperature=temperature, seed=seed))
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }
