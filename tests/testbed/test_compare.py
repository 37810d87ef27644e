"""Sweeps of training runs: what an arm is, that a sweep resumes and reproduces itself, and what curves come to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import ttest_rel

import tokencredit as tc
from tokencredit.testbed import compare as module
from tokencredit.testbed.compare import DEFAULT_ARMS, Arm, Comparison, Run, split_arms, sweep, train_run
from tokencredit.testbed.controls import oracle_credit, shuffled_credit
from tokencredit.testbed.curves import Interval, area, at_best_rates, final, steps_to, summarise
from tokencredit.testbed.lean import Batch
from tokencredit.testbed.policy import PolicySize, build_tokenizer
from tokencredit.testbed.tasks import task
from tokencredit.testbed.training import Budget
from tokencredit.testbed.warmup import WarmUp

SMALL = Comparison(
    arms=("uniform", "random", "shuffled random"),
    learning_rates=(1e-3,),
    checkpoints=(0,),
    seeds=(0, 1),
    budget=Budget(steps=2, prompts=2, group_size=2, updates_per_step=1, evaluate_every=1),
    training_problems=8,
    evaluation_problems=4,
    warm_up=WarmUp(steps=2, size=PolicySize(width=32, layers=1, heads=2, kv_heads=1, feed_forward=48)),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    for cached in (module._checkpoint, module._problems, module._reward_model):
        cached.cache_clear()


def test_arms():
    assert Arm.parse("lora  shuffled atpo:floor=0.5") == Arm(
        "lora shuffled atpo:floor=0.5", "atpo:floor=0.5", True, True
    )
    assert Arm.parse("arca").lora
    assert Arm.parse("arca").baseline == "lora uniform"
    assert Arm.parse("shuffled oracle").baseline == "uniform"
    assert split_arms("uniform,shuffled  rhythm:strategy=local,q=0.3") == (
        "uniform",
        "shuffled rhythm:strategy=local,q=0.3",
    )
    Comparison(arms=DEFAULT_ARMS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": ("atpo",)}, "'uniform'"),
        ({"arms": ("uniform", "arca")}, "'lora uniform'"),
        ({"arms": ("uniform", "fast atpo")}, r"\[lora \]\[shuffled \]METHOD"),
        ({"arms": ("uniform", "nope")}, "unknown method"),
        ({"seeds": ()}, "seeds must name"),
        ({"learning_rates": (1e-3, 1e-3)}, "each once"),
        ({"task": "nope"}, "unknown task"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changed)


def test_a_run_reproduces_itself():
    run = Run("random", 1e-3, 0, 1)
    first, second = (train_run(SMALL, run) for _ in range(2))
    for timed in ("seconds", "credit_seconds"):
        first.pop(timed), second.pop(timed)
    assert first == second
    assert first["accuracy"].keys() == {1, 2}


def test_a_killed_sweep_goes_on(tmp_path, monkeypatch):
    """Only what is missing is trained; a sweep that is wider keeps what is there."""
    runs = sweep(replace(SMALL, seeds=(0,)), tmp_path)
    assert [r["arm"] for r in runs] == ["uniform", "random", "shuffled random"]
    files = sorted((tmp_path / "runs").glob("*.json"))
    assert len(files) == 3
    marked = {**json.loads(files[0].read_text()), "seconds": -1.0}
    files[0].write_text(json.dumps(marked))
    files[1].unlink()
    told = []
    again = sweep(SMALL, tmp_path, processes=2, on_progress=lambda done, total, _: told.append((done, total)))
    assert told == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert [r["seed"] for r in again] == [0, 0, 0, 1, 1, 1]
    assert sum(r["seconds"] == -1.0 for r in again) == 1
    other = replace(SMALL, budget=replace(SMALL.budget, steps=1))
    assert not any(r.file(other, tmp_path).exists() for r in other.runs())


def batch_of(texts, problems, advantages):
    tokenizer = build_tokenizer()
    ids = [torch.tensor(tokenizer(text).input_ids) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    rollouts = tc.Rollouts(
        torch.ones(len(ids), 1, dtype=torch.long),
        torch.ones(len(ids), 1),
        pad(ids, batch_first=True),
        pad([torch.ones_like(row) for row in ids], batch_first=True),
        group=torch.arange(len(ids)),
    )
    return Batch(torch.nn.Linear(1, 1), rollouts, problems, torch.tensor(advantages), 0)


def test_the_oracle_credits_what_the_task_says():
    gather = task("gather")
    problem = gather.parse({"prompt": "Q:a=1+2,b=2+3?a"})
    texts = ["<think>b=2+3=5;a=1+2=3;</think>\\boxed{a=3}", "<think>a=1+2=4;</think>\\boxed{a=4}"]
    batch = batch_of(texts, [problem, problem], [1.0, -1.0])
    credit = oracle_credit(gather, build_tokenizer())(batch)
    tokens = [build_tokenizer().convert_ids_to_tokens(row) for row in batch.rollouts.completion_ids.tolist()]
    high = credit.weights > credit.weights.median(1, keepdim=True).values * 0.99
    assert "".join(t for t, h in zip(tokens[0], high[0].tolist(), strict=True) if h) == "a=1+2=3;\\boxed{a=3}"
    top = credit.advantages[1].argmin()
    assert "".join(tokens[1][: int(top) + 1]) == "<think>a=1+2=4"
    torch.testing.assert_close(credit.weights.sum(1), batch.rollouts.lengths.float())


def test_shuffled_credit_has_the_same_values_elsewhere():
    gather = task("gather")
    problem = gather.parse({"prompt": "Q:a=1+2,b=2+3?a"})
    batch = batch_of(["<think>b=2+3=5;a=1+2=3;</think>\\boxed{a=3}"] * 2, [problem, problem], [1.0, 0.5])
    assign = oracle_credit(gather, build_tokenizer())
    whole, dealt = assign(batch).advantages, shuffled_credit(assign, 0)(batch).advantages
    assert torch.equal(whole.sort(1).values, dealt.sort(1).values)
    assert not torch.equal(whole, dealt)


def run(arm, seed, accuracy, before=0.4, rate=1e-3):
    return {
        "arm": arm,
        "learning_rate": rate,
        "checkpoint": seed,
        "seed": 0,
        "before": before,
        "accuracy": {str(10 * (i + 1)): value for i, value in enumerate(accuracy)},
        "length": [30.0] * 20,
        "credit_seconds": 1.0,
        "seconds": 10.0,
    }


def test_what_a_curve_comes_to():
    one = run("uniform", 0, [0.6, 0.8])
    assert area(one) == pytest.approx((0.5 + 0.7) / 2)
    assert final(one) == 0.8
    assert (steps_to(one, 0.7), steps_to(one, 0.4), steps_to(one, 0.9)) == (20, 0, float("inf"))


def test_summaries_are_paired_with_the_baseline():
    uniform = [[0.5, 0.7], [0.6, 0.6], [0.4, 0.5]]
    other = [[0.6, 0.8], [0.65, 0.7], [0.5, 0.35]]
    runs = [run("uniform", i, curve) for i, curve in enumerate(uniform)]
    runs += [run("atpo", i, curve) for i, curve in enumerate(other)]
    runs += [run("atpo", i, [0.1, 0.1], rate=1e-2) for i in range(3)]
    base, atpo, fast = summarise(runs, target=0.65)
    areas = [[area(r) for r in runs[3 * k : 3 * k + 3]] for k in (0, 1)]
    expected = ttest_rel(areas[1], areas[0]).confidence_interval(0.95)
    assert atpo.area_gain.low == pytest.approx(expected.low)
    assert atpo.area_gain.high == pytest.approx(expected.high)
    assert base.area_gain is None
    assert fast.area_gain is None  # no uniform run at that rate
    assert (atpo.collapsed, fast.collapsed, base.collapsed) == (0, 3, 0)
    assert (atpo.reached, atpo.steps_to_target, base.steps_to_target) == (2, 20, None)
    assert atpo.credit_share == pytest.approx(0.1)
    chosen = at_best_rates(runs, target=0.65)
    assert [(s.arm, s.learning_rate) for s in chosen] == [("uniform", 1e-3), ("atpo", 1e-3)]


def test_an_arm_is_not_better_for_liking_another_rate():
    """Both are as good at their best; what each is at the other's rate does not count."""
    curves = {("atpo", 1e-3): 0.6, ("atpo", 1e-2): 0.7, ("uniform", 1e-3): 0.7, ("uniform", 1e-2): 0.6}
    runs = [run(arm, i, [value + i / 50] * 2, rate=rate) for (arm, rate), value in curves.items() for i in range(3)]
    gain = next(s for s in at_best_rates(runs, 0.65) if s.arm == "atpo").area_gain
    assert gain.mean == pytest.approx(0)


def test_seeds_of_one_checkpoint_count_as_one():
    runs = [{**run("uniform", i, [0.5 + i / 10] * 2), "seed": seed} for i in range(3) for seed in range(4)]
    assert summarise(runs, 0.9)[0].area.count == 3
    assert summarise(runs, 0.9)[0].runs == 12


def test_an_arm_is_paired_with_its_own_shuffle():
    runs = [run(arm, i, [value] * 2) for arm, value in (("atpo", 0.6), ("shuffled atpo", 0.5)) for i in range(2)]
    atpo, dealt = summarise([run("uniform", 0, [0.5, 0.5]), *runs], 0.9)[1:]
    assert atpo.over_shuffled.mean == pytest.approx(0.075)  # both curves begin at 0.4
    assert dealt.over_shuffled is None


def test_one_run_has_no_interval():
    assert Interval.of([0.5]) == Interval(0.5, None, None, 1)
    with pytest.raises(ValueError, match="no checkpoints"):
        Interval.of([])
