"""verl's own command on real Ray: two FSDP workers over gloo, TransferQueue, and weights that reach the rollouts.

Each run takes one to two minutes, nearly all of it to start.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from run_verl import arguments, finish, policy_that_answers, processes_of, run, start, write_assets

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer

STEPS = 3
RHYTHM = {
    "+algorithm__credit__method": "rhythm",
    "+algorithm__credit__params__strategy": "coupled",
    "+algorithm__credit__params__horizon": "[1,4]",
}
LORA = {
    "actor_rollout_ref__model__lora_rank": 4,
    "actor_rollout_ref__model__lora_alpha": 8,
    # The rollouts' server knows no adapters.
    "actor_rollout_ref__model__lora__merge": True,
    "actor_rollout_ref__actor__optim__lr": 1e-2,
}
MODEL = {
    "actor_rollout_ref__ref__fsdp_config__model_dtype": "fp32",
    "+actor_rollout_ref__ref__fsdp_config__mixed_precision__param_dtype": "fp32",
    "actor_rollout_ref__actor__optim__lr": 1e-2,
}
PACKED = {
    "actor_rollout_ref__model__use_remove_padding": True,
    "actor_rollout_ref__actor__use_dynamic_bsz": True,
    "actor_rollout_ref__actor__ppo_max_token_len_per_gpu": 160,
    "actor_rollout_ref__rollout__log_prob_use_dynamic_bsz": True,
    "actor_rollout_ref__rollout__log_prob_max_token_len_per_gpu": 160,
}
HEADS = ((0, 1), (1, 0))


def credit(mode="tokencredit", **changed):
    return {"trainer__v1__trainer_mode": mode, **changed}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_assets(tmp_path_factory.mktemp("assets"))


OWN_ENGINE = {"VERL_ENGINE_VENDOR": "nobody"}


@pytest.fixture(scope="module")
def verls_own(assets, tmp_path_factory):
    """verl's own trainer, engine and GRPO."""
    out = tmp_path_factory.mktemp("own")
    return run(assets, out, STEPS, OWN_ENGINE, trainer__v1__trainer_mode="recording_sync")


@pytest.fixture(scope="module")
def rhythm(assets, tmp_path_factory):
    """Checkpoints after each step."""
    changed = credit("recording_tokencredit", **RHYTHM, trainer__save_freq=1)
    return run(assets, tmp_path_factory.mktemp("rhythm"), STEPS, **changed)


def expect_weights_in_step(done, within=1e-4):
    """The rollouts' server generates with the probabilities that the trained policy has."""
    assert [row["step"] for row in done.metrics] == list(range(1, STEPS + 1))
    for row in done.metrics:
        assert row["training/rollout_probs_diff_max"] < within


