"""The credit that methods assign to a policy's completions, audited and written down."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.analysis.traces import VIEW, attention_pictures, rounded, trace_rows
from tokencredit.assignment import assignable
from tokencredit.audit.audit import audit, signs
from tokencredit.audit.controls import oracle
from tokencredit.audit.truth import Truth
from tokencredit.methods import Method
from tokencredit.notices import notices_of
from tokencredit.rollouts import Rollouts
from tokencredit.signals import collect

TRACES = 8
"""How many correct completions, and how many wrong ones, are kept to be looked at."""


def audit_policy(
    policy: nn.Module,
    tokenizer: Any,
    methods: Mapping[str, Method],
    rollouts: Rollouts,
    truth: Truth,
    *,
    reward_model: Any = None,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Audit every method whose signals the policy can give, all from one reading of it.

    Args:
        methods: by the name that the audit calls them.
        rollouts: with `answer_start`, `step_index`, `group` and `correct`, for the methods that read them.

    Returns:
        `Audit.as_json()` with `left_out`, name -> why; `notices`, name -> where that method left completions uniform;
        and `traces`, some completions with their credit.

    Raises:
        ValueError: no method is left, or the truth does not fit.
    """
    built, left_out = assignable(methods, policy, reward_model)
    if not built:
        raise ValueError(f"no method can be audited: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    needs = reduce(or_, (m.needs for m in built.values()), VIEW)
    signals = collect(policy, rollouts, needs, reward_model, batch_size=batch_size)
    outcome = signs(truth).to(rollouts.completion_ids.device)
    credits = {name: m(rollouts, outcome, signals) for name, m in built.items()}
    found = audit({name: credit.advantages for name, credit in credits.items()}, rollouts, truth, seed=seed)
    shown, should = _told(truth), oracle(rollouts.completion_mask.cpu(), truth)
    rows = trace_rows(tokenizer, rollouts, credits, signals, shown)
    pictures = attention_pictures(policy, rollouts.rows(torch.tensor(shown, dtype=torch.long)))
    traces = [
        {**row, **_labels(truth, should[i], i, len(row["tokens"])), "attention": picture}
        for i, row, picture in zip(shown, rows, pictures, strict=True)
    ]
    return {**found.as_json(), "left_out": left_out, "notices": notices_of(built, credits), "traces": traces}


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
