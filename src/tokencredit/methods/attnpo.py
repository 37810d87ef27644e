"""AttnPO: step by step, what the answer reads (arXiv 2602.09953). Redundant steps of good completions are praised less,
essential steps of bad ones are blamed less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from tokencredit.credit import Credit, multiplicative
from tokencredit.head_files import HeadFile
from tokencredit.methods.base import check_choice, check_heads, check_number, shown, step_means
from tokencredit.notices import NO_ANSWER
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals.types import Needs, Signals


@dataclass(frozen=True)
class AttnPO:
    """Weights of steps from the attention that key-focus heads pay them while the answer is written.

    S_k = mean over the heads of (1/|s_k|) sum over answer rows m and step tokens n of A[m,n].
    S_base = p^beta * |F| / |o|, p the fraction of correct completions in the group, |F| the length of the answer and
    |o| that of the completion, in tokens.

    Correct completions of two or more steps are rescaled:
    A_i > 0 and S_k < S_base, once step > delay * (1 - p): w = (1 - delta) * (1 - p^lam * (1 - S_k / S_base)) + delta;
    A_i < 0 and S_k > S_base: w = 0; else, and on answer tokens, w = 1.

    Args:
        heads: the key-focus heads, (layer, head) each; `tc.rank_heads` finds them. Or the path of a head file.
        delay: in training steps; counts as 0 when the step is not known.
        incorrect: also protect the essential steps of incorrect completions.
        baseline_length: |o| is the completion's ("response"), or the prompt counts too ("sequence", as in the
            released code).
        model: the signature of the model that the heads are of, which the policy must be, or be trained from
            (`tokencredit.signals.model_signature`); a head file says so itself.

    Own diagnostics: `attenuated` and `protected`, shares of the completion's tokens; `single_step`, 1 where the
    reasoning has fewer than two steps.
    """

    heads: tuple[tuple[int, int], ...] | str
    beta: float = 2.0
    lam: float = 2.0
    delta: float = 0.0
    delay: float = 1000
    incorrect: bool = False
    baseline_length: str = "response"
    model: str | None = None
    name: ClassVar[str] = "attnpo"
    sign_only: ClassVar[bool] = True
    uniform_because: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "no_answer": NO_ANSWER,
            "single_step": "their reasoning is a single step, and credit is assigned to steps: choose another splitter",
        }
    )

    def __post_init__(self) -> None:
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise ValueError(f"model must be the signature of a model, a text, or None; got {shown(self.model)}")
        if isinstance(self.heads, str | PathLike):
            file = HeadFile.read(self.heads)
            if self.model not in (None, file.model):
                raise ValueError(f"the heads of {self.heads} are those of {file.model}, not of {self.model}")
            object.__setattr__(self, "heads", file.pairs)
            object.__setattr__(self, "model", file.model)
        object.__setattr__(self, "heads", check_heads("heads", self.heads, "tc.rank_heads"))
        check_number("beta", self.beta, 0)
        check_number("lam", self.lam, 0)
        check_number("delta", self.delta, 0, 1)
        check_number("delay", self.delay, 0)
        if not isinstance(self.incorrect, bool):
            raise ValueError(f"incorrect must be true or false; got {shown(self.incorrect)}")
        check_choice("baseline_length", self.baseline_length, ("response", "sequence"))

    @property
    def needs(self) -> Needs:
        models = frozenset() if self.model is None else frozenset({self.model})
        return Needs(answer_heads=frozenset(self._pairs), group=True, models=models)

    @property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        assert not isinstance(self.heads, str)
        return self.heads

    def __call__(self, rollouts: Rollouts, advantages: Tensor, signals: Signals, step: int | None = None) -> Credit:
        signals.check(self.needs)
        steps, correct, group = rollouts.step_index, rollouts.correct, rollouts.group
        if steps is None or correct is None or (group is None and rollouts.group_correct is None):
            raise ValueError("attnpo needs rollouts with step_index (see tc.mark_spans), correct and group")
        answer_length = rollouts.answer_mask.sum(1)
        attended = self._key_focus(signals) * answer_length[:, None]
        score, exists = step_means(attended, torch.where(rollouts.reasoning_mask, steps, -1))
        p = _group_fraction(rollouts)
        length = rollouts.lengths
        if self.baseline_length == "sequence":
            length = length + rollouts.prompt_mask.sum(1)
        base = divided(p**self.beta * answer_length, by=length, otherwise=0.0)[:, None]
        several = (exists.sum(1) >= 2)[:, None]
        outcome = advantages.to(base.device)[:, None]
        started = torch.ones_like(p, dtype=torch.bool) if step is None else step > self.delay * (1 - p)
        attenuate = exists & several & correct[:, None] & (outcome > 0) & (score < base) & started[:, None]
        protect = exists & several & (correct[:, None] | self.incorrect) & (outcome < 0) & (score > base)
        lowered = 1 - (p**self.lam)[:, None] * (1 - divided(score, by=base.expand_as(score), otherwise=1.0))
        weights = torch.where(attenuate, (1 - self.delta) * lowered + self.delta, 1.0)
        weights = torch.where(protect, 0.0, weights)
        on_tokens = torch.cat([weights, torch.ones_like(weights[:, :1])], 1)
        inside = rollouts.reasoning_mask & (steps >= 0)
        index = torch.where(inside, steps, weights.shape[1])
        count = rollouts.lengths.clamp(min=1)

        def share(which: Tensor) -> Tensor:
            return (torch.cat([which, torch.zeros_like(which[:, :1])], 1).gather(1, index) & inside).sum(1) / count

        return multiplicative(
            rollouts,
            advantages,
            on_tokens.gather(1, index),
            attenuated=share(attenuate),
            protected=share(protect),
            single_step=rollouts.has_answer & ~several[:, 0],
        )

    def _key_focus(self, signals: Signals) -> Tensor:
        """(B, T): mean over the heads of the attention of the answer rows."""
        return widened(torch.stack([signals.answer_heads[head] for head in self._pairs])).mean(0)


def length_penalised_reward(correct: Tensor, lengths: Tensor, group: Tensor, alpha: float = 0.2) -> Tensor:
    """AttnPO's reward: correct * (1 - alpha * sigmoid((len - mean) / (std + 1e-8))).

    Args:
        correct: (B,) bool. lengths: (B,) in tokens. group: (B,) long.

    Returns:
        (B,) float32; mean and std (ddof=0) are those of the group's correct completions, and a wrong one gets 0. Use
        `outcome.rloo` on it.
    """
    right = widened(correct)
    values = widened(lengths)
    size = _group_sum(right, group).clamp(min=1)
    mean = _group_sum(right * values, group) / size
    std = (_group_sum(right * (values - mean) ** 2, group) / size).sqrt()
    return (right * (1 - alpha * torch.sigmoid((values - mean) / (std + 1e-8)))).float()


def _group_fraction(rollouts: Rollouts) -> Tensor:
    """(B,): the fraction of correct completions in each completion's group, of which the batch may hold a part."""
    if rollouts.group_correct is not None:
        return widened(rollouts.group_correct)
    correct, group = rollouts.correct, rollouts.group
    assert correct is not None
    assert group is not None
    return _group_sum(widened(correct), group) / _group_sum(torch.ones_like(widened(correct)), group)


def _group_sum(values: Tensor, group: Tensor) -> Tensor:
    """(B,): the sum over each completion's group."""
    index = torch.unique(group, return_inverse=True)[1]
    return torch.zeros_like(values).index_add(0, index, values)[index]
