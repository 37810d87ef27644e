"""The credit that methods assign to a policy's completions, audited and written down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from hashlib import sha256
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.analysis.traces import VIEW, attention_pictures, rounded, trace_rows
from tokencredit.assignment import assignable
from tokencredit.audit.audit import SHUFFLES, AuditRow, Estimate, Score, Scoring, signs
from tokencredit.audit.controls import oracle
from tokencredit.audit.measures import MEASURES
from tokencredit.audit.parts import Parts
from tokencredit.audit.progress import NoProgress, Progress, duration_in_words
from tokencredit.audit.truth import Truth
from tokencredit.methods import Method
from tokencredit.notices import notices_of
from tokencredit.rollouts import Rollouts
from tokencredit.signals import DistanceNeed, FullAttentionLayer, Needs, RewardNeed, Signals, collect
from tokencredit.signals.attention_statistics import HeadDistances
from tokencredit.signals.micro_batches import joined, micro_batches
from tokencredit.signals.types import RewardAttribution

TRACES = 8
"""How many correct completions, and how many wrong ones, are kept to be looked at."""
SCORINGS_OF_A_METHOD = 1 + SHUFFLES + 1
"""A method's own values, their shuffles, and their means by token: each takes as long to score as one control."""
PART_TYPES: tuple[type, ...] = (
    Signals,
    FullAttentionLayer,
    DistanceNeed,
    RewardNeed,
    HeadDistances,
    RewardAttribution,
    AuditRow,
    Score,
    Estimate,
)
"""What the parts of `audit_policy` hold."""
BATCH_SIZE = 32
"""Completions of one part of what is read, unless `audit_policy` is given another number."""


def scores_part(name: str) -> str:
    """The part that holds the scores of the method of that name, which may hold what no file name can."""
    return f"scores/{sha256(name.encode()).hexdigest()[:16]}"


