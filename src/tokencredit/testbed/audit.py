"""Audit every method on the testbed, before and after RL, against all that is known there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Qwen3ForTokenClassification

from tokencredit.audit.audit import audit
from tokencredit.audit.monte_carlo import MonteCarloAdvantage, NoiseCeiling, noise_ceilings
from tokencredit.audit.parts import Parts
from tokencredit.audit.policies import PART_TYPES, audit_policy
from tokencredit.audit.progress import Progress, duration_in_words
from tokencredit.audit.truth import Truth
from tokencredit.head_files import HeadRank
from tokencredit.methods import Method
from tokencredit.methods.specs import EVERY_METHOD, check_specs, needs_heads, parse_spec, sketch
from tokencredit.rollouts import Rollouts
from tokencredit.testbed.arms import arm_with_heads, heads_in_words, ranked_heads
from tokencredit.testbed.audit_policies import (
    POLICIES,
    REWARD_MODEL,
    loaded,
    model_part,
    policy_named,
    reward_model,
    slug,
    warmed_up,
)
from tokencredit.testbed.audit_time import expected_seconds
from tokencredit.testbed.audited import Audited, audited_problems, estimated, sample_audited
from tokencredit.testbed.evaluate import Accuracy, evaluate
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.reward_model import RewardTraining
from tokencredit.testbed.tasks import Problem, Task, task
from tokencredit.testbed.training import Budget
from tokencredit.testbed.warmup import WarmUp

TRAINING_PROBLEMS = 4000
COUNTERFACTUAL = "replacement effect"


@dataclass(frozen=True)
class TestbedAudit:
    """The settings of an audit.

    Attributes:
        arms: credit methods, as `parse_spec` reads them.
        problems: held-out problems, `group_size` completions each.
        estimated: how many correct completions, and as many wrong ones, get Monte-Carlo values from `samples`
            continuations of every prefix, and the effect of replacing each token.
        evaluation_problems: held-out problems that each policy's greedy accuracy is measured on.
    """

    arms: tuple[str, ...] = EVERY_METHOD
    task: str = "gather"
    level: int | None = None
    seed: int = 0
    problems: int = 60
    group_size: int = 8
    estimated: int = 40
    samples: int = 16
    evaluation_problems: int = 300
    budget: Budget = field(default_factory=Budget)
    warm_up: WarmUp = field(default_factory=WarmUp)
    reward_training: RewardTraining = field(default_factory=RewardTraining)

    def __post_init__(self) -> None:
        check_specs(self.arms)
        self.build_task()

    def build_task(self) -> Task:
        return task(self.task, level=self.level)

    def as_config(self) -> dict[str, Any]:
        """JSON-ready, with the version of the library."""
        return {"command": "audit", "tokencredit": version("tokencredit"), **asdict(self)}

    @property
    def policies(self) -> tuple[str, ...]:
        """The names of the policies that are audited; the one with an adapter alone, where every method reads one."""
        return POLICIES[-1:] if all(sketch(spec).needs.adapter for spec in self.arms) else POLICIES

    @property
    def reads_reward_model(self) -> bool:
        return any(sketch(spec).needs.reward for spec in self.arms)

    @property
    def finds_heads(self) -> bool:
        return any(needs_heads(*parse_spec(spec)) for spec in self.arms)


def run_audit(settings: TestbedAudit, progress: Progress, folder: Path | None = None) -> dict[str, Any]:
    """Audit of the warmed-up policy and of two that were trained from it with uniform credit, JSON-ready.

    One of the two was trained in full, one by a LoRA adapter, for the methods that read one.

    Args:
        folder: where finished parts are kept, each once it is done. A second call with the same settings and folder
            does not repeat them, and returns what the first would have returned.
    """
    kept = parts_in(folder)
    progress.message(
        f"expected time, from a short test on this machine: {duration_in_words(expected_seconds(settings, kept))}"
    )
    chosen = settings.build_task()
    training = generate_problems(chosen, TRAINING_PROBLEMS, held_out=False, seed=settings.seed)
    checkpoint = kept.model(model_part("before RL"), partial(warmed_up, settings, progress), loaded)
    scorer = None
    if settings.reads_reward_model:
        make = partial(reward_model, settings, checkpoint, progress)
        scorer = kept.model(REWARD_MODEL, make, lambda path: Qwen3ForTokenClassification.from_pretrained(path).eval())
    found = {}
    for name in settings.policies:
        policy = policy_named(name, settings, checkpoint, training, kept, progress)
        of_policy = kept.within(slug(name))
        ranks = (
            of_policy.value("heads", partial(ranked_heads, policy, chosen, training)) if settings.finds_heads else []
        )
        if ranks:
            progress.message(heads_in_words(ranks))
        methods = {spec: arm_with_heads(spec, ranks) for spec in settings.arms}
        found[name] = _audited(settings, name, policy, methods, scorer, of_policy, progress)
        found[name]["heads"] = [rank._asdict() for rank in ranks]
    return {"config": settings.as_config(), "policies": found}


def parts_in(folder: Path | None) -> Parts:
    """The finished parts of an audit of the testbed in that folder."""
    return Parts(folder, (*PART_TYPES, Accuracy, HeadRank, MonteCarloAdvantage, Rollouts, Truth))


def _audited(
    settings: TestbedAudit,
    name: str,
    policy: nn.Module,
    methods: Mapping[str, Method],
    scorer: nn.Module | None,
    kept: Parts,
    progress: Progress,
) -> dict[str, Any]:
    """One policy: its accuracy, its completions with what is known about them, and the methods' scores there."""
    chosen, tokenizer, seed = settings.build_task(), build_tokenizer(), settings.seed
    held_out = generate_problems(chosen, settings.evaluation_problems, held_out=True, seed=seed)
    accuracy = kept.value("accuracy", lambda: evaluate(policy, tokenizer, chosen, held_out, seed=seed))
    completions = kept.value("completions", lambda: _completions(settings, policy, held_out))
    audited = Audited(
        completions[0], audited_problems(held_out[: settings.problems], settings.group_size), completions[1]
    )
    audited, (rows, estimate) = estimated(
        audited,
        policy,
        tokenizer,
        chosen,
        completions=settings.estimated,
        samples=settings.samples,
        seed=seed,
        kept=kept,
        on_values=_stage(progress, f"{name}: values"),
        on_effects=_stage(progress, f"{name}: effects"),
    )
    rollouts, truth = audited.rollouts, audited.truth
    found = audit_policy(
        policy,
        tokenizer,
        methods,
        rollouts,
        truth,
        reward_model=scorer,
        seed=seed,
        kept=kept,
        progress=progress,
        title=f"{name}: ",
    )
    found["rows"].append(_counterfactual(rollouts.rows(rows), truth.rows(rows), seed))
    return {
        "accuracy": asdict(accuracy),
        "tokens": float(rollouts.lengths.double().mean()),
        "values": _values_as_json(estimate),
        **found,
    }


