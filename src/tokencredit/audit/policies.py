"""The credit that methods assign to a policy's completions, audited and written down."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn

from tokencredit.audit.audit import audit, signs
from tokencredit.audit.controls import oracle
from tokencredit.audit.truth import Truth
from tokencredit.methods import Method
from tokencredit.rollouts import Rollouts
from tokencredit.signals import collect
from tokencredit.steps import TokenPieces

TRACES = 2
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
        `Audit.as_json()` with `left_out`, name -> why, and `traces`, some completions with their credit.

    Raises:
        ValueError: no method is left, or the truth does not fit.
    """
    built, left_out = {}, {}
    for name, m in methods.items():
        if m.needs.adapter and not hasattr(policy, "disable_adapter"):
            left_out[name] = "it reads a LoRA adapter, and this policy has none"
        elif m.needs.reward and reward_model is None:
            left_out[name] = "it reads a reward model, and none is given"
        else:
            built[name] = m
    if not built:
        raise ValueError(f"no method can be audited: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    needs = reduce(or_, (m.needs for m in built.values()))
    signals = collect(policy, rollouts, needs, reward_model, batch_size=batch_size)
    outcome = signs(truth).to(rollouts.completion_ids.device)
    credits = {name: m(rollouts, outcome, signals).advantages for name, m in built.items()}
    found = audit(credits, rollouts, truth, seed=seed)
    return {**found.as_json(), "left_out": left_out, "traces": _traces(credits, rollouts, truth, tokenizer)}


def _traces(credits: Mapping[str, Tensor], rollouts: Rollouts, truth: Truth, tokenizer: Any) -> list[dict[str, Any]]:
    """The first completions that have something to tell: steps with labels, or an error."""
    told = (truth.labelled & truth.essential).any(1) & truth.correct, truth.error.any(1)
    rows = [row for kind in told for row in kind.nonzero().flatten().tolist()[:TRACES]]
    pieces_of = TokenPieces(tokenizer)
    should = oracle(rollouts.completion_mask.cpu(), truth)

    def values(grid: Tensor, row: int) -> list[float]:
        return [round(v, 5) for v in grid[row, : int(rollouts.lengths[row])].tolist()]

    return [
        {
            "prompt": tokenizer.decode(rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist()),
            "tokens": pieces_of(rollouts.completion_ids[row, : int(rollouts.lengths[row])].tolist()),
            "correct": bool(truth.correct[row]),
            "truth": values(should, row),
            "advantage": None if truth.advantage is None else values(truth.advantage, row),
            "credit": {name: values(credit, row) for name, credit in credits.items()},
        }
        for row in rows
    ]