def audit_policy(
    policy: nn.Module,
    tokenizer: Any,
    methods: Mapping[str, Method],
    rollouts: Rollouts,
    truth: Truth,
    *,
    reward_model: Any = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    kept: Parts | None = None,
    progress: Progress | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Audit every method whose signals the policy can give, all from one reading of it.

    Args:
        methods: by the name that the audit calls them.
        rollouts: with `answer_start`, `step_index`, `group` and `correct`, for the methods that read them.
        kept: where what is read of each `batch_size` completions, and the scores of each method, are kept.
        progress: told of two stages, whose names begin with `title`, and of how long they will take.

    Returns:
        `Audit.as_json()` with `left_out`, name -> why; `notices`, name -> where that method left completions uniform;
        and `traces`, some completions with their credit.

    Raises:
        ValueError: no method is left, or the truth does not fit.
    """
    built, left_out = _auditable(methods, policy, reward_model)
    kept, progress = kept or Parts(), progress or NoProgress()
    started = time.perf_counter()
    scoring = Scoring.of(rollouts, truth, seed)
    a_method = (time.perf_counter() - started) / len(scoring.control) * SCORINGS_OF_A_METHOD
    needs = reduce(or_, (m.needs for m in built.values()), VIEW)
    reading = _Reading(policy, rollouts, needs, reward_model, kept, batch_size)
    signals = reading(progress, title, len(built) * a_method)
    outcome = signs(truth).to(rollouts.completion_ids.device)
    credits = {name: m(rollouts, outcome, signals) for name, m in built.items()}
    rows: list[AuditRow] = []
    progress.stage(f"{title}scoring", len(built))
    for number, (name, credit) in enumerate(credits.items()):
        rows += kept.value(scores_part(name), partial(scoring.method_rows, name, credit.advantages))
        progress.advance(number + 1)
    audit = scoring.audit({name: credit.advantages for name, credit in credits.items()}, rows)
    shown, should = _told(truth), oracle(rollouts.completion_mask.cpu(), truth)
    pictures = attention_pictures(policy, rollouts.rows(torch.tensor(shown, dtype=torch.long)))
    traces = [
        {**row, **_labels(truth, should[i], i, len(row["tokens"])), "attention": picture}
        for i, row, picture in zip(
            shown, trace_rows(tokenizer, rollouts, credits, signals, shown), pictures, strict=True
        )
    ]
    return {**audit.as_json(), "left_out": left_out, "notices": notices_of(built, credits), "traces": traces}


def check_auditable(
    methods: Mapping[str, Method], policy: nn.Module, rollouts: Rollouts, truth: Truth, reward_model: Any = None
) -> None:
    """
    Raises:
        ValueError: the policy can give the signals of no method, or the labels are such that nothing can be scored.
    """
    _auditable(methods, policy, reward_model)
    truth.check(rollouts)
    ones = rollouts.completion_mask.cpu().double()
    statistics = (measure(ones, rollouts.completion_mask.cpu(), truth) for measure in MEASURES.values())
    if not any(statistic is not None and statistic.tells.any() for statistic in statistics):
        raise ValueError(
            f"nothing can be scored on these {len(rollouts)} completions, {int(truth.correct.sum())} of them correct: "
            "there must be correct ones of which `essential` calls some steps true and others false, or wrong ones "
            "with a `first_error`"
        )


def _auditable(
    methods: Mapping[str, Method], policy: nn.Module, reward_model: Any
) -> tuple[dict[str, Method], dict[str, str]]:
    built, left_out = assignable(methods, policy, reward_model)
    if not built:
        raise ValueError(f"no method can be audited: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return built, left_out


@dataclass(frozen=True)
class _Reading:
    """What methods need of a policy, read slice by slice; each slice is kept when it has been read."""

    policy: nn.Module
    rollouts: Rollouts
    needs: Needs
    reward_model: Any
    kept: Parts
    batch_size: int

    def __call__(self, progress: Progress, title: str, seconds_after: float) -> Signals:
        """The signals of all completions. Once the first slice is read, progress is told how long the rest takes.

        Args:
            seconds_after: how long it is expected to take to score the methods.
        """
        # The longest completions first: what they need of memory and time, the others need less of.
        slices = micro_batches(self.rollouts, self.batch_size)[::-1]
        missing = [number for number in range(len(slices)) if not self.kept.holds(f"signals/{number}")]
        progress.stage(f"{title}reading", len(self.rollouts))
        parts, done = [], 0
        for number, rows in enumerate(slices):
            started = time.perf_counter()
            device = self.rollouts.completion_ids.device
            parts.append(self.kept.value(f"signals/{number}", partial(self._read, rows), device))
            done += len(rows)
            if missing and number == missing[0]:
                work = [self._width(slices[k]) * len(slices[k]) for k in missing]
                seconds = (time.perf_counter() - started) * sum(work[1:]) / work[0] + seconds_after
                progress.message(
                    f"{title}{len(self.rollouts)} completions, {int(self.rollouts.lengths.sum()):,} tokens: expected "
                    f"time of reading and scoring, from the first {len(rows)}: {duration_in_words(seconds)}"
                )
            progress.advance(done)
        return joined(parts, slices, self.rollouts.completion_ids.shape[1])

    def _read(self, rows: Tensor) -> Signals:
        return collect(self.policy, self.rollouts.rows(rows), self.needs, self.reward_model)

    def _width(self, rows: Tensor) -> int:
        """The columns of the slice that are not padding."""
        part = self.rollouts.rows(rows)
        return int(part.prompt_mask.any(0).sum() + part.completion_mask.any(0).sum())


def _told(truth: Truth) -> list[int]:
    """The first completions that have something to tell: steps with labels, or an error."""
    told = (truth.labelled & truth.essential).any(1) & truth.correct, truth.error.any(1)
    return [row for kind in told for row in kind.nonzero().flatten().tolist()[:TRACES]]


def _labels(truth: Truth, should: Tensor, i: int, length: int) -> dict[str, Any]:
    """What is known about a completion, in the words of `testbed.traces`."""
    error = truth.error[i].nonzero().flatten().tolist()
    return {
        "correct": bool(truth.correct[i]),
        "step_index": truth.step_index[i, :length].tolist(),
        "essential": [
            bool(essential) if labelled else None
            for essential, labelled in zip(truth.essential[i].tolist(), truth.labelled[i].tolist(), strict=True)
        ],
        "first_error": error[0] if error else None,
        "truth": rounded(should[:length]),
        "advantage": None if truth.advantage is None else rounded(truth.advantage[i, :length]),
    }
