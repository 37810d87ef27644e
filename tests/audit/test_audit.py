"""Credit is scored rightly: planted credit gets what it deserves, labels that know nothing give chance."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import tokencredit as tc
from tokencredit.audit import Truth, audit, controls, signs
from tokencredit.audit.measures import MEASURES
from tokencredit.audit.ranking import first_found, midranks, ordered_pairs, rank_correlation

KNOWS_LABELS = ("essential_auroc", "step_ranking", "error_auroc", "error_hit_1", "error_hit_5", "error_reciprocal_rank")


def world(count=60, seed=0, tokens=40):
    """Random completions of six-token steps with random labels: the answer right in about half of them."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(18, tokens + 1, (count,), generator=rng)
    mask = torch.arange(tokens) < lengths[:, None]
    step_index = torch.where(mask, torch.arange(tokens) // 6, -1)
    steps = tokens // 6 + 1
    correct = torch.rand(count, generator=rng) < 0.5
    essential = torch.rand(count, steps, generator=rng) < 0.5
    where = (torch.rand(count, generator=rng) * lengths).long()
    error = (torch.arange(tokens) == where[:, None]) & ~correct[:, None]
    rollouts = tc.Rollouts(
        torch.ones(count, 1, dtype=torch.long), torch.ones(count, 1), torch.ones(count, tokens, dtype=torch.long), mask
    )
    truth = Truth(correct, step_index, essential, torch.ones_like(essential), error)
    return rollouts, truth


def planted(rollouts, truth):
    return signs(truth)[:, None] * controls.oracle(rollouts.completion_mask, truth)


def test_perfect_credit_gets_one_and_inverted_credit_nothing():
    rollouts, truth = world()
    perfect = planted(rollouts, truth)
    inverted = signs(truth)[:, None] * (1 - perfect.abs()) * rollouts.completion_mask
    found = audit({"perfect": perfect, "inverted": inverted}, rollouts, truth)
    for measure in KNOWS_LABELS:
        assert found.row("perfect").scores[measure].estimate.value == pytest.approx(1.0, abs=1e-9)
        if measure != "error_reciprocal_rank":
            assert found.row("inverted").scores[measure].estimate.value == pytest.approx(0.0, abs=1e-9)
        assert found.row("perfect").scores[measure].informative
        assert not found.row("inverted").scores[measure].informative
        assert found.row("oracle").scores[measure].estimate.value == pytest.approx(1.0, abs=1e-9)


def test_no_interval_from_a_few_problems():
    """Completions of one prompt are one observation, however many there are."""
    rollouts, truth = world(40)
    noise = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    for problems in (1, 7):
        few = replace(rollouts, group=torch.arange(40) % problems)
        for score in audit({"c": noise}, few, truth).row("c").scores.values():
            assert score.estimate.low is None
            assert not score.informative


def test_noise_is_hardly_ever_informative():
    stars = cells = 0
    for seed in range(25):
        rollouts, truth = world(60, seed=seed)
        credit = torch.rand(60, 40, generator=torch.Generator().manual_seed(100 + seed))
        found = [s.informative for s in audit({"c": credit}, rollouts, truth).row("c").scores.values()]
        stars, cells = stars + sum(found), cells + len(found)
    assert cells >= 150
    assert stars <= 0.05 * cells


def test_what_only_tells_kinds_of_tokens_apart_is_not_informative():
    """Errors stand on one kind of token, and the credit knows no more than the kind."""
    rollouts, truth = world(200)
    generator = torch.Generator().manual_seed(0)
    digit = (torch.rand(200, 40, generator=generator) < 0.3) & rollouts.completion_mask
    digit |= truth.error
    rollouts = replace(rollouts, completion_ids=torch.where(digit, 7, 3))
    credit = -digit.double()
    score = audit({"c": credit}, rollouts, truth).row("c").scores["error_auroc"]
    assert score.over_shuffled.low > 0
    assert score.estimate.value > 0.8
    assert not score.informative


def test_equal_credit_is_chance_in_any_precision():
    rollouts, truth = world()
    flat = torch.full((60, 40), 0.1, dtype=torch.float64)
    assert audit({"c": flat}, rollouts, truth).row("c").scores["step_ranking"].estimate.value == 0.5


def test_a_method_is_judged_alike_whatever_else_is_audited():
    rollouts, truth = world()
    credit = torch.rand(60, 40, generator=torch.Generator().manual_seed(2))
    alone = audit({"c": credit}, rollouts, truth).row("c")
    assert audit({"b": credit.flip(0), "c": credit}, rollouts, truth).row("c") == alone


def test_steps_are_compared_with_those_of_their_own_form():
    rollouts, truth = world()
    form = torch.randint(2, truth.essential.shape, generator=torch.Generator().manual_seed(4))
    known = replace(truth, essential=form.bool(), form=form, indirect=torch.zeros_like(truth.essential))
    credit = planted(rollouts, known)
    assert "step_ranking" not in audit({"c": credit}, rollouts, known).row("c").scores
    assert "step_ranking" in audit({"c": credit}, rollouts, replace(known, form=None)).row("c").scores


def test_shuffled_labels_give_chance():
    """The labels are drawn apart from the credit, whose structure over positions and steps is that of real methods."""
    rollouts, truth = world(400)
    position = controls.later(rollouts.completion_mask) ** 2
    credit = signs(truth)[:, None] * position
    found = audit({"credit": credit}, rollouts, truth).row("credit").scores
    for measure in ("essential_auroc", "step_ranking", "error_auroc"):
        estimate = found[measure].estimate
        assert estimate.low < 0.5 < estimate.high
        assert estimate.high - estimate.low < 0.15
        assert not found[measure].informative


def test_uniform_credit_is_chance_exactly():
    rollouts, truth = world()
    uniform = signs(truth)[:, None] * rollouts.completion_mask
    found = audit({"uniform": uniform}, rollouts, truth).row("uniform")
    wrong = rollouts.lengths[~truth.correct].double()
    harmonic = torch.tensor([sum(1 / i for i in range(1, int(n) + 1)) for n in wrong])
    expected = {
        "essential_auroc": 0.5,
        "step_ranking": 0.5,
        "error_auroc": 0.5,
        "error_hit_1": (1 / wrong).mean(),
        "error_hit_5": (5 / wrong).mean(),
        "error_reciprocal_rank": (harmonic / wrong).mean(),
    }
    for measure, value in expected.items():
        assert found.scores[measure].estimate.value == pytest.approx(float(value))
    assert found.concentration["gini"].estimate.value == pytest.approx(0, abs=1e-6)
    assert found.concentration["effective_ratio"].estimate.value == pytest.approx(1)


def test_a_shuffled_control_keeps_the_values_and_loses_the_place():
    rollouts, truth = world(200)
    perfect = planted(rollouts, truth)
    dealt = controls.shuffled(perfect, rollouts.completion_mask, torch.Generator().manual_seed(1))
    assert torch.equal(dealt.sort(1).values, perfect.sort(1).values)
    assert (dealt[~rollouts.completion_mask] == 0).all()
    found = audit({"perfect": perfect}, rollouts, truth)
    control = found.row("perfect, shuffled").scores["error_auroc"].estimate
    assert control.low < 0.5 < control.high


def test_an_audit_does_not_depend_on_padding_or_order():
    rollouts, truth = world()
    credit = planted(rollouts, truth) + 0.3 * torch.rand(60, 40, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))

    def wider(x, fill):
        return torch.nn.functional.pad(x[order], (0, 3), value=fill)

    moved = Truth(
        truth.correct[order],
        wider(truth.step_index, -1),
        truth.essential[order],
        truth.labelled[order],
        wider(truth.error, False),
    )
    padded = tc.Rollouts(
        rollouts.prompt_ids,
        rollouts.prompt_mask,
        wider(rollouts.completion_ids, 0),
        wider(rollouts.completion_mask, False),
    )
    a, b = audit({"c": credit}, rollouts, truth), audit({"c": wider(credit, 7.0)}, padded, moved)
    for measure, score in a.row("c").scores.items():
        assert score.estimate.value == pytest.approx(b.row("c").scores[measure].estimate.value)