def expect_same_training(first, second):
    for a, b in zip(first.metrics, second.metrics, strict=True):
        for name in ("critic/score/mean", "actor/pg_loss", "actor/grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)
    weights, others = first.weights(STEPS), second.weights(STEPS)
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        torch.testing.assert_close(values, others[name], atol=1e-5, rtol=1e-4)


def rollouts_of(recorded, splitter, answer):
    """Recorded completions as rollouts, marked."""
    pad = torch.nn.utils.rnn.pad_sequence
    rows = list(recorded.values())
    prompts = [row["prompts"].flip(0) for row in rows]
    ids = pad(prompts, batch_first=True).flip(1)
    mask = pad([torch.ones_like(row) for row in prompts], batch_first=True).flip(1)
    completions = [row["responses"] for row in rows]
    grid, real = (
        pad(completions, batch_first=True),
        pad([torch.ones_like(row) for row in completions], batch_first=True),
    )
    rollouts = tc.mark_spans(tc.Rollouts(ids, mask, grid, real), build_tokenizer(), splitter, answer=answer)
    uids = [row["uid"] for row in rows]
    right = torch.tensor([row["rm_scores"].sum() > 0.4 for row in rows])
    return replace(rollouts, group=torch.tensor([uids.index(uid) for uid in uids]), correct=right)


def expect_credit_of_the_library(done, method, splitter="phrases", answer="auto"):
    """At the first step the policy is still the one on disk: tc.assign gives what was trained on, on two workers."""
    own, trained = done.recorded(1, "own"), done.recorded(1)
    rollouts = rollouts_of(own, splitter, answer)
    assert rollouts.has_answer.any()
    outcome = torch.stack([row["advantages"][0] for row in own.values()])
    expected = tc.assign(policy_that_answers(), rollouts, method, outcome, step=1)
    assert (expected.weights[rollouts.completion_mask] != 1).any()
    for i, (key, row) in enumerate(own.items()):
        found = trained[key]["advantages"]
        torch.testing.assert_close(found, expected.advantages[i, : len(row["responses"])], atol=2e-5, rtol=1e-4)
    carrying = outcome != 0
    assert done.metrics[0]["credit/with_loss"] == pytest.approx(carrying.float().mean().item())
    for name, values in expected.diagnostics.items():
        assert done.metrics[0][f"credit/{name}"] == pytest.approx(values[carrying].mean().item(), abs=1e-4), name


def test_uniform_credit_is_verls_grpo(assets, verls_own, tmp_path):
    changed = credit("recording_tokencredit", **{"+algorithm__credit__method": "uniform"})
    done = run(assets, tmp_path, STEPS, **changed)
    expect_weights_in_step(done)
    for step in range(1, STEPS + 1):
        own, trained = done.recorded(step, "own"), done.recorded(step)
        assert own.keys() == trained.keys() == verls_own.recorded(step, "own").keys()
        assert all(torch.equal(own[key]["advantages"], trained[key]["advantages"]) for key in own)
    assert all(row["credit/gini"] == 0 for row in done.metrics)
    expect_same_training(done, verls_own)


def test_rhythm_trains_on_the_credit_of_the_library(rhythm, verls_own):
    expect_weights_in_step(rhythm)
    expect_credit_of_the_library(rhythm, tc.method("rhythm", strategy="coupled", horizon=(1, 4)))
    first, others = rhythm.weights(STEPS), verls_own.weights(STEPS)
    assert any(not torch.allclose(values, others[name], atol=1e-4) for name, values in first.items())


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_groups_are_whole_whatever_the_layout(assets, tmp_path, strategy):
    """Packed micro-batches by tokens; right is what the reward function says beside its score; answers start at a text
    of the user's; twelve completions, that verl makes sixteen, for its mini-batches of eight."""
    changed = {
        "+algorithm__credit__method": "attnpo",
        "+algorithm__credit__params__heads": str([list(pair) for pair in HEADS]).replace(" ", ""),
        "+algorithm__credit__params__delay": 0,
        "+algorithm__credit__params__incorrect": True,
        "+algorithm__credit__splitter": "newline",
        "+algorithm__credit__answer": "'</think>'",
        "+algorithm__credit__correct_reward": "acc",
        "reward__custom_reward_function__name": "variety",
        "actor_rollout_ref__actor__strategy": strategy,
        "data__train_batch_size": 3,
        "actor_rollout_ref__actor__ppo_mini_batch_size": 2,
        **PACKED,
    }
    done = run(assets, tmp_path, 1, **credit("recording_tokencredit", **changed))
    expect_credit_of_the_library(
        done, tc.method("attnpo", heads=HEADS, delay=0, incorrect=True), "newline", answer="</think>"
    )


BFLOAT16 = 2e-2
"""verl sends an adapter merged into the weights in bfloat16."""


def test_arca_compares_the_adapter_on_and_off(assets, tmp_path):
    """Without a KL term: the pass with the adapter off is made for credit alone."""
    done = run(assets, tmp_path, STEPS, **credit(**LORA), **{"+algorithm__credit__method": "arca"})
    expect_weights_in_step(done, BFLOAT16)
    first, *others = done.metrics
    assert first["credit/residual_max"] == 0
    assert first["credit/gini"] == 0
    assert all(row["credit/residual_mean"] > 1e-3 for row in others)
    assert all(row["credit/gini"] > 0.02 for row in others)


@pytest.mark.parametrize("reference", [LORA, MODEL], ids=["adapter", "model"])
def test_divergence_shares_the_reference_pass(assets, tmp_path, reference):
    """With a KL term verl makes the pass over its reference anyway: the adapter off, or a model of its own."""
    changed = {"+algorithm__credit__method": "divergence", "actor_rollout_ref__actor__use_kl_loss": True}
    done = run(assets, tmp_path, STEPS, **credit(**reference, **changed))
    expect_weights_in_step(done, BFLOAT16)
    first, *others = done.metrics
    assert first["credit/gini"] == 0
    assert all(row["credit/gini"] > 0.02 for row in others)


def test_no_credit_is_no_gradient(assets, tmp_path):
    """The negative control: weights of 0 reach the loss, and nothing else does."""
    changed = {
        "+algorithm__credit__method": "random",
        "+algorithm__credit__params__q": 1.0,
        "+algorithm__credit__params__amplification": 0.0,
    }
    done = run(assets, tmp_path, 2, **credit(**changed))
    for row in done.metrics:
        assert row["actor/pg_loss"] == 0
        assert row["actor/grad_norm"] == 0
        assert row["critic/advantages/max"] == row["critic/advantages/min"] == 0
        assert row["critic/score/max"] > row["critic/score/min"]


def test_a_killed_run_resumes_where_it_was(assets, rhythm, tmp_path):
    """A worker dies after the first checkpoint; the run fails, is started again, and ends where it would have."""
    given = arguments(assets, tmp_path, STEPS, **credit("recording_tokencredit", **RHYTHM, trainer__save_freq=1))
    process = start(given, tmp_path)
    saved = tmp_path / "checkpoints/latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(processes_of(process, "ray::WorkerDict")[0], signal.SIGKILL)
    broken = finish(process, tmp_path)
    assert broken.code != 0
    assert not (tmp_path / f"checkpoints/global_step_{STEPS}").exists()
    again = finish(start([*given, "trainer.resume_mode=auto"], tmp_path), tmp_path)
    assert again.code == 0, again.log[-6000:]
    resumed = again.metrics[len(broken.metrics) :]
    assert [row["step"] for row in resumed] == list(range(2, STEPS + 1))
    expect_same_training(replace(again, metrics=resumed), replace(rhythm, metrics=rhythm.metrics[1:]))


def test_workers_without_the_plugin_are_noticed(assets, tmp_path):
    """They have verl's own engine, which ships no signals."""
    given = arguments(assets, tmp_path, 1, **credit(**RHYTHM))
    done = finish(start(given, tmp_path, **OWN_ENGINE), tmp_path)
    assert done.code != 0
    assert "the workers have not shipped what rhythm reads" in done.log
