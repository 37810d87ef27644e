"""Which steps does the answer rest on? Take one out, and see how much less likely the answer becomes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokencredit.head_ranking import steps_of
from tokencredit.inputs import check_model
from tokencredit.precision import widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, collect


def ablate_steps(
    policy: nn.Module,
    rollouts: Rollouts,
    *,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """How much the log-prob of the answer falls when a step is removed; a label of essential steps where none is known.

    The policy reads every completion that has an answer once as it is, and once without each of its steps.

    Args:
        rollouts: with `answer_start` and `step_index`.
        batch_size: of these sequences, how many one forward pass takes. It does not change the result.
        on_progress: called with the number of sequences that are read, and of all of them (`ablated_sequences`).

    Returns:
        (B, K) float32, log-prob of the answer tokens with the step less that without it, in nats: positive where the
        answer needs it; and (B, K) bool, the steps that have tokens, in completions that have an answer. Label steps
        essential with a threshold: `drop > 1.0`.

    Raises:
        ValueError: the policy and the rollouts are swapped, answers or steps are not marked, or a log-prob is not
            finite.
    """
    check_model(policy, rollouts, "tc.ablate_steps(policy, rollouts)")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    exists = steps_of(rollouts)
    assert rollouts.step_index is not None
    inside = torch.where(rollouts.reasoning_mask, rollouts.step_index, -1)
    drop = torch.zeros(exists.shape, device=inside.device)
    cases = [(i, k) for i, k in exists.nonzero().tolist()]
    whole = [(i, -1) for i in dict.fromkeys(i for i, _ in cases)]
    logprob = _answer_logprobs(policy, rollouts, inside, whole + cases, batch_size, on_progress)
    if broken := sorted({i for (i, _), value in logprob.items() if not math.isfinite(value)}):
        raise ValueError(f"completion {broken[0]}: the log-prob of its answer is NaN or infinite")
    for i, k in cases:
        drop[i, k] = logprob[i, -1] - logprob[i, k]
    return drop, exists


def ablated_sequences(rollouts: Rollouts) -> int:
    """How many sequences the policy reads in `ablate_steps`: the completions that have steps, and all their steps."""
    exists = steps_of(rollouts)
    return int(exists.any(1).sum()) + int(exists.sum())


def _answer_logprobs(
    policy: nn.Module,
    rollouts: Rollouts,
    inside: Tensor,
    cases: list[tuple[int, int]],
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[tuple[int, int], float]:
    """Log-prob of the answer of completion i without its step k, for each case (i, k)."""
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(cases), batch_size):
        chunk = cases[start : start + batch_size]
        rows = torch.tensor([i for i, _ in chunk], device=inside.device)
        kept = [rollouts.completion_mask[i] & ((inside[i] != k) | (inside[i] < 0)) for i, k in chunk]
        lengths = torch.stack([mask.sum() for mask in kept])
        ids = pad_sequence([rollouts.completion_ids[i][mask] for (i, _), mask in zip(chunk, kept, strict=True)], True)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        without = Rollouts(rollouts.prompt_ids[rows], rollouts.prompt_mask[rows], ids, mask)
        logprob = widened(_read(policy, without))
        answer_length = rollouts.answer_mask[rows].sum(1)
        position = torch.arange(ids.shape[1], device=ids.device)
        answer = mask & (position >= (lengths - answer_length)[:, None])
        found.update(zip(chunk, (logprob * answer).sum(1).tolist(), strict=True))
        on_progress(len(found), len(cases))
    return found


def _read(policy: nn.Module, rollouts: Rollouts) -> Tensor:
    logprob = collect(policy, rollouts, Needs(logits=True)).logprob
    assert logprob is not None
    return logprob