def test_an_audit_reproduces_itself():
    rollouts, truth = world()
    credit = {"c": planted(rollouts, truth)}
    assert audit(credit, rollouts, truth, seed=5) == audit(credit, rollouts, truth, seed=5)


def test_the_interval_covers_as_often_as_it_says():
    """Credit that is right with a known chance: in 95 of 100 audits the truth lies inside."""
    inside = 0
    for seed in range(60):
        rollouts, truth = world(40, seed=seed)
        noise = torch.randn(40, 40, generator=torch.Generator().manual_seed(1000 + seed))
        # The error's score is drawn from N(1, 1), the others' from N(0, 1): AUROC Phi(1 / sqrt 2).
        credit = -(truth.error.double() + noise)
        estimate = audit({"c": credit}, rollouts, truth).row("c").scores["error_auroc"].estimate
        inside += estimate.low <= 0.5 * (1 + math.erf(0.5)) <= estimate.high
    assert 50 <= inside <= 60


def test_completions_of_one_problem_are_no_independent_observations():
    """Every completion eight times over tells nothing new: the interval stays as wide as that of one each."""
    rollouts, truth = world(40)
    credit = planted(rollouts, truth) + torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    again = torch.arange(40).repeat(8)
    copies = replace(rollouts.rows(again), group=again)
    copied = Truth(
        *(getattr(truth, name)[again] for name in ("correct", "step_index", "essential", "labelled", "error"))
    )
    once = audit({"c": credit}, rollouts, truth).row("c").scores["error_auroc"].estimate
    often = audit({"c": credit[again]}, copies, copied).row("c").scores["error_auroc"].estimate
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.1)


