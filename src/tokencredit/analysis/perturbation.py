"""The perturbation test of arXiv 2510.13554: does the rest of a completion hang on its high-score tokens?

A token is replaced by another that the policy found likely there, and decoding goes on. The more the rest differs from
the original, the lower the Jaccard overlap of the two sets of tokens that follow. The paper reports 0.534 at high-FAI
and 0.631 at low-FAI tokens.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokencredit.analysis.bootstrap import bootstrap_interval
from tokencredit.analysis.decoding import Decoder
from tokencredit.methods.base import check_number, top_mask
from tokencredit.rollouts import Rollouts
from tokencredit.signals.policy import reading


@dataclass(frozen=True)
class PerturbationReport:
    """Means over completions, of the mean over a completion's perturbed tokens.

    Attributes:
        completions: those perturbed. perturbations: tokens replaced in each of the two groups.
        high, low: Jaccard overlap after high-score and after low-score tokens.
        difference: high - low. interval: its 95 % bootstrap interval over completions, None where they tell too
            little of the spread (see `bootstrap_interval`).
        high_is_lower: share of completions that deviate more after high-score than after low-score tokens.
        high_position, low_position: where the tokens stand, 0 for the first and 1 for the last of the completion.
    """

    completions: int
    perturbations: int
    high: float
    low: float
    difference: float
    interval: tuple[float, float] | None
    high_is_lower: float
    high_position: float
    low_position: float


class _Pick(NamedTuple):
    """Token `at` of completion `row`, to be replaced."""

    row: int
    at: int
    high: bool


def perturb(
    policy: nn.Module,
    rollouts: Rollouts,
    scores: Tensor,
    *,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    mask: Tensor | None = None,
    share: float = 0.2,
    per_completion: int = 1,
    top_k: int = 5,
    seed: int = 0,
    batch_size: int | None = None,
) -> PerturbationReport:
    """Replace high-score and low-score tokens, decode on greedily, and compare what follows with the original.

    Position is a confounder: the groups are matched for nothing, and the later a token, the less follows that could
    differ. Read the two Jaccard means beside the two positions.

    The policy and torch's random state are left as they were.

    Args:
        rollouts: greedy completions of this policy; of others, the overlap would measure the sampling too.
        scores: (B, T) float, such as `rhythm_curves(policy, rollouts).fai`.
        max_new_tokens: how long a completion may get, as when the originals were decoded.
        mask: (B, T) bool, the tokens that may be replaced, such as `has_fai`; all by default. The last token of a
            completion never is, for nothing follows it.
        share: the share of those tokens that is high, and that is low, at most 0.5.
        per_completion: how many of each group to replace, one at a time, drawn at random; fewer where there are fewer.
        top_k: the replacement is drawn evenly from the `top_k - 1` likeliest other tokens; with a greedy original,
            these are the rest of the top k. The end of sequence is none of them: nothing would follow it.
        batch_size: how many perturbed completions are decoded at once; all by default.

    Raises:
        ValueError: shapes or parameters are wrong, or no completion has two tokens to choose between.
    """
    _check_parameters(share, per_completion=per_completion, top_k=top_k, batch_size=batch_size)
    _check_tensors(rollouts, scores, mask, max_new_tokens)
    rng = torch.Generator().manual_seed(seed)
    picks = _draw(rollouts, scores, mask, share, per_completion, rng)
    if not picks:
        raise ValueError("no completion has two tokens to choose between, each with a token after it")
    prompts = [ids[real].tolist() for ids, real in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    completions = [
        ids[real].tolist() for ids, real in zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)
    ]
    choices = torch.randint(top_k - 1, (len(picks),), generator=rng).tolist()
    decoder = Decoder(policy, eos_token_id, pad_token_id)
    size = len(picks) if batch_size is None else batch_size
    overlaps: list[float] = []
    with reading(policy):
        for i in range(0, len(picks), size):
            batch = picks[i : i + size]
            prefixes = [prompts[p.row] + completions[p.row][: p.at] for p in batch]
            likely = decoder.likeliest(prefixes, [completions[p.row][p.at] for p in batch], top_k - 1)
            changed = [[*ids, row[c]] for ids, row, c in zip(prefixes, likely, choices[i : i + size], strict=True)]
            followed = decoder.continued(changed, [max_new_tokens - p.at - 1 for p in batch])
            originals = [completions[p.row][p.at + 1 :] for p in batch]
            overlaps += [_jaccard(a, b) for a, b in zip(originals, followed, strict=True)]
    return _report(picks, overlaps, rollouts.lengths.tolist(), rng)


def _draw(
    rollouts: Rollouts, scores: Tensor, mask: Tensor | None, share: float, count: int, rng: torch.Generator
) -> list[_Pick]:
    """As many high as low tokens of each completion that has two to choose between."""
    allowed = torch.zeros_like(rollouts.completion_mask)
    allowed[:, :-1] = rollouts.completion_mask[:, 1:]
    if mask is not None:
        allowed &= mask.to(allowed.device)
    allowed, scores = allowed.cpu(), scores.detach().cpu()
    high = top_mask(scores, allowed, share)
    # Read from the end, ties fall to the later token, so that no token is both high and low.
    low = top_mask(-scores.flip(1), allowed.flip(1), share).flip(1)
    picks = []
    for i, choice in enumerate(allowed.sum(1).tolist()):
        for group, is_high in ((high[i], True), (low[i], False)):
            at = group.nonzero().flatten() if choice >= 2 else group.new_empty(0)
            drawn = at[torch.randperm(len(at), generator=rng)[:count]]
            picks += [_Pick(i, t, is_high) for t in drawn.tolist()]
    return picks


def _jaccard(a: list[int], b: list[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


def _report(picks: list[_Pick], overlaps: list[float], lengths: list[int], rng: torch.Generator) -> PerturbationReport:
    found = defaultdict(list)
    for p, overlap in zip(picks, overlaps, strict=True):
        found[p.row, p.high].append((overlap, p.at / (lengths[p.row] - 1)))
    rows = [
        [fmean(values) for high in (True, False) for values in zip(*found[i, high], strict=True)]
        for i in sorted({p.row for p in picks})
    ]
    columns = torch.tensor(rows, dtype=torch.float64)
    high, high_position, low, low_position = columns.mean(0).tolist()
    return PerturbationReport(
        completions=len(rows),
        perturbations=sum(p.high for p in picks),
        high=high,
        low=low,
        difference=high - low,
        interval=bootstrap_interval(columns, lambda means: means[:, 0] - means[:, 2], rng),
        high_is_lower=float((columns[:, 0] < columns[:, 2]).double().mean()),
        high_position=high_position,
        low_position=low_position,
    )


def _check_parameters(share: float, **counts: int | None) -> None:
    check_number("share", share, 0, 0.5, open_low=True)
    for name, value in counts.items():
        least = 2 if name == "top_k" else 1
        if (value is not None or name != "batch_size") and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")


def _check_tensors(rollouts: Rollouts, scores: Tensor, mask: Tensor | None, max_new_tokens: int) -> None:
    shape = tuple(rollouts.completion_ids.shape)
    for name, tensor in (("scores", scores), ("mask", mask)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape}, one for each completion token; got {tuple(tensor.shape)}"
            )
    if not torch.isfinite(scores[rollouts.completion_mask.to(scores.device)]).all():
        raise ValueError("scores are NaN or infinite on a completion token")
    longest = max(rollouts.lengths.tolist(), default=0)
    if max_new_tokens < longest:
        raise ValueError(f"max_new_tokens must be at least the longest completion, {longest}; got {max_new_tokens}")
