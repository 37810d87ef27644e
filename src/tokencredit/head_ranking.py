"""How heads order essential and redundant steps, completion by completion, and how sure the best of them are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokencredit.analysis.bootstrap import FEWEST, bootstrap_interval
from tokencredit.head_files import HeadRank, HeldOut
from tokencredit.methods.base import step_means
from tokencredit.precision import widened
from tokencredit.rollouts import Rollouts, exactly
from tokencredit.signals import ModelLayers, Needs, causal_lm, collect

CHANCE = 0.5
"""The expected accuracy of any head if attention has nothing to do with the labels."""


@dataclass(frozen=True, eq=False)
class StepPairs:
    """How N heads order the pairs of an essential and a redundant step of B completions.

    Attributes:
        heads: (layer, head) of each head, in the order of layers and heads.
        right: (B, N) float64, the pairs in which the head attends more to the essential step; ties count half.
        tied: (B, N) long, the pairs in which it attends equally to both.
        later: (B,) long, the pairs in which the essential step comes later than the redundant one.
        pairs: (B,) long.
        prompt: (B,) long. Completions of one prompt are alike, so they count as one observation of the bootstrap, and
            are never split between the two halves of `held_out`.
    """

    heads: tuple[tuple[int, int], ...]
    right: Tensor
    tied: Tensor
    later: Tensor
    pairs: Tensor
    prompt: Tensor

    def ranks(self) -> list[HeadRank]:
        """All heads, best first, without intervals."""
        count = int(self.pairs.sum())
        accuracy, tied = (self.right.sum(0) / count).tolist(), self.tied.sum(0).tolist()
        ranks = [HeadRank(*head, accuracy[i], count, tied[i]) for i, head in enumerate(self.heads)]
        return sorted(ranks, key=lambda r: (-r.sra, r.layer, r.head))

    def with_interval(self, rank: HeadRank) -> HeadRank:
        """The same with the 95 % bootstrap interval over prompts, where it has one (see `bootstrap_interval`)."""
        low, high = self._interval(self.right[:, self.heads.index((rank.layer, rank.head))])
        return rank._replace(low=low, high=high)

    @property
    def later_first(self) -> float:
        """The accuracy of a rule that attends to nothing: the later of two steps is the essential one."""
        return int(self.later.sum()) / int(self.pairs.sum())

    def held_out(self, top: int, seed: int = 0) -> HeldOut | None:
        """The accuracy of the `top` heads on prompts that they were not chosen on.

        The best of many heads look better than they are on the completions that they were chosen on. So the prompts are
        split into two random halves; the best heads of each half order the pairs of the other, and their mean is taken
        over all pairs.

        Returns:
            None where fewer than two prompts have pairs.
        """
        prompts = self.prompt[self.pairs > 0].unique()
        if len(prompts) < 2:
            return None
        mixed = prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))]
        first = torch.isin(self.prompt, mixed[::2])
        scored, best_heads = torch.zeros_like(self.right[:, 0]), []
        for half in (first, ~first):
            best = self._best(half, top)
            scored[~half] = self.right[~half][:, best].mean(1)
            best_heads.append(set(best))
        accuracy = float(scored.sum() / self.pairs.sum())
        return HeldOut(accuracy, *self._interval(scored), len(prompts), len(best_heads[0] & best_heads[1]))

    def _best(self, rows: Tensor, top: int) -> list[int]:
        total = self.right[rows].sum(0).tolist()
        return sorted(range(len(total)), key=lambda i: (-total[i], i))[:top]

    def _interval(self, right: Tensor) -> tuple[float | None, float | None]:
        """Of the fraction of pairs that are right; `right` (B,) is their number in each completion."""
        columns = torch.stack([right, self.pairs.to(right)], 1)
        prompts, row = self.prompt.unique(return_inverse=True)
        by_prompt = torch.zeros(len(prompts), 2, dtype=right.dtype).index_add(0, row, columns)
        by_prompt = by_prompt[by_prompt[:, 1] > 0]
        generator = torch.Generator().manual_seed(0)
        return bootstrap_interval(by_prompt, lambda means: means[:, 0] / means[:, 1], generator) or (None, None)


def above_chance(held_out: HeldOut) -> bool:
    """The interval lies above chance, or, where there is none since all prompts are equal, their accuracy does."""
    if held_out.low is None:
        return held_out.prompts >= FEWEST and held_out.sra > CHANCE
    return held_out.low > CHANCE


def order_steps(
    policy: nn.Module,
    rollouts: Rollouts,
    essential: Tensor,
    mask: Tensor | None = None,
    *,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StepPairs:
    """How every head orders essential and redundant steps; the arguments and errors are those of `rank_heads`.

    Completions without a pair are not read.

    Args:
        on_progress: called with the number of completions that are read, and of those that will be.
    """
    essential, known = _labels(rollouts, essential, mask)
    rows = ((known & essential).any(1) & (known & ~essential).any(1)).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("no completion with an answer has both an essential and a redundant step to compare")
    heads: tuple[tuple[int, int], ...] = ()
    parts = []
    for chunk in rows.split(batch_size or len(rows)):
        scores, _ = step_scores(policy, rollouts.rows(chunk.to(rollouts.completion_ids.device)), batch_size=batch_size)
        heads = tuple((layer, head) for layer, score in scores.items() for head in range(score.shape[1]))
        parts.append(_ordered(torch.cat(list(scores.values()), 1).cpu(), essential[chunk], known[chunk]))
        on_progress(sum(len(part[0]) for part in parts), len(rows))
    right, tied, later, pairs = (torch.cat(values) for values in zip(*parts, strict=True))
    prompt = torch.arange(len(rollouts)) if rollouts.group is None else rollouts.group.cpu()
    return StepPairs(heads, right, tied, later, pairs, prompt[rows])


def step_scores(
    policy: nn.Module, rollouts: Rollouts, *, batch_size: int | None = None
) -> tuple[dict[int, Tensor], Tensor]:
    """The attention that the answer pays to each step.

    Returns:
        Layer -> (B, H, K), for the layers that have attention, by the model's own numbers: mean over the answer's rows
        of the attention of a head, mean over the step's tokens; and (B, K) bool, the steps that have tokens, in
        completions that have an answer.

    Raises:
        ValueError: answers or steps are not marked.
    """
    if rollouts.step_index is None:
        raise ValueError("heads are scored on steps: call tc.mark_spans(rollouts, tokenizer) first")
    layers = ModelLayers.of(causal_lm(policy)).attending
    read = collect(policy, rollouts, Needs(answer_attention=frozenset(layers)), batch_size=batch_size)
    inside = torch.where(rollouts.reasoning_mask, rollouts.step_index, -1)
    scores, exists = {}, torch.zeros(0)
    for layer in layers:
        parts = [step_means(head, inside) for head in widened(read.answer_attention[layer]).unbind(1)]
        scores[layer] = torch.stack([means for means, _ in parts], 1)
        exists = parts[0][1]
    return scores, exists


def count_pairs(rollouts: Rollouts, essential: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,) long: the pairs of an essential and a redundant step in each completion that has an answer.

    The arguments and errors are those of `rank_heads`.
    """
    essential, known = _labels(rollouts, essential, mask)
    return (known & essential).sum(1) * (known & ~essential).sum(1)


