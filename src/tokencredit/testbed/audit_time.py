"""How long an audit of the testbed will take: the counts of its settings, times what a short test measures here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import torch

from tokencredit.analysis.decoding import continuations
from tokencredit.audit.audit import Scoring
from tokencredit.audit.parts import Parts
from tokencredit.audit.policies import BATCH_SIZE, SCORINGS_OF_A_METHOD, scores_part
from tokencredit.audit.truth import Truth
from tokencredit.rollouts import Rollouts
from tokencredit.signals.policy import reading
from tokencredit.testbed.audit_policies import REWARD_MODEL, model_part, slug, trained_folder
from tokencredit.testbed.policy import build_policy, build_tokenizer
from tokencredit.testbed.reward_model import reward_model_folder
from tokencredit.testbed.warmup import warm_up_folder

if TYPE_CHECKING:
    from tokencredit.testbed.audit import TestbedAudit

_DEPARTING = 0.5
"""The share of a completion's tokens that could well have been another, and so are sampled."""
_ROWS, _STEPS = (32, 512), 8
"""Of the test of decoding: how many completions at once, and how many tokens of each."""


@dataclass(frozen=True)
class _Speed:
    """Seconds, measured with an untrained policy of the same size.

    Attributes:
        token: of reading and training on one token.
        step, row: of one step of decoding, and of each row in it.
    """

    token: float
    step: float
    row: float

    def decoding(self, rows: float, steps: float, at_once: int = 512) -> float:
        """Of `rows` completions of `steps` tokens, so many of them at once."""
        return steps * (self.row * rows + self.step * max(1.0, rows / at_once))


def expected_seconds(settings: TestbedAudit, kept: Parts) -> float:
    """Of what is neither kept nor in the cache. A rough figure: how long completions will be is a guess."""
    prompt, length = _lengths(settings)
    speed = _speed(settings, prompt, length)
    work = _of_models(settings, speed, prompt, length)
    missing = {part for part in work if not kept.holds(part)} - {part for part in work if _cached(settings, part)}
    each = _of_policy(settings, speed, prompt, length)
    of_policies = (
        seconds
        for name in settings.policies
        for part, seconds in each.items()
        if not kept.holds(f"{slug(name)}/{part}")
    )
    return sum(work[part] for part in missing) + sum(of_policies)


def _of_models(settings: TestbedAudit, speed: _Speed, prompt: float, length: float) -> dict[str, float]:
    """The seconds in which each model is trained."""
    warm_up, reward, budget = settings.warm_up, settings.reward_training, settings.budget
    rollouts = budget.prompts * budget.group_size
    # A step of RL decodes until its longest completion ends, reads its completions once, and trains on each once.
    decoding = speed.decoding(rollouts, settings.build_task().max_new_tokens)
    of_step = decoding + 1.3 * rollouts * (prompt + length) * speed.token
    return {
        model_part("before RL"): warm_up.steps * warm_up.batch_size * (prompt + length) * speed.token,
        **{model_part(name): budget.steps * of_step for name in settings.policies if name != "before RL"},
        REWARD_MODEL: (
            reward.steps * reward.batch_size * (prompt + length) * speed.token if settings.reads_reward_model else 0.0
        ),
    }


def _cached(settings: TestbedAudit, part: str) -> bool:
    if part == model_part("before RL"):
        return warm_up_folder(settings.build_task(), settings.warm_up).is_dir()
    if part == REWARD_MODEL:
        return reward_model_folder(settings.build_task(), settings.warm_up, settings.reward_training).is_dir()
    return trained_folder(settings, lora=part == model_part("after RL, LoRA")).is_dir()


def _of_policy(settings: TestbedAudit, speed: _Speed, prompt: float, length: float) -> dict[str, float]:
    """The seconds of each part of what is done with one policy. What is read in slices counts by its last slice."""
    longest, completions = settings.build_task().max_new_tokens, settings.problems * settings.group_size
    estimated = min(2 * settings.estimated, completions)
    places = estimated * length
    of_method = SCORINGS_OF_A_METHOD * _scoring(completions, int(length))
    return {
        "accuracy": speed.decoding(settings.evaluation_problems, longest, 300),
        "completions": speed.decoding(completions, longest, 300),
        "heads": speed.decoding(300, longest, 300) if settings.finds_heads else 0.0,
        "values": speed.decoding(places * _DEPARTING * settings.samples, length / 2),
        "effects": speed.decoding(places, length / 2),
        f"signals/{(completions - 1) // BATCH_SIZE}": completions * (prompt + length) * speed.token,
        **{scores_part(arm): of_method for arm in settings.arms},
    }


def _lengths(settings: TestbedAudit) -> tuple[float, float]:
    """Tokens of prompts and completions, on average, as the teacher writes them."""
    task, tokenizer, rng = settings.build_task(), build_tokenizer(), Random("lengths")
    problems = [task.problem(rng) for _ in range(32)]
    prompts = [len(tokenizer(problem.prompt).input_ids) for problem in problems]
    completions = [len(tokenizer(task.teach(problem, rng)).input_ids) for problem in problems]
    return sum(prompts) / 32, sum(completions) / 32


def _speed(settings: TestbedAudit, prompt: float, length: float) -> _Speed:
    policy = build_policy(settings.warm_up.size)
    ids = torch.full((32, int(prompt + length)), 5)

    def train() -> None:
        policy(input_ids=ids, labels=ids).loss.backward()

    def decode(rows: int, steps: int) -> None:
        with reading(policy):
            prefix = [5] * int(prompt + length / 2)
            continuations(policy, [prefix], [steps], eos_token_id=-1, pad_token_id=0, copies=rows)

    def step(rows: int) -> float:
        """Of decoding; that of the prefix's own tokens is left out."""
        one, many = (_seconds(partial(decode, rows, steps)) for steps in (1, _STEPS))
        return max(0.0, many - one) / (_STEPS - 1)

    few, many = map(step, _ROWS)
    row = max(0.0, many - few) / (_ROWS[1] - _ROWS[0])
    return _Speed(_seconds(train) / ids.numel(), max(0.0, few - _ROWS[0] * row), row)


def _scoring(completions: int, length: int) -> float:
    """Seconds in which one credit is scored by all measures, on labels that are made up."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(completions, length, dtype=torch.bool)
    step_index = (torch.arange(length) * 6 // length).expand(completions, length)
    correct = torch.arange(completions) % 2 == 0
    advantage = torch.randn(completions, length, generator=generator)
    truth = Truth(
        correct=correct,
        step_index=step_index,
        essential=torch.arange(6).expand(completions, 6) % 2 == 0,
        labelled=torch.ones(completions, 6, dtype=torch.bool),
        error=(torch.arange(length) == length // 2) & ~correct[:, None],
        advantage=advantage,
        effect=(advantage > 1).float(),
    )
    ids = torch.ones(completions, length, dtype=torch.long)
    rollouts = Rollouts(ids[:, :1], mask[:, :1], ids, mask)
    controls = len(Scoring.of(rollouts, truth).control)
    return _seconds(lambda: Scoring.of(rollouts, truth)) / controls


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two times: the first call sets things up."""
    return min(_once(work), _once(work))


def _once(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
