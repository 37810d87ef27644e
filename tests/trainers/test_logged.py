"""What is logged of credit: means over the completions that carry loss, and columns of the table of completions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_run import Keeping, arguments, policy_that_answers, reward, trained
from transformers import GenerationConfig

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig
from tokencredit.trainers.trl_log import CreditLog, advantage_columns, carrying_loss

GRID = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def credit_of(advantages, **diagnostics):
    return SimpleNamespace(
        advantages=torch.tensor(advantages), diagnostics={k: torch.tensor(v) for k, v in diagnostics.items()}
    )


def test_which_completions_carry_loss():
    mask = torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1], [1, 1]]).bool()
    outcome = torch.tensor([1.0, 1.0, 0.0, 0.0, -1.0])
    credit = credit_of([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    assert carrying_loss(credit, outcome, mask).tolist() == [True, False, False, True, True]


def test_means_leave_out_completions_without_loss_and_count_completions_not_batches():
    log = CreditLog(lambda rows: rows)
    log.add(credit_of([[0.0]] * 3, gini=[0.5, 0.0, 0.0]), torch.tensor([True, False, False]), step=0)
    log.add(credit_of([[0.0]] * 3, gini=[0.1, 0.2, 0.7]), torch.tensor([True, True, False]), step=1)
    assert log.step_means() == pytest.approx({"gini": 0.15})
    assert log.step_diagnostics()["gini"].tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert log.means() == pytest.approx({"gini": 0.8 / 3, "with_loss": 0.5})
    assert log.means() == {}
    log.add(credit_of([[0.0]], gini=[0.0]), torch.tensor([False]), step=2)
    assert log.means() == {"with_loss": 0.0}
    assert log.step_means() == {}


def test_columns_of_the_table_are_those_of_the_tokens():
    columns = advantage_columns(
        credit_of([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool(),
    )
    assert columns["advantage_mean"].tolist() == [-0.5, 3.0, 0.0]
    assert columns["advantage_min"].tolist() == [-2.0, 3.0, 0.0]
    assert columns["advantage_max"].tolist() == [1.0, 3.0, 0.0]


def half_equal(completions, prompts, **_):
    """The completions of every other prompt get equal rewards, so they have no advantage."""
    equal = [list(dict.fromkeys(prompts)).index(prompt) % 2 == 0 for prompt in prompts]
    return [0.5 if same else value for same, value in zip(equal, reward(completions), strict=True)]


@pytest.mark.parametrize("timing", ["rollout", "loss"])
def test_masked_truncations_and_equal_rewards_do_not_dilute_what_is_logged(tmp_path, monkeypatch, timing):
    """The logged means are those of `assign`, over the completions with tokens and an advantage."""
    monkeypatch.setattr("tiny_run.reward", half_equal)
    policy = policy_that_answers()
    policy.generation_config = GenerationConfig.from_dict(
        {**policy.generation_config.to_dict(), "eos_token_id": build_tokenizer().convert_tokens_to_ids("</think>")}
    )
    once = {"max_steps": 1, "steps_per_generation": 1, "mask_truncated_completions": True}
    args = CreditGRPOConfig(**arguments(tmp_path, **once), credit_method="entropy", credit_timing=timing)
    trainer = trained(Keeping, args, policy)
    row, (given,) = trainer.state.log_history[0], trainer.kept
    rollouts = tc.mark_spans(tc.Rollouts(*(given[name] for name in GRID)), build_tokenizer())
    assert 0 < row["completions/clipped_ratio"] < 1
    with_loss = (rollouts.lengths > 0) & (given["advantages"] != 0).any(1)
    assert with_loss.any()
    assert with_loss.sum() < (rollouts.lengths > 0).sum() < len(rollouts)
    expected = tc.assign(policy_that_answers(), rollouts, "entropy", advantages=torch.ones(len(rollouts)))
    assert row["credit/with_loss"] == pytest.approx(float(with_loss.float().mean()))
    for name in ("gini", "effective_ratio", "broadcast"):
        assert row[f"credit/{name}"] == pytest.approx(float(expected.diagnostics[name][with_loss].mean()), abs=1e-4)
    assert row["credit/gini"] != pytest.approx(float(expected.diagnostics["gini"].mean()), abs=1e-2)


def test_a_batch_without_loss_logs_its_share_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_run.reward", lambda completions, **_: [0.5 for _ in completions])
    args = CreditGRPOConfig(**arguments(tmp_path, max_steps=1, steps_per_generation=1), credit_method="entropy")
    row = trained(Keeping, args).state.log_history[0]
    assert row["credit/with_loss"] == 0
    assert "credit/gini" not in row


def test_the_table_shows_what_was_trained_on(tmp_path):
    once = {"max_steps": 1, "steps_per_generation": 1, "log_completions": True}
    args = CreditGRPOConfig(
        **arguments(tmp_path, **once), credit_method="atpo", credit_params={"floor": 0.1}, credit_outcome="rloo"
    )
    trainer = trained(Keeping, args)
    logs, (given,) = trainer._logs, trainer.kept
    columns = {name: list(values) for name, values in logs["extra"].items()}
    assert {len(values) for values in columns.values()} == {len(logs["prompt"]), len(logs["advantages"])} == {8}
    expected = tc.outcome.rloo(torch.tensor(list(logs["rewards"]["reward"])), torch.arange(8) // 4)
    assert list(logs["advantages"]) == pytest.approx(expected.tolist())
    trained_on = [row[mask] for row, mask in zip(given["advantages"], given["completion_mask"].bool(), strict=True)]
    for name, of in (("mean", torch.mean), ("min", torch.min), ("max", torch.max)):
        # TRL shuffles the batch between the table and the loss.
        assert sorted(columns[f"credit_advantage_{name}"]) == pytest.approx(sorted(float(of(r)) for r in trained_on))
    assert columns["credit_advantage_min"] != pytest.approx(columns["credit_advantage_max"])