def _completions(settings: TestbedAudit, policy: nn.Module, held_out: Sequence[Problem]) -> tuple[Rollouts, Truth]:
    audited = sample_audited(
        policy,
        build_tokenizer(),
        settings.build_task(),
        held_out[: settings.problems],
        group_size=settings.group_size,
        seed=settings.seed,
    )
    return audited.rollouts, audited.truth


def _counterfactual(rollouts: Rollouts, truth: Truth, seed: int) -> dict[str, Any]:
    """The row of the replacement effect itself as credit, a control that knows what each token does, where it is known.

    Attention sees a step that the answer reads; the effect sees one that only other steps rest on, too.
    """
    assert truth.effect is not None
    (row, *_) = audit({COUNTERFACTUAL: truth.effect}, rollouts, truth, seed=seed).as_json()["rows"]
    row["scores"].pop("replacement", None)
    return {**row, "kind": "control"}


def _values_as_json(estimate: MonteCarloAdvantage) -> dict[str, Any]:
    """How well the Monte-Carlo advantages agree with themselves, for growing numbers of samples."""
    signed, size = (noise_ceilings(estimate, size=of_size) for of_size in (False, True))
    return {
        "completions": len(estimate.mask),
        "samples": estimate.samples,
        "standard_error": float(estimate.standard_error[estimate.mask].mean()),
        "ceilings": [_ceiling(c) for c in signed],
        "size_ceilings": [_ceiling(c) for c in size],
    }


def _ceiling(ceiling: NoiseCeiling) -> dict[str, Any]:
    found = {**asdict(ceiling), "attainable": ceiling.attainable}
    return {name: None if value != value else value for name, value in found.items()}


def _stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """A stage whose length is known once it has begun."""
    begun = False

    def advance(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            progress.stage(name, total)
            begun = True
        progress.advance(done)

    return advance
