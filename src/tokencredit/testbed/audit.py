"""Audit every method on the testbed, before and after RL, against all that is known there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import Qwen3ForCausalLM

from tokencredit.audit.audit import audit
from tokencredit.audit.monte_carlo import MonteCarloAdvantage, NoiseCeiling, noise_ceilings
from tokencredit.audit.policies import audit_policy
from tokencredit.audit.truth import Truth
from tokencredit.files import replacing_directory
from tokencredit.head_files import HeadRank
from tokencredit.methods import Method, method
from tokencredit.methods.specs import check_specs, sketch
from tokencredit.rollouts import Rollouts
from tokencredit.testbed.arms import ALL_ARMS, build_arm, heads_in_words
from tokencredit.testbed.audited import estimated, sample_audited
from tokencredit.testbed.evaluate import evaluate
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.quickstart import Progress
from tokencredit.testbed.reward_model import RewardTraining, process_reward_model
from tokencredit.testbed.tasks import Problem, Task, task
from tokencredit.testbed.training import Budget, train
from tokencredit.testbed.warmup import WarmUp, cache_folder, fingerprint, warmed_up_policy

TRAINING_PROBLEMS = 4000
POLICIES = ("before RL", "after RL", "after RL, LoRA")
COUNTERFACTUAL = "replacement effect"


@dataclass(frozen=True)
class TestbedAudit:
    """What an audit is asked.

    Attributes:
        arms: credit methods, as `parse_spec` reads them.
        problems: held-out problems, `group_size` completions each.
        estimated: on how many correct and as many wrong completions the policy itself is asked, by `samples`
            continuations of every prefix and by replacing every token.
        evaluation_problems: held-out problems that each policy's greedy accuracy is measured on.
    """

    arms: tuple[str, ...] = ALL_ARMS
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


def run_audit(asked: TestbedAudit, progress: Progress) -> dict[str, Any]:
    """Audit of the warmed-up policy and of two that were trained from it with uniform credit, JSON-ready.

    One of the two was trained in full, one by a LoRA adapter, for the methods that read one.
    """
    chosen = asked.build_task()
    training = generate_problems(chosen, TRAINING_PROBLEMS, held_out=False, seed=asked.seed)
    progress.stage("warm-up", asked.warm_up.steps)
    checkpoint, _ = warmed_up_policy(chosen, asked.warm_up, lambda n, loss: progress.advance(n, f"loss {loss:.2f}"))
    progress.advance(asked.warm_up.steps)
    scorer = None
    if any(sketch(spec).needs.reward for spec in asked.arms):
        progress.stage("reward model", asked.reward_training.steps)
        scorer = process_reward_model(
            chosen, asked.warm_up, checkpoint, build_tokenizer(), asked.reward_training, progress.advance
        )
        progress.advance(asked.reward_training.steps)
    found = {}
    adapted = all(sketch(spec).needs.adapter for spec in asked.arms)
    for name in POLICIES[-1:] if adapted else POLICIES:
        policy = _policy(name, asked, checkpoint, training, progress)
        methods, ranks = _methods(asked, policy, training)
        if ranks:
            progress.message(heads_in_words(ranks))
        found[name] = _audited(asked, policy, methods, scorer, _stage(progress, f"values {name}"))
        found[name]["heads"] = [rank._asdict() for rank in ranks]
    config = {"command": "audit", "tokencredit": version("tokencredit"), **asdict(asked)}
    return {"config": config, "policies": found}


def _methods(
    asked: TestbedAudit, policy: nn.Module, training: Sequence[Problem]
) -> tuple[dict[str, Method], list[HeadRank]]:
    """The arms, and the policy's heads, best first, where an arm needs them."""
    ranks: list[HeadRank] = []

    def on_heads(found: list[HeadRank]) -> None:
        ranks[:] = found

    return {spec: build_arm(spec, policy, asked.build_task(), training, on_heads) for spec in asked.arms}, ranks


def _audited(
    asked: TestbedAudit,
    policy: nn.Module,
    methods: Mapping[str, Method],
    scorer: nn.Module | None,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """One policy: its accuracy, its completions with what is known about them, and the methods' scores there."""
    chosen, tokenizer = asked.build_task(), build_tokenizer()
    held_out = generate_problems(chosen, asked.evaluation_problems, held_out=True, seed=asked.seed)
    asked_of, seed = held_out[: asked.problems], asked.seed
    audited = sample_audited(policy, tokenizer, chosen, asked_of, group_size=asked.group_size, seed=seed)
    audited, (rows, estimate) = estimated(
        audited,
        policy,
        tokenizer,
        chosen,
        completions=asked.estimated,
        samples=asked.samples,
        seed=seed,
        on_progress=on_progress,
    )
    rollouts, truth = audited.rollouts, audited.truth
    found = audit_policy(policy, tokenizer, methods, rollouts, truth, reward_model=scorer, seed=seed)
    found["rows"].append(_counterfactual(rollouts.rows(rows), truth.rows(rows), seed))
    return {
        "accuracy": asdict(evaluate(policy, tokenizer, chosen, held_out, seed=seed)),
        "tokens": float(rollouts.lengths.double().mean()),
        "values": _values_as_json(estimate),
        **found,
    }


def _counterfactual(rollouts: Rollouts, truth: Truth, seed: int) -> dict[str, Any]:
    """The row of the replacement effect itself as credit, a control that knows what each token does, where it is known.

    Attention sees a step that the answer reads; the effect sees one that only other steps rest on, too.
    """
    assert truth.effect is not None
    (row, *_) = audit({COUNTERFACTUAL: truth.effect}, rollouts, truth, seed=seed).as_json()["rows"]
    row["scores"].pop("replacement", None)
    return {**row, "kind": "control"}


def _policy(
    name: str, asked: TestbedAudit, checkpoint: Qwen3ForCausalLM, training: Sequence[Problem], progress: Progress
) -> nn.Module:
    """The policy of that name, trained now or from the cache."""
    if name == "before RL":
        return checkpoint
    lora = name.endswith("LoRA")
    key = fingerprint(asked.build_task(), asked.warm_up, extra=["trained", asdict(asked.budget), asked.seed, lora])
    folder = cache_folder() / f"trained-{asked.task}-{key}"
    if not folder.is_dir():
        progress.stage(name, asked.budget.steps)
        with tempfile.TemporaryDirectory(prefix="tokencredit-") as scratch:
            trained = train(
                checkpoint,
                build_tokenizer(),
                asked.build_task(),
                method("uniform"),
                training,
                [],
                asked.budget,
                Path(scratch),
                lambda row: progress.advance(row["step"], f"reward {row['reward']:.2f}"),
                lora=lora,
            )
        with replacing_directory(folder) as partial:
            trained.policy.save_pretrained(partial)  # type: ignore[operator]
    if lora:
        return PeftModel.from_pretrained(copy.deepcopy(checkpoint), folder).eval()
    return Qwen3ForCausalLM.from_pretrained(folder).eval()


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
