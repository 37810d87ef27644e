"""How much each token of a completion is worth to a reward model (P2T: process to token).

The influence of a token is the reward that would be lost if a null token stood in its place. `exact` replaces every
token in turn; `taylor` estimates all of them from one gradient, grad R(E) . (e_i - e_null); `integrated` averages the
gradient along the straight way from a completion of null tokens, so that influences sum to the whole difference, given
points enough; with a null token near zero that takes more than is practical, for models that normalise what they read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.padding import padded_left
from tokencredit.precision import widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals.placement import device_of, embedding_count
from tokencredit.signals.policy import frozen
from tokencredit.signals.reward_layout import Layout, lay_out
from tokencredit.signals.reward_model import RewardModel, null_embedding
from tokencredit.signals.types import RewardAttribution, RewardNeed

_MAX_REPLACED = 32
"""Copies of a completion, each with one token replaced, that go through the reward model at once."""


def attribute_reward(reward_model: RewardModel, rollouts: Rollouts, need: RewardNeed, policy: Any) -> RewardAttribution:
    """Reward and influence of every completion token; the reward model must be in evaluation mode.

    Args:
        policy: the transformers model whose embeddings a reward function takes, where it has none of its own.

    Raises:
        ValueError: the null token does not exist, a process reward model meets rollouts without steps, or the tokens
            are not the reward model's.
    """
    if torch.is_inference_mode_enabled() and need.estimator != "exact":
        raise ValueError(
            f"estimator {need.estimator!r} takes a gradient, which torch.inference_mode() forbids: leave it, or use "
            "torch.no_grad() in its place"
        )
    with torch.no_grad():
        null = null_embedding(reward_model, need.null, policy)
    together = reward_model.pads and need.estimator != "exact"
    size = max(1, len(rollouts)) if together else 1
    slices = [rollouts.rows(slice(i, i + size)) for i in range(0, max(1, len(rollouts)), size)]
    parts = [_Batch(reward_model, rows, policy).attribute(need, null) for rows in slices]
    return RewardAttribution.join(parts).to(rollouts.completion_ids.device)


_Found = tuple[Tensor, Tensor, bool]
"""Influence (R, n, G) of each position on each target, rewards (R, K), and whether the segments are steps."""


class _Batch:
    """Completions as the reward model reads them: R rows of n positions, padded on the left, with K segments."""

    def __init__(self, reward_model: RewardModel, rollouts: Rollouts, policy: Any) -> None:
        self._reward_model, self._rollouts = reward_model, rollouts
        layouts = [lay_out(reward_model, rollouts, i) for i in range(len(rollouts))]
        self._embeddings, self._mask = _embed(reward_model.embed(policy), [layout.ids for layout in layouts])
        device, n = self._mask.device, self._mask.shape[1]
        self._ends = _ends(layouts, n).to(device)
        shares = [
            (row * rollouts.completion_ids.shape[1] + token, row * n + n - len(layout.ids) + position, share)
            for row, layout in enumerate(layouts)
            for token, position, share in layout.shares
        ]
        self._token = torch.tensor([token for token, _, _ in shares], dtype=torch.long, device=device)
        self._position = torch.tensor([position for _, position, _ in shares], dtype=torch.long, device=device)
        self._share = torch.tensor([share for _, _, share in shares], device=device)
        self._replaceable = torch.zeros_like(self._mask)
        self._replaceable.view(-1)[self._position] = True

    def attribute(self, need: RewardNeed, null: Tensor) -> RewardAttribution:
        estimate = {"taylor": self._taylor, "exact": self._exact, "integrated": self._integrated}[need.estimator]
        influence, rewards, by_step = estimate(null, need)
        on_tokens = torch.stack([self._on_tokens(values) for values in influence.unbind(-1)], -1)
        steps = self._rollouts.step_index if by_step else None
        segment = torch.where(self._rollouts.completion_mask, 0 if steps is None else steps, -1).to(rewards.device)
        inside, index = segment >= 0, segment.clamp(min=0)
        own = index if need.backward == "per_step" else torch.zeros_like(index)
        return RewardAttribution(
            reward=torch.where(inside, rewards.gather(1, index), 0.0).float(),
            influence=torch.where(inside, on_tokens.gather(2, own[..., None])[..., 0], 0.0).float(),
            segment=segment,
            covered=self._on_tokens(torch.ones_like(influence[..., 0])) > 0,
        )

    def _taylor(self, null: Tensor, need: RewardNeed) -> _Found:
        return self._slopes(self._embeddings, null, need)

    def _integrated(self, null: Tensor, need: RewardNeed) -> _Found:
        """The slopes averaged over midpoints of the path from null tokens to E."""
        # Made from its null end, in float32: in bfloat16 E - (E - null) would be rounding where null is near zero.
        start = torch.where(self._replaceable[..., None], null, self._embeddings).float()
        away, kind = self._embeddings.float() - start, self._embeddings.dtype
        ahead = [(j + 0.5) / need.path_points for j in range(need.path_points)]
        slopes = torch.stack([self._slopes((start + a * away).to(kind), null, need)[0] for a in ahead])
        with torch.no_grad():
            return slopes.mean(0), *self._rewards(self._embeddings)

    def _slopes(self, at: Tensor, null: Tensor, need: RewardNeed) -> _Found:
        """The gradient of each target at some embeddings, times e - e_null; and the rewards there."""
        at, away = at.detach().requires_grad_(), self._embeddings - null
        with frozen(self._reward_model.module), torch.enable_grad():
            rewards, by_step = self._rewards(at)
            *others, last = _targets(rewards, need).sum(0).unbind()
            if not rewards.requires_grad:
                raise ValueError(
                    "the reward does not depend on the embeddings in a way that can be differentiated (is it computed "
                    'under no_grad?): use estimator="exact"'
                )
            # The last backward pass frees what the forward pass has kept as it goes.
            gradients = [torch.autograd.grad(target, at, retain_graph=True)[0] for target in others]
            gradients += torch.autograd.grad(last, at)
        return torch.stack([(widened(g) * away).sum(-1) for g in gradients], -1), rewards.detach(), by_step

    def _exact(self, null: Tensor, need: RewardNeed) -> _Found:
        """What each target of the one row loses when a position is replaced."""
        with torch.no_grad():
            rewards, by_step = self._rewards(self._embeddings)
            whole = _targets(rewards, need)
            lost = whole.new_zeros(self._mask.shape[1], whole.shape[1])
            replaceable = self._replaceable[0].nonzero().flatten()
            at_once = min(_MAX_REPLACED, self._reward_model.most_rows)
            for start in range(0, len(replaceable), at_once):
                positions = replaceable[start : start + at_once]
                copies = self._embeddings.repeat(len(positions), 1, 1)
                copies[torch.arange(len(positions)), positions] = null
                lost[positions] = whole - _targets(self._rewards(copies)[0], need)
        return lost[None], rewards, by_step

    def _rewards(self, embeddings: Tensor) -> tuple[Tensor, bool]:
        """(R, K) in float64, 0 where a completion has no such segment, and whether the segments are steps."""
        scores = self._reward_model(embeddings, self._mask.expand(len(embeddings), -1))
        if scores.ndim == 1:
            return widened(scores)[:, None], False
        if self._rollouts.step_index is None:
            raise ValueError("a process reward model scores steps: call tc.mark_spans(rollouts, tokenizer) first")
        ends = self._ends.expand(len(embeddings), -1)
        return torch.where(ends >= 0, widened(scores).gather(1, ends.clamp(min=0)), 0.0), True

    def _on_tokens(self, values: Tensor) -> Tensor:
        """(R, n) at the reward model's positions -> (R, T) on the completion's tokens."""
        grid = torch.zeros(self._rollouts.completion_ids.numel(), dtype=values.dtype, device=values.device)
        shared = values.reshape(-1)[self._position] * self._share.to(values)
        return grid.index_add_(0, self._token, shared).view(self._rollouts.completion_ids.shape)


def _targets(rewards: Tensor, need: RewardNeed) -> Tensor:
    """(R, K) -> (R, G): what is attributed: the sum of the rewards (G = 1), or each of them (G = K)."""
    return rewards if need.backward == "per_step" else rewards.sum(1, keepdim=True)


def _embed(embed: nn.Module, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Embeddings (R, n, D) of rows of tokens, padded on the left, and (R, n) bool, the tokens."""
    count, largest = embedding_count(embed), max(max(ids) for ids in rows)
    if largest >= count:
        raise ValueError(
            f"token {largest} is not in the reward model's vocabulary of {count}: where it has another "
            "tokenizer than the policy, pass tc.RewardModel(model, tokenizer=..., policy_tokenizer=...)"
        )
    ids, mask = padded_left(rows, 0, device_of(embed, torch.device("cpu")))
    embeddings = embed(ids)
    return embeddings, mask.to(embeddings.device)


def _ends(layouts: list[Layout], n: int) -> Tensor:
    """(R, K): the position at which each step is read; -1 where a completion has no such step."""
    ends = torch.full((len(layouts), 1 + max((k for x in layouts for k in x.ends), default=0)), -1)
    for row, layout in enumerate(layouts):
        for k, position in layout.ends.items():
            ends[row, k] = n - len(layout.ids) + position
    return ends
