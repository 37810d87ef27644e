"""long_gather, and what it has in common with two_hop: position does not tell which steps are essential."""

from __future__ import annotations

import re
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from tokencredit.testbed.policy import PolicySize, build_tokenizer
from tokencredit.testbed.tasks import label_tokens, task
from tokencredit.testbed.tasks.long_gather import FILLER, LongGather, with_recheck
from tokencredit.testbed.warmup import WarmUp, fingerprint, recipe_for, warmed_up_policy

BALANCED = pytest.mark.parametrize("name", ["long_gather", "two_hop"])


@cache
def taught(name: str):
    """2000 problems: the completion, its labels, its labels on tokens."""
    chosen, rng, tokenizer = task(name), Random(0), build_tokenizer()
    rows = []
    for _ in range(2000):
        problem = chosen.problem(rng)
        completion = chosen.teach(problem, rng)
        labels = chosen.label(problem, completion)
        pieces = tokenizer.tokenize(completion + "<eos>")
        rows.append((problem, completion, labels, label_tokens(labels, pieces)))
    return rows


def auroc(scores, positive) -> float:
    positive = np.array(positive)
    n, m = positive.sum(), (~positive).sum()
    return (rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m)


def step_positions(labels, _):
    last = max(1, len(labels.steps) - 1)
    return [k / last for k in range(len(labels.steps))], [s.essential for s in labels.steps]


def token_positions(_, on_tokens):
    found = [(t / len(on_tokens.step_index), k) for t, k in enumerate(on_tokens.step_index) if k >= 0]
    return [t for t, _ in found], [on_tokens.essential[k] for _, k in found]


@BALANCED
@pytest.mark.parametrize("positions", [step_positions, token_positions])
@pytest.mark.parametrize("only_correct", [False, True])
def test_position_does_not_tell_essential_from_redundant(name, positions, only_correct):
    found = [positions(labels, on) for _, _, labels, on in taught(name) if labels.correct or not only_correct]
    pooled = auroc([p for where, _ in found for p in where], [e for _, essential in found for e in essential])
    within = np.mean([auroc(*row) for row in found if 0 < sum(row[1]) < len(row[1])])
    assert pooled == pytest.approx(0.5, abs=0.03)
    assert within == pytest.approx(0.5, abs=0.03)


@BALANCED
def test_the_balance_is_measured_by_something_that_can_fail(name):
    """Without the completions that end on filler or a distractor, late steps are essential."""
    found = [step_positions(labels, on) for _, _, labels, on in taught(name) if labels.steps[-1].essential]
    assert auroc([p for where, _ in found for p in where], [e for _, essential in found for e in essential]) > 0.55


@BALANCED
def test_first_errors_lie_everywhere_in_the_reasoning(name):
    wrong = [(c, labels) for _, c, labels, _ in taught(name) if not labels.correct]
    start = len("<think>")
    relative = [(labels.first_error - start) / (c.index("</think>") - start) for c, labels in wrong]
    assert np.histogram(relative, bins=5, range=(0, 1))[0].min() > 0.1 * len(wrong)


@BALANCED
def test_completions_are_long_and_fit(name):
    lengths = [len(on.step_index) for _, _, _, on in taught(name)]
    assert 80 < np.mean(lengths) < 120
    assert 140 < max(lengths) <= task(name).max_new_tokens


@BALANCED
def test_a_recheck_of_what_matters_is_as_often_essential_as_what_it_checks(name):
    first = second = 0
    for _, completion, labels, _ in taught(name):
        for checked, check in zip(labels.steps, labels.steps[1:], strict=False):
            if completion.startswith("wait", check.start) and (checked.essential or check.essential):
                first, second = first + checked.essential, second + check.essential
    assert min(first, second) > 300
    assert first == pytest.approx(second, rel=0.2)


@BALANCED
def test_filler_is_redundant(name):
    said = [
        (step.essential, completion[step.start : step.end])
        for _, completion, labels, _ in taught(name)
        for step in labels.steps
    ]
    assert {text for essential, text in said if "=" not in text} == set(FILLER)
    assert not any(essential for essential, text in said if text in FILLER)


def test_a_recheck_repeats_the_value_or_takes_a_slip_back():
    rng = Random(0)
    said = {with_recheck("a=3+4=", 7, 0.5, rng) for _ in range(500)}
    slips = {f"a=3+4={digit};waita=3+4=7;" for digit in "012345689"}
    assert said == {"a=3+4=7;", "a=3+4=7;waita=3+4=7;"} | slips


def test_by_hand():
    chosen = LongGather()
    problem = chosen.parse({"prompt": "Q:a=6+9,b=2+3,c=2+4,d=6*8?d,b"})
    completion = "<think>c=2+4=6;hm;b=2+3=9;waitb=2+3=5;so;d=6*8=7;</think>\\boxed{d=7,b=5}"
    labels = chosen.label(problem, completion)
    essential = [completion[s.start : s.end] for s in labels.steps if s.essential]
    assert essential == ["waitb=2+3=5;", "d=6*8=7;"]
    # The slip in b was taken back: the first error that matters is d's.
    assert labels.first_error == re.search("7;</think>", completion).start()


def test_the_warm_up_starts_on_easy_problems(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path))
    tiny = {"batch_size": 2, "size": PolicySize(width=16, layers=1, heads=1, kv_heads=1, feed_forward=16)}

    def weights(level, steps, easy_steps):
        recipe = WarmUp(steps=steps, easy_steps=easy_steps, **tiny)
        policy, _ = warmed_up_policy(LongGather(level=level), recipe)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    easy = weights(level=1, steps=4, easy_steps=0)
    assert torch.equal(weights(level=2, steps=4, easy_steps=4), easy)
    assert not torch.equal(weights(level=2, steps=4, easy_steps=0), easy)
    assert not torch.equal(weights(level=2, steps=12, easy_steps=8), weights(level=1, steps=12, easy_steps=0))


def test_a_task_has_warm_up_settings_of_its_own_which_a_caller_may_change():
    assert recipe_for("gather", seed=3) == WarmUp(seed=3)
    assert recipe_for("long_gather").easy_steps > 0
    assert recipe_for("long_gather", easy_steps=0, steps=20).steps == 20
    easy, plain = (fingerprint(LongGather(), recipe_for("long_gather", easy_steps=n)) for n in (10, 0))
    assert easy != plain
