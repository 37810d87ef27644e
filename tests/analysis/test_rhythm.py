"""The rhythm analysis against naive loops, on planted couplings, and at its edges."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, replace

import pytest
import reference
import torch
from conftest import make_rollouts, tiny_policy
from scipy import stats

import tokencredit as tc
from tokencredit.analysis import analyse_rhythm, rhythm_curves
from tokencredit.analysis.bootstrap import bootstrap_interval
from tokencredit.analysis.rhythm import coincidence, find_peaks, kurtosis, peak_entropy
from tokencredit.methods.rhythm import Rhythm

ROLLOUTS = make_rollouts((40, 26, 33, 3, 5), (6, 3, 5, 4, 2), (-1,) * 5, seed=1)
M = Rhythm(horizon=(2, 6), window=4, k=2)
LAYERS = [1, 2]  # the middle of four


def naive_curves(policy, rollouts, i: int, m: Rhythm):
    """WAAD, FAI, FAI of the receiver heads, and entropy of completion i."""
    attention = reference.eager_attention(policy, rollouts, i)[LAYERS].flatten(0, 1).tolist()
    prompt, n = int(rollouts.prompt_mask[i].sum()), int(rollouts.lengths[i])
    rows = range(prompt, prompt + n)

    def fai(a, s, low, high):
        ahead = [a[t][s] for t in rows if s + low <= t <= s + high]
        return statistics.fmean(ahead) if ahead else 0.0

    look_back = [statistics.fmean(sum(a[t][s] * (t - s) for s in range(t + 1)) for t in rows) for a in attention]
    spiky = [stats.kurtosis([fai(a, s, 1, 10**9) for s in rows[:-1]]) for a in attention]
    size = max(1, int(m.head_fraction * len(attention)))
    order = sorted(range(len(attention)), key=lambda h: look_back[h])
    receivers = sorted(range(len(attention)), key=lambda h: -spiky[h])[:size]
    local, remote = order[:size], order[-size:]
    return (
        [
            statistics.fmean(sum(attention[h][t][s] * min(t - s, m.window) for s in range(t + 1)) for h in local)
            for t in rows
        ],
        [statistics.fmean(fai(attention[h], s, *m.horizon) for h in remote) for s in rows],
        [statistics.fmean(fai(attention[h], s, *m.horizon) for h in receivers) for s in rows],
        reference.entropies(reference.distributions(policy, rollouts, i)[0]),
    )


def naive_peaks(curve, share: float) -> set[int]:
    n = len(curve)
    return {
        t
        for t in reference.top(curve, share)
        if (t == 0 or curve[t] > curve[t - 1]) and (t == n - 1 or curve[t] >= curve[t + 1])
    }


def test_curves_equal_the_reference():
    policy = tiny_policy().double()
    curves = rhythm_curves(policy, ROLLOUTS, M)
    for i, n in enumerate(ROLLOUTS.lengths.tolist()):
        expected = naive_curves(policy, ROLLOUTS, i, M)
        for name, curve in zip(("waad", "fai", "receiver_fai", "entropy"), expected, strict=True):
            assert getattr(curves, name)[i, :n].tolist() == pytest.approx(curve, abs=1e-6), name
        assert curves.has_fai[i].nonzero().flatten().tolist() == list(range(max(0, n - 2)))
    assert not torch.equal(curves.fai, curves.receiver_fai)


def test_the_report_equals_the_reference():
    """Shuffled shares against the mean over every rotation there is."""
    policy = tiny_policy().double()
    totals = dict.fromkeys(("waad", "fai", "receiver", "met", "met_shuffled", "shared", "shared_shuffled"), 0.0)
    entropy, at_peaks = [], []
    kept = [i for i, n in enumerate(ROLLOUTS.lengths.tolist()) if n >= 4]
    for i in kept:
        near, anchor, receiver, h = naive_curves(policy, ROLLOUTS, i, M)
        n, defined = len(near), len(near) - M.horizon[0]
        waad, fai, other = (
            naive_peaks(near, 0.3),
            naive_peaks(anchor[:defined], 0.3),
            naive_peaks(receiver[:defined], 0.3),
        )
        entropy += h
        at_peaks += [h[t] for t in waad]
        totals["waad"] += len(waad)
        totals["fai"] += len(fai)
        totals["receiver"] += len(other)
        for t in fai:
            totals["met"] += any(t - j in waad for j in range(M.k + 1))
            totals["shared"] += t in other
            for turn in range(n):
                moved = {(u + turn) % n for u in waad}
                totals["met_shuffled"] += any(t - j in moved for j in range(M.k + 1)) / n
            for turn in range(defined):
                totals["shared_shuffled"] += t in {(u + turn) % defined for u in other} and 1 / defined
    report = analyse_rhythm(policy, ROLLOUTS, M, peak_share=0.3, shuffles=5000, batch_size=2)
    assert (report.completions, report.tokens) == (4, 104)
    assert (report.waad_peaks, report.fai_peaks, report.receiver_peaks) == tuple(
        totals[k] for k in ("waad", "fai", "receiver")
    )
    assert report.entropy.overall == pytest.approx(statistics.fmean(entropy), abs=1e-6)
    assert report.entropy.at_peaks == pytest.approx(statistics.fmean(at_peaks), abs=1e-6)
    assert report.entropy.relative_change == pytest.approx(report.entropy.at_peaks / report.entropy.overall - 1)
    for found, met in ((report.follows_waad, "met"), (report.meets_receivers, "shared")):
        assert found.share == pytest.approx(totals[met] / totals["fai"])
        assert found.shuffled == pytest.approx(totals[f"{met}_shuffled"] / totals["fai"], abs=0.01)
        assert found.difference == pytest.approx(found.share - found.shuffled)
        assert found.interval is None, "four completions are too few"


@pytest.mark.parametrize(
    ("curve", "share", "expected"),
    [
        ([0, 3, 0, 2, 0, 1, 0, 0, 0, 0], 0.3, [1, 3, 5]),
        ([0, 3, 0, 2, 0, 1, 0, 0, 0, 0], 0.2, [1, 3]),  # the third is no longer among the top
        ([9, 8, 0, 0, 0, 0, 0, 0, 0, 7], 0.3, [0, 9]),  # ends count, a slope does not
        ([0, 0, 5, 5, 5, 0, 0, 0, 0, 0], 0.3, [2]),  # a plateau is one peak, at its start
    ],
)
def test_peaks_by_hand(curve, share, expected):
    """Padding is no valley, and what stands in it does not count."""
    padded = torch.tensor([[*curve, 99.0, 99.0]])
    mask = torch.arange(len(curve) + 2)[None] < len(curve)
    assert find_peaks(padded, mask, share)[0].nonzero().flatten().tolist() == expected


def test_no_tokens_no_peaks():
    assert not find_peaks(torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.bool), 0.5).any()


def planted(batch: int = 30, length: int = 50, gap: int = 2):
    """Preplans at a tenth of the tokens, each with an anchor `gap` tokens later."""
    rng = torch.Generator().manual_seed(3)
    preplans = torch.zeros(batch, length, dtype=torch.bool)
    for row in preplans:
        row[torch.randperm(length - gap, generator=rng)[: length // 10]] = True
    return preplans, preplans.roll(gap, dims=1), torch.ones_like(preplans)


def test_planted_coupling_is_found():
    preplans, anchors, mask = planted()
    found = coincidence(anchors, preplans, mask, 2, 100, torch.Generator().manual_seed(0))
    assert found.share == 1.0
    assert found.shuffled < 0.5
    assert found.interval[0] > 0.5


def test_coupling_beyond_reach_and_backwards_is_none():
    """What stands before its preplan, or too long after it, follows no preplan."""
    preplans = torch.zeros(1, 20, dtype=torch.bool)
    preplans[0, 10] = True
    for at, share in ((8, 0.0), (10, 1.0), (12, 1.0), (13, 0.0)):
        anchors = torch.zeros_like(preplans)
        anchors[0, at] = True
        rng = torch.Generator().manual_seed(0)
        found = coincidence(anchors, preplans, torch.ones_like(preplans), 2, 2000, rng)
        assert found.share == share
        assert found.shuffled == pytest.approx(3 / 20, abs=0.03)
        assert found.interval is None


def test_unrelated_curves_are_not_coupled():
    """Peaks drawn token by token would make it 0.05 and more: they overlap, and peaks never do."""
    rng = torch.Generator().manual_seed(5)
    curves = torch.rand(2, 400, 60, generator=rng)
    mask = torch.ones(400, 60, dtype=torch.bool)
    anchors, preplans = (find_peaks(curve, mask, 0.2) for curve in curves)
    found = coincidence(anchors, preplans, mask, 3, 50, rng)
    assert abs(found.difference) < 0.02
    assert found.interval[0] < 0 < found.interval[1]


def test_entropy_at_peaks_by_hand():
    entropy = torch.tensor([[1.0, 3.0, 2.0, 9.0], [2.0, 0.0, 4.0, 0.0]]).repeat(4, 1)
    mask = torch.tensor([[True, True, True, False], [True] * 4]).repeat(4, 1)
    peaks = torch.tensor([[False, True, False, False], [True, False, True, False]]).repeat(4, 1)
    found = peak_entropy(entropy, peaks, mask, torch.Generator().manual_seed(0))
    assert (found.at_peaks, found.overall) == (pytest.approx(3), pytest.approx(12 / 7))
    assert found.relative_change == pytest.approx(0.75)
    # No resample goes beyond one kind of completion alone.
    assert 3 / 2 - 1 <= found.interval[0] < 0.75 < found.interval[1] <= 3 / 1.5 - 1


def test_a_policy_without_doubt_has_no_relative_change():
    nothing, peaks = torch.zeros(2, 4), torch.eye(2, 4).bool()
    found = peak_entropy(nothing, peaks, torch.ones(2, 4).bool(), torch.Generator().manual_seed(0))
    assert (found.at_peaks, found.overall, found.relative_change, found.interval) == (0, 0, None, None)


def test_kurtosis_is_that_of_scipy_and_flat_heads_come_last():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 9, generator=rng) ** 4 * 1e-3
    values[:, 2] = 0.25
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    found = kurtosis(values, mask)
    for i, n in enumerate((9, 6)):
        assert found[i, :2].tolist() == pytest.approx(stats.kurtosis(values[i, :2, :n].double().numpy(), axis=1))
        assert found[i, 2] < found[i, :2].min()
    assert torch.isfinite(kurtosis(values, torch.zeros_like(mask))).all()


def test_bootstrap_interval_is_that_of_a_mean():
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(400, 1, dtype=torch.float64, generator=rng)
    low, high = bootstrap_interval(values, lambda means: means[:, 0], rng)
    spread = 1.96 * values.std().item() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean().item() - spread, values.mean().item() + spread), abs=0.01)
    assert bootstrap_interval(values[:8], lambda means: means[:, 0], rng) is not None
    assert bootstrap_interval(values[:7], lambda means: means[:, 0], rng) is None, "far too narrow"
    same = torch.full((50, 1), 0.1, dtype=torch.float64)
    assert bootstrap_interval(same, lambda means: means[:, 0], rng) is None, "it would have no width"


def test_groupings_are_the_methods_own():
    policy = tiny_policy()
    fixed = Rhythm(horizon=(2, 6), local_heads=((1, 3), (2, 0)), global_heads=((2, 1),))
    read = tc.collect(policy, ROLLOUTS, fixed.needs).distances
    (heads,) = read.values()  # of (1, 3), (2, 0) and (2, 1)
    curves = rhythm_curves(policy, ROLLOUTS, fixed)
    torch.testing.assert_close(curves.waad, heads.waad[:, :2].mean(1))
    torch.testing.assert_close(curves.fai, heads.fai[:, 2])
    for strategy in ("local", "global"):
        alike = rhythm_curves(policy, ROLLOUTS, replace(fixed, strategy=strategy))
        assert all(torch.equal(a, b) for a, b in zip(alike, curves, strict=True))
    everyone = rhythm_curves(policy, ROLLOUTS, Rhythm(horizon=(2, 6), heads="all"))
    every = tc.signals.DistanceNeed((1, 2), horizon=(2, 6))
    of_all = tc.collect(policy, ROLLOUTS, tc.Needs(distances=frozenset({every}))).distances[every]
    torch.testing.assert_close(everyone.fai, of_all.fai.mean(1))
    torch.testing.assert_close(everyone.receiver_fai, curves.receiver_fai)


def test_the_seed_decides():
    policy = tiny_policy()
    reports = [analyse_rhythm(policy, ROLLOUTS, M, shuffles=5, seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].follows_waad.share == reports[2].follows_waad.share
    assert reports[0].follows_waad.shuffled != reports[2].follows_waad.shuffled


def test_nothing_is_left_behind():
    policy = tiny_policy().train()
    policy.lm_head.eval()
    flags = [module.training for module in policy.modules()]
    state = torch.get_rng_state()
    analyse_rhythm(policy, ROLLOUTS, M)
    assert [module.training for module in policy.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_short_completions_are_left_out():
    policy = tiny_policy().double()
    with_short = make_rollouts((3, 20, 1, 0, 17), (3,) * 5, (-1,) * 5)
    without = tc.Rollouts(
        *(
            getattr(with_short, f"{part}_{kind}")[[1, 4]]
            for part in ("prompt", "completion")
            for kind in ("ids", "mask")
        )
    )
    found, expected = analyse_rhythm(policy, with_short, M), analyse_rhythm(policy, without, M)
    assert (found.completions, found.tokens) == (2, 37)
    assert replace(found, entropy=expected.entropy) == expected
    assert found.entropy.at_peaks == pytest.approx(expected.entropy.at_peaks)


def test_without_a_row_in_the_horizon_there_is_no_anchor():
    """Ten tokens, and the default horizon starts ten tokens ahead."""
    report = analyse_rhythm(tiny_policy(), make_rollouts((10, 8), (3, 3), (-1, -1)))
    assert (report.fai_peaks, report.receiver_peaks) == (0, 0)
    assert report.waad_peaks >= 2
    for found in (report.follows_waad, report.meets_receivers):
        assert asdict(found) == dict.fromkeys(("share", "shuffled", "difference", "interval"))


def test_a_report_is_json():
    eight = make_rollouts((40, 26, 33, 12, 25, 18, 30, 21), (6, 3, 5, 4, 2, 3, 3, 2), (-1,) * 8, seed=1)
    report = analyse_rhythm(tiny_policy(), eight, M)
    read = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert read["follows_waad"]["interval"] == list(report.follows_waad.interval)


def test_bad_input():
    policy = tiny_policy()
    with pytest.raises(ValueError, match="no completion has 4 tokens"):
        analyse_rhythm(policy, make_rollouts((3, 1), (3, 3), (-1, -1)))
    with pytest.raises(ValueError, match="peak_share"):
        analyse_rhythm(policy, ROLLOUTS, M, peak_share=0)
    with pytest.raises(ValueError, match="shuffles"):
        analyse_rhythm(policy, ROLLOUTS, M, shuffles=0)