def test_agreement_of_methods():
    rollouts, truth = world()
    mask = rollouts.completion_mask
    rows = {"a": controls.later(mask), "b": -(controls.later(mask) ** 3), "c": controls.earlier(mask), "u": mask * 1.0}
    agreement = audit(rows, rollouts, truth).agreement
    assert agreement["a"]["a"] == pytest.approx(1)
    assert agreement["a"]["b"] == pytest.approx(1)  # sizes
    assert agreement["a"]["c"] == pytest.approx(-1)
    assert math.isnan(agreement["a"]["u"])


def test_credit_that_does_not_vary_correlates_with_nothing():
    rollouts, truth = world()
    known = replace(truth, advantage=torch.rand(60, 40, generator=torch.Generator().manual_seed(0)))
    flat = signs(truth)[:, None] * 0.3 * rollouts.completion_mask
    scores = audit({"flat": flat}, rollouts, known).row("flat").scores
    for measure in ("advantage_signed", "advantage_linear", "advantage_size"):
        assert scores[measure].estimate.value == 0
        assert scores[measure].completions == 60


def test_what_is_not_known_is_not_scored():
    rollouts, truth = world()
    credit = {"c": planted(rollouts, truth)}
    found = audit(credit, rollouts, truth).row("c").scores
    assert not {"advantage_signed", "replacement", "error_auroc_results"} & found.keys()
    all_right = replace(truth, correct=torch.ones_like(truth.correct), error=torch.zeros_like(truth.error))
    assert not {"error_auroc", "error_hit_1"} & audit(credit, rollouts, all_right).row("c").scores.keys()
    full = replace(truth, advantage=planted(rollouts, truth), effect=planted(rollouts, truth))
    full = replace(full, results=rollouts.completion_mask, indirect=truth.essential & (torch.arange(7) % 2 == 0))
    assert audit(credit, rollouts, full).row("c").scores.keys() == MEASURES.keys()
    assert audit(credit, rollouts, full).row("c").scores["advantage_signed"].estimate.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": torch.zeros(60, 3, dtype=torch.bool)}, "error must have the shape"),
        ({"correct": torch.zeros(5, dtype=torch.bool)}, "correct must be"),
        ({"essential": torch.zeros(60, 2, dtype=torch.bool), "labelled": torch.zeros(60, 2) > 0}, "as many labels"),
        ({"advantage": torch.full((60, 40), torch.nan)}, "advantage must be finite"),
        ({"error": torch.ones(60, 40, dtype=torch.bool)}, "marks padding"),
    ],
)
def test_truth_that_does_not_fit_is_refused(change, message):
    rollouts, truth = world()
    with pytest.raises(ValueError, match=message):
        audit({"c": planted(rollouts, truth)}, rollouts, replace(truth, **change))


@pytest.mark.parametrize(
    ("credits", "message"),
    [
        ({}, "at least one"),
        ({"c": torch.zeros(60, 3)}, "the credit of c must be"),
        ({"c": torch.full((60, 40), torch.nan)}, "NaN"),
    ],
)
def test_credit_that_does_not_fit_is_refused(credits, message):
    with pytest.raises(ValueError, match=message):
        audit(credits, *world())


small = st.lists(st.integers(0, 3), min_size=1, max_size=7)


@settings(max_examples=60)
@given(st.data(), small)
def test_ranks_equal_naive_ones(data, values):
    """Pairs, ranks, places and correlation of one completion, by counting."""
    n = len(values)
    among = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    positive = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    other = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    row = torch.tensor([values]).double()
    some, good = torch.tensor([among]), torch.tensor([positive])
    inside = [i for i in range(n) if among[i]]
    for i in inside:
        rank = sum(values[j] < values[i] for j in inside) + (sum(values[j] == values[i] for j in inside) + 1) / 2
        assert midranks(row, some)[0, i] == rank
    pairs = [(i, j) for i in inside for j in inside if positive[i] and not positive[j]]
    right, count = ordered_pairs(row, good, some)
    assert count == len(pairs)
    assert right.item() == pytest.approx(sum((values[i] > values[j]) + (values[i] == values[j]) / 2 for i, j in pairs))
    chance = first_found(row, good, some)[0]
    expected = naive_first_found(values, positive, inside)
    torch.testing.assert_close(
        chance, torch.tensor(expected + [0.0] * (n - len(expected)), dtype=torch.float64), atol=1e-9, rtol=0
    )
    a, b = [values[i] for i in inside], [other[i] for i in inside]
    correlation, varies = rank_correlation(row, torch.tensor([other]).double(), some)
    assert bool(varies) == (len(set(b)) > 1)
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert correlation.item() == pytest.approx(spearmanr(a, b).statistic)
    else:
        assert correlation.item() == 0


def naive_first_found(values, positive, inside):
    """Over all orders of tied tokens, at which place the first positive one comes."""
    orders = [o for o in permutations(inside) if all(values[a] >= values[b] for a, b in pairwise(o))]
    places = [0.0] * len(inside)
    for order in orders:
        first = next((i for i, token in enumerate(order) if positive[token]), None)
        if first is not None:
            places[first] += 1 / len(orders)
    return places
