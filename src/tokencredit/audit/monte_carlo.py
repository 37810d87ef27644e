"""The true advantage of each token, by Monte Carlo, as VinePPO's (Kazemnejad et al. 2024, arXiv 2410.01679):

    V_t = P(right | prompt, y_1 ... y_t),    A_t = V_t - V_{t-1}

VinePPO samples every V_t apart, so what it finds at a token that could hardly have been another is mostly noise. Here
only what could have been otherwise is sampled. With q_t = 1 - pi(y_t), which the policy tells exactly, and U_t, the
value of y_1 ... y_{t-1} with anything but y_t next, which continuations that depart from the completion at t tell:

    V_T = success(y),    V_{t-1} = (1 - q_t) V_t + q_t U_t,    A_t = q_t (V_t - U_t)

All are linear in the U_t, so the estimates are unbiased, as VinePPO's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokencredit.analysis.decoding import Decoding, Start, Success, scored, success_after, token_lists
from tokencredit.audit.ranking import rank_correlation
from tokencredit.methods.base import check_number
from tokencredit.rollouts import Rollouts
from tokencredit.signals import collect
from tokencredit.signals.types import Needs

_READ_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class MonteCarloAdvantage:
    """Values and advantages by M sampled departures from each place of each completion. On the CPU.

    Behind the last token, where nothing is left to sample, the value is the completion's own success, however it ended.
    So the advantages of a completion add up to its success less V_0.

    Attributes:
        success: (B,) float32, of the completions as they are.
        departure: (B, T) float32, q_t; 0 on padding and where it is negligible, which makes A_t 0.
        departed: (B, T, M) float32, the success of each continuation that departs at t; 0 where none does.
        mask: (B, T) bool, the completion tokens.
    """

    success: Tensor
    departure: Tensor
    departed: Tensor
    mask: Tensor

    @property
    def samples(self) -> int:
        """M."""
        return self.departed.shape[2]

    @property
    def value(self) -> Tensor:
        """(B, T + 1) float32: V_0 ... V_T, 0 beyond the completion."""
        within = torch.arange(self.mask.shape[1] + 1) <= self.mask.sum(1, keepdim=True)
        return (self._value * within).float()

    @property
    def advantage(self) -> Tensor:
        """(B, T) float32: A_t, 0 on padding."""
        return (self.departure * (self._value[:, 1:] - self.departed.double().mean(2))).float()

    @property
    def value_error(self) -> Tensor:
        """(B, T + 1) float32: the standard error of V_t, 0 behind the last token.

        That of U_t is binomial, sqrt(p (1 - p) / M) with p = (k + 1) / (M + 2), the mean of the Beta posterior after k
        of M successes, so that no success does not pass for certainty. Too large where success is graded.
        """
        q = self.departure.double()
        return _backward((1 - q) ** 2, q**2 * self._departed_variance, torch.zeros(len(q))).sqrt().float()

    @property
    def standard_error(self) -> Tensor:
        """(B, T) float32: that of A_t, 0 on padding; U_t is sampled apart from V_t, which rests on later departures."""
        variance = self.value_error[:, 1:].double() ** 2 + self._departed_variance
        return (self.departure * variance.sqrt()).float()

    @property
    def halves(self) -> Tensor:
        """(2, B, T) float32: the advantages by the even and by the odd samples, as many of each."""
        half = self.samples // 2
        return torch.stack([replace(self, departed=self.departed[..., i : 2 * half : 2]).advantage for i in (0, 1)])

    def first(self, samples: int) -> MonteCarloAdvantage:
        """The estimate that the first `samples` of the M departures give."""
        if not 1 <= samples <= self.samples:
            raise ValueError(f"{samples} samples asked for of an estimate by {self.samples}")
        return replace(self, departed=self.departed[..., :samples])

    @property
    def _value(self) -> Tensor:
        """(B, T + 1) float64; the completion's success beyond it."""
        q = self.departure.double()
        return _backward(1 - q, q * self.departed.double().mean(2), self.success)

    @property
    def _departed_variance(self) -> Tensor:
        p = (self.departed.double().sum(2) + 1) / (self.samples + 2)
        return p * (1 - p) / self.samples


