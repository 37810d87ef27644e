"""Is there a preplan-and-anchor rhythm? The couplings that arXiv 2510.13554 reports, measured on any policy.

The paper compares peaks of WAAD and FAI with shuffled ones. What these words mean exactly is this library's choice:

- A peak is a local maximum (greater than the token before, at least the one after; the ends of a curve count) among the
  curve's top `peak_share` tokens by value. A curve of FAI ends where no row is left in its horizon.
- Shuffled peaks are the completion's own, rotated together by a random number of tokens. That keeps their number and
  their gaps. Tokens drawn one by one would be too easy a rival: peaks are never neighbours, so they come within k
  tokens of more of a completion, and curves that have nothing to do with each other would seem coupled. A trend that
  both curves share still counts as coupling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokencredit.analysis.bootstrap import bootstrap_interval
from tokencredit.methods.base import check_number, top_mask
from tokencredit.methods.rhythm import Rhythm, nearest_and_furthest
from tokencredit.precision import divided, widened
from tokencredit.rollouts import Rollouts
from tokencredit.signals import DistanceNeed, ModelLayers, Needs, causal_lm, collect

_SHORTEST = 4
_UNBOUNDED = (1, 1 << 30)


class RhythmCurves(NamedTuple):
    """What the rhythm is read from, token by token; (B, T) each.

    Attributes:
        waad: of the local heads. fai: of the global heads. Grouped as the method groups them.
        receiver_fai: FAI of the receiver heads: the same share of heads, those whose attention is spikiest.
        entropy: H_t in nats.
        has_fai: bool, some completion row lies in the horizon of the token; elsewhere FAI is 0 and means nothing.
    """

    waad: Tensor
    fai: Tensor
    receiver_fai: Tensor
    entropy: Tensor
    has_fai: Tensor


@dataclass(frozen=True)
class PeakEntropy:
    """Mean entropy in nats; `relative_change` is at_peaks / overall - 1, None where `overall` is 0."""

    at_peaks: float
    overall: float
    relative_change: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Coincidence:
    """The share of FAI peaks that meet other peaks, and that meet them shuffled; None where there is no FAI peak."""

    share: float | None
    shuffled: float | None
    difference: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RhythmReport:
    """Means and shares are over all tokens or peaks; intervals are 95 % bootstrap intervals over completions, None
    where fewer than 8 completions have what is measured, or it is the same in all (see `bootstrap_interval`).

    Attributes:
        completions, tokens: those analysed.
        waad_peaks, fai_peaks, receiver_peaks: of the local, the global and the receiver heads.
        entropy: at WAAD peaks and at all tokens; the interval is of the relative change.
        follows_waad: FAI peaks at a WAAD peak or at most k tokens after one; the interval is of the difference.
        meets_receivers: FAI peaks of the global heads at an FAI peak of the receiver heads. A head may be both, so
            that some of this is by construction.
    """

    completions: int
    tokens: int
    waad_peaks: int
    fai_peaks: int
    receiver_peaks: int
    entropy: PeakEntropy
    follows_waad: Coincidence
    meets_receivers: Coincidence


def analyse_rhythm(
    policy: nn.Module,
    rollouts: Rollouts,
    m: Rhythm | None = None,
    *,
    peak_share: float = 0.2,
    shuffles: int = 200,
    seed: int = 0,
    batch_size: int | None = None,
) -> RhythmReport:
    """Measure the couplings that arXiv 2510.13554 reports, on the completions of four tokens or more.

    Args:
        m: how heads are grouped, WAAD and FAI are read, and k, how far an anchor may follow its preplan.
        peak_share: the share of a curve's tokens among which its peaks are.
        shuffles: how many times each completion's peaks are shuffled.
        seed: of the shuffles and the bootstrap.

    Raises:
        ValueError: no completion has four tokens, or a parameter is out of range.
    """
    m = Rhythm() if m is None else m
    check_number("peak_share", peak_share, 0, 1, open_low=True)
    if not isinstance(shuffles, int) or shuffles < 1:
        raise ValueError(f"shuffles must be a whole number of at least 1; got {shuffles!r}")
    long_enough = rollouts.lengths >= _SHORTEST
    if not long_enough.any():
        raise ValueError(f"no completion has {_SHORTEST} tokens, which a rhythm takes at least")
    found = rhythm_curves(policy, rollouts, m, batch_size=batch_size)
    curves = RhythmCurves(*(values[long_enough].cpu() for values in found))
    mask = rollouts.completion_mask[long_enough].cpu()
    preplans = find_peaks(curves.waad, mask, peak_share)
    anchors = find_peaks(curves.fai, curves.has_fai, peak_share)
    receivers = find_peaks(curves.receiver_fai, curves.has_fai, peak_share)
    rng = torch.Generator().manual_seed(seed)
    return RhythmReport(
        completions=len(mask),
        tokens=int(mask.sum()),
        waad_peaks=int(preplans.sum()),
        fai_peaks=int(anchors.sum()),
        receiver_peaks=int(receivers.sum()),
        entropy=peak_entropy(curves.entropy, preplans, mask, rng),
        follows_waad=coincidence(anchors, preplans, mask, m.k, shuffles, rng),
        meets_receivers=coincidence(anchors, receivers, curves.has_fai, 0, shuffles, rng),
    )


def rhythm_curves(
    policy: nn.Module, rollouts: Rollouts, m: Rhythm | None = None, *, batch_size: int | None = None
) -> RhythmCurves:
    """The curves of every completion; `fai`, with `has_fai` as mask, are scores for `perturb`.

    Receiver heads are those whose column means (the mean attention that later rows of the completion pay a token) have
    the highest kurtosis over the completion's tokens; the last token has no later row and does not count.
    """
    m = Rhythm() if m is None else m
    if m.local_heads is not None:
        m = replace(m, strategy="coupled")  # the one that reads both groups
    (need,) = m.needs.distances
    every = need
    if need.heads is not None:
        whole = tuple(sorted(set(ModelLayers.of(causal_lm(policy)).sample(need))))
        every = DistanceNeed(whole, need.window, need.horizon)
    columns = replace(every, horizon=_UNBOUNDED)
    needs = m.needs | Needs(distances=frozenset({every, columns}), logits=True)
    signals = collect(policy, rollouts, needs, batch_size=batch_size)
    waad, fai = m.group_means(signals.distances[need])
    spikiness = kurtosis(signals.distances[columns].fai, has_row_ahead(rollouts, _UNBOUNDED[0]))
    _, receivers = nearest_and_furthest(spikiness, m.head_fraction)
    every_fai = signals.distances[every].fai
    receiver_fai = every_fai.gather(1, receivers[..., None].expand(-1, -1, every_fai.shape[2])).mean(1)
    assert signals.entropy is not None
    return RhythmCurves(waad, fai, receiver_fai, signals.entropy, has_row_ahead(rollouts, need.horizon[0]))


def has_row_ahead(rollouts: Rollouts, low: int) -> Tensor:
    """(B, T) bool: the completion has a row `low` tokens after the token."""
    ahead = torch.zeros_like(rollouts.completion_mask)
    ahead[:, :-low] = rollouts.completion_mask[:, low:]
    return ahead


def kurtosis(values: Tensor, mask: Tensor) -> Tensor:
    """(B, H, T) -> (B, H) excess kurtosis (Fisher's, biased) over the tokens of a mask (B, T).

    -3, less than any curve that varies can have, where the values do not.
    """
    mask = mask[:, None]
    count = mask.sum(-1).clamp(min=1)
    x = torch.where(mask, widened(values), 0)
    x = torch.where(mask, x - (x.sum(-1) / count)[..., None], 0)
    variance, fourth = (x**2).sum(-1) / count, (x**4).sum(-1) / count
    return divided(fourth, by=variance**2, otherwise=0) - 3


def find_peaks(curve: Tensor, mask: Tensor, share: float) -> Tensor:
    """(B, T) bool: the peaks of a curve (B, T) over the tokens of a mask (B, T)."""
    curve = curve.masked_fill(~mask, -torch.inf)
    padded = torch.nn.functional.pad(curve, (1, 1), value=-torch.inf)
    return top_mask(curve, mask, share) & (curve > padded[:, :-2]) & (curve >= padded[:, 2:])


def peak_entropy(entropy: Tensor, peaks: Tensor, mask: Tensor, rng: torch.Generator) -> PeakEntropy:
    """Entropy at peaks and overall; (B, T) each, at least one peak in all."""
    of = widened(entropy)
    columns = torch.stack([(of * peaks).sum(1), peaks.sum(1), (of * mask).sum(1), mask.sum(1)], 1)

    def change(means: Tensor) -> Tensor:
        at_peaks, peaks, overall, tokens = means.unbind(1)
        return (at_peaks / peaks) / (overall / tokens) - 1

    total = columns.sum(0, keepdim=True)
    at_peaks, count, overall, tokens = total[0].tolist()
    return PeakEntropy(
        at_peaks=at_peaks / count,
        overall=overall / tokens,
        relative_change=float(change(total)) if overall > 0 else None,
        interval=bootstrap_interval(columns, change, rng),
    )


def coincidence(
    anchors: Tensor, others: Tensor, mask: Tensor, reach: int, shuffles: int, rng: torch.Generator
) -> Coincidence:
    """The share of anchors that stand at one of the others, or up to `reach` tokens after one.

    Args:
        anchors, others: (B, T) bool, peaks.
        mask: (B, T) bool, 1s then 0s: where the others may stand, also when shuffled.
    """
    rows = []
    for anchor, other, n in zip(anchors, others, mask.sum(1).tolist(), strict=True):
        at = anchor[:n]
        if at.any():
            turn = torch.randint(n, (shuffles, 1), generator=rng)
            shuffled = other[(torch.arange(n) - turn) % n]
            met = _recent(other[None, :n], reach)[:, at].sum()
            rows.append([int(at.sum()), int(met), int(_recent(shuffled, reach)[:, at].sum()) / shuffles])
    if not rows:
        return Coincidence(None, None, None, None)
    columns = torch.tensor(rows, dtype=torch.float64)
    count, met, by_chance = columns.sum(0).tolist()
    return Coincidence(
        share=met / count,
        shuffled=by_chance / count,
        difference=(met - by_chance) / count,
        interval=bootstrap_interval(columns, lambda means: (means[:, 1] - means[:, 2]) / means[:, 0], rng),
    )


def _recent(marks: Tensor, reach: int) -> Tensor:
    """(S, n) bool: a mark stands here, or up to `reach` tokens before."""
    n = marks.shape[1]
    return torch.stack([torch.nn.functional.pad(marks, (j, 0))[:, :n] for j in range(reach + 1)]).any(0)