def steps_of(rollouts: Rollouts) -> Tensor:
    """(B, K) bool: which steps have tokens in the reasoning of a completion that has an answer.

    Raises:
        ValueError: answers or steps are not marked.
    """
    if rollouts.step_index is None:
        raise ValueError("steps are not known (step_index is None): call tc.mark_spans(rollouts, tokenizer) first")
    inside = torch.where(rollouts.reasoning_mask, rollouts.step_index, -1)
    return torch.stack([(inside == k).any(1) for k in range(max(1, int(inside.max()) + 1))], 1)


def _labels(rollouts: Rollouts, essential: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, K) bool on the CPU: which steps are essential, and which are there and have a label that counts."""
    exists = steps_of(rollouts).cpu()
    steps = exists.shape[1]
    if essential.ndim != 2 or essential.shape[0] != len(rollouts) or essential.shape[1] < steps:
        raise ValueError(f"essential must be ({len(rollouts)}, K) with K >= {steps}; got {tuple(essential.shape)}")
    if mask is not None and mask.shape != essential.shape:
        raise ValueError(f"mask must have the shape of essential; got {tuple(mask.shape)}")
    labels = exactly("essential", essential, torch.bool).cpu()[:, :steps]
    return labels, exists if mask is None else exists & exactly("mask", mask, torch.bool).cpu()[:, :steps]


def _ordered(scores: Tensor, essential: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`right`, `tied`, `later` and `pairs` of `StepPairs`.

    Args:
        scores: (B, N, J), of all heads; J is at most K, and no step beyond it is known.
        essential: (B, K) bool. known: (B, K) bool.
    """
    if not scores.isfinite().all():
        raise ValueError(
            "the attention of the answer is NaN or infinite: the model's weights or precision are at fault"
        )
    row, needed, other = ((known & essential)[:, :, None] & (known & ~essential)[:, None, :]).nonzero(as_tuple=True)
    apart = scores[row, :, needed] - scores[row, :, other]
    empty = torch.zeros(len(scores), scores.shape[1], dtype=torch.float64)
    tied = empty.index_add(0, row, (apart == 0).double())
    right = empty.index_add(0, row, (apart > 0).double()) + tied / 2
    pairs = torch.bincount(row, minlength=len(scores))
    later = torch.bincount(row[needed > other], minlength=len(scores))
    return right, tied.long(), later, pairs