def _backward(factor: Tensor, added: Tensor, last: Tensor) -> Tensor:
    """(B, T + 1) float64: x_T is `last` (B,), and x_{t-1} = factor_t x_t + added_t."""
    found = [last.double()]
    for t in reversed(range(factor.shape[1])):
        found.append(factor[:, t] * found[-1] + added[:, t])
    return torch.stack(found[::-1], 1)


@dataclass(frozen=True)
class NoiseCeiling:
    """How well a Monte-Carlo advantage agrees with itself: Spearman within completions, averaged.

    Attributes:
        samples: M. completions: those in which both halves vary, the ones that are averaged.
        raw: the correlation of two halves of M // 2 samples; NaN where no completion varies.
        corrected: that of two estimates by M samples (Spearman-Brown, 2 r / (1 + r)); 0 where `raw` is negative.
    """

    samples: int
    completions: int
    raw: float
    corrected: float

    @property
    def attainable(self) -> float:
        """What the true advantage would reach against this estimate: the root of its reliability."""
        return self.corrected**0.5


def noise_ceiling(estimate: MonteCarloAdvantage, *, size: bool = False) -> NoiseCeiling:
    """Split-half reliability of the advantages; with `size`, of their sizes |A_t|.

    The q_t are exact and so the same in both halves: they alone order most sizes.
    """
    if estimate.samples < 2:
        raise ValueError("one sample a place cannot be split in halves")
    even, odd = estimate.halves.abs() if size else estimate.halves
    correlation, odd_varies = rank_correlation(even, odd, estimate.mask)
    both = odd_varies & rank_correlation(odd, even, estimate.mask)[1]
    raw = correlation[both].mean()
    positive = raw.clamp(min=0)
    return NoiseCeiling(estimate.samples, int(both.sum()), float(raw), float(2 * positive / (1 + positive)))


def noise_ceilings(estimate: MonteCarloAdvantage, *, size: bool = False) -> list[NoiseCeiling]:
    """`noise_ceiling` by the first 2, 4, 8, ... samples, up to M: which M is enough."""
    counts = [2**k for k in range(1, estimate.samples.bit_length())]
    return [noise_ceiling(estimate.first(count), size=size) for count in counts]


def monte_carlo_advantage(
    policy: nn.Module,
    rollouts: Rollouts,
    success: Success,
    *,
    samples: int,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    negligible: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> MonteCarloAdvantage:
    """Sample `samples` departures from every place of every completion, at temperature 1, without top-k or top-p.

    The policy and torch's random state are left as they were. The same seed and batch size give the same samples.

    Args:
        policy: a transformers causal LM, or a PEFT model around one; the one that the completions are judged under.
        max_new_tokens: how long a completion may get as a whole; a departure after t tokens has the rest.
        negligible: places that are left with less than this probability are not sampled. A_t is 0 there, and off by
            that probability at most; V_t by the sum of those behind it.
        batch_size: continuations decoded at once; at least one prefix's `samples`.
        on_progress: called with how many continuations are done, and of how many.

    Raises:
        ValueError: `samples` is less than 2, a completion is longer than `max_new_tokens`, success is not in [0, 1].
    """
    decoding = Decoding(samples, max_new_tokens, eos_token_id, pad_token_id, batch_size, seed, on_progress)
    decoding.check(rollouts, least_samples=2)
    check_number("negligible", negligible, 0, 1)
    prompts, completions = token_lists(rollouts)
    own = torch.tensor(scored(success, list(enumerate(completions))))
    logprob = collect(policy, rollouts, Needs(logits=True), batch_size=_READ_AT_ONCE).logprob
    assert logprob is not None
    departure = -torch.expm1(logprob.cpu().clamp(max=0))
    mask = rollouts.completion_mask.cpu()
    asked = mask & (departure >= negligible)
    starts = [
        Start(row, prompts[row], completions[row][:t], (completions[row][t],)) for row, t in asked.nonzero().tolist()
    ]
    departed = torch.zeros(*mask.shape, samples)
    departed[asked] = success_after(policy, starts, success, decoding)
    return MonteCarloAdvantage(own, departure * asked, departed, mask)
