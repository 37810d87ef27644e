"""The trainer adapter on TRL's real trainer."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from tiny_run import (
    DATASET,
    Keeping,
    arguments,
    credit_by_completion,
    expect_same_credit,
    passes,
    policy_that_answers,
    reward,
    trained,
    weights,
)
from transformers import Qwen3Config, Qwen3ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

import tokencredit as tc
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")


@pytest.mark.parametrize("timing", ["rollout", "loss"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_uniform_credit_is_grpo_bit_for_bit(tmp_path, loss_type, timing):
    """The loss is given (B, T) in place of (B,), and after five steps the weights are the same."""
    given = arguments(tmp_path, loss_type=loss_type, max_steps=5)
    plain = trained(GRPOTrainer, GRPOConfig(**given))
    credit = trained(CreditGRPOTrainer, CreditGRPOConfig(**given, credit_timing=timing))
    assert torch.equal(weights(plain), weights(credit))
    start = torch.cat([p.detach().flatten() for p in policy_that_answers().parameters()])
    assert not torch.equal(weights(plain), start)


class Watching(CreditGRPOTrainer):
    """Keeps what credit was assigned to, and what the loss was given."""

    def _assign(self, batch):
        self.scored = batch
        return super()._assign(batch)

    def _compute_loss(self, model, inputs):
        self.given = inputs
        return super()._compute_loss(model, inputs)


def test_the_loss_sees_the_credit_of_assign(tmp_path):
    args = CreditGRPOConfig(
        **arguments(tmp_path, max_steps=1, steps_per_generation=1, log_completions=True),
        credit_method="atpo",
        credit_params={"floor": 0.1},
    )
    trainer = trained(Watching, args)
    scored, given = trainer.scored, trainer.given
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    rollouts = tc.mark_spans(tc.Rollouts(*(scored[n] for n in names)), build_tokenizer())
    expected = tc.assign(policy_that_answers(), rollouts, tc.method("atpo", floor=0.1), scored["advantages"])
    assert rollouts.has_answer.any()
    assert (expected.weights[rollouts.has_answer].std(1) > 0.01).any()
    for i, ids in enumerate(torch.cat([given["prompt_ids"], given["completion_ids"]], 1)):
        j = (rollouts.input_ids == ids).all(1).nonzero()[0, 0]  # TRL shuffles the batch
        torch.testing.assert_close(given["advantages"][i], expected.advantages[j], atol=1e-5, rtol=1e-4)


def test_methods_are_told_group_and_correctness(tmp_path):
    def parity(completions, **_):
        return [float(len(text) % 2) for text in completions]

    class Spying(CreditGRPOTrainer):
        def _assign(self, batch):
            self.seen = (self._groups(len(batch["completion_ids"])), self._last_rewards.clone())
            return super()._assign(batch)

    args = CreditGRPOConfig(
        **arguments(tmp_path, max_steps=1),
        credit_method="attnpo",
        credit_params={"heads": [[1, 0]]},
        credit_correct_reward="parity",
    )
    trainer = Spying(
        policy_that_answers(),
        [reward, parity],
        args=args,
        train_dataset=DATASET,
        processing_class=build_tokenizer(),
    )
    trainer.train()
    told, rewards = trainer.seen
    assert told["group"].tolist() == [i // 4 for i in range(16)]
    assert told["correct"].tolist() == (rewards[:, 1] >= 1).tolist()
    assert told["correct"].any()
    assert not told["correct"].all()


def test_a_users_splitter_is_used(tmp_path):
    asked = []

    def splitter(text):
        asked.append(text)
        return []

    args = CreditGRPOConfig(**arguments(tmp_path, max_steps=1, credit_answer="end_of_reasoning"))
    trained(CreditGRPOTrainer, args, splitter=splitter)
    assert asked
    assert all(text.endswith("</think>") for text in asked)


def test_an_unknown_correctness_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the reward functions: reward"):
        trained(CreditGRPOTrainer, CreditGRPOConfig(**arguments(tmp_path), credit_correct_reward="nope"))


def test_it_logs_diagnostics_and_time(tmp_path):
    args = CreditGRPOConfig(**arguments(tmp_path), credit_method="random")
    history = trained(CreditGRPOTrainer, args).state.log_history
    logged = [row for row in history if "credit/gini" in row]
    assert len(logged) == 2  # four updates, two generation batches
    assert all(0 < float(row["credit/gini"]) < 0.5 for row in logged)
    assert all(float(row["credit/seconds"]) > 0 for row in logged)


def test_arca_trains_a_lora_policy(tmp_path):
    args = CreditGRPOConfig(**arguments(tmp_path), credit_method="arca")
    trainer = trained(CreditGRPOTrainer, args, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    rows = [row for row in trainer.state.log_history if "credit/residual_mean" in row]
    assert float(rows[0]["credit/residual_mean"]) == 0
    assert float(rows[0]["credit/gini"]) == 0
    assert float(rows[-1]["credit/residual_mean"]) > 0
    assert float(rows[-1]["credit/gini"]) > 0


def test_arca_without_an_adapter_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="peft_config"):
        trained(CreditGRPOTrainer, CreditGRPOConfig(**arguments(tmp_path), credit_method="arca"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"credit_method": "nope"}, "Valid methods"),
        ({"credit_params": {"q": 1}}, "Valid parameters"),
        ({"credit_params": "[1]"}, "credit_params"),
        ({"credit_splitter": "nope"}, "phrases, newline, paragraph"),
        ({"credit_kernels": "nope"}, "torch, fused, triton"),
    ],
)
def test_a_bad_config_is_refused_when_it_is_made(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        CreditGRPOConfig(**arguments(tmp_path), **changed)


def test_a_plain_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="CreditGRPOConfig"):
        trained(CreditGRPOTrainer, GRPOConfig(**arguments(tmp_path)))


def test_parameters_may_be_json(tmp_path):
    args = CreditGRPOConfig(**arguments(tmp_path), credit_method="atpo", credit_params='{"floor": 0.25}')
    assert args.build_credit_method() == tc.method("atpo", floor=0.25)


def test_p2t_trains_with_a_reward_model(tmp_path):
    config = PolicySize(width=32, layers=1, heads=2, kv_heads=1, feed_forward=48)
    policy = build_policy(config)
    scorer = Qwen3ForSequenceClassification(Qwen3Config(**{**policy.config.to_dict(), "num_labels": 1}))
    args = CreditGRPOConfig(**arguments(tmp_path, credit_method="p2t", max_steps=1))
    with pytest.raises(ValueError, match="pass reward_model="):
        trained(CreditGRPOTrainer, args)
    trainer = trained(CreditGRPOTrainer, args, reward_model=scorer)
    logged = trainer.state.log_history[0]
    assert 0 < logged["credit/softmax_effective_ratio"] <= 1
    assert logged["credit/unmapped"] == 0
    assert all(p.grad is None for p in scorer.parameters())


IN_BOTH_TIMINGS = [("atpo", {}), ("rhythm", {"horizon": (1, 4)}), ("entropy", {}), ("surprisal", {}), ("position", {})]


@pytest.mark.parametrize(("name", "params"), IN_BOTH_TIMINGS, ids=[name for name, _ in IN_BOTH_TIMINGS])
def test_both_timings_give_the_same_credit_to_the_policy_that_generated(tmp_path, name, params):
    """One update a generation: the policy of the loss is still the one that generated."""
    given = arguments(
        tmp_path, max_steps=1, steps_per_generation=1, credit_method=name, credit_params=params, credit_outcome="rloo"
    )
    at_rollout, in_loss = (trained(Keeping, CreditGRPOConfig(**given, credit_timing=t)) for t in ("rollout", "loss"))
    expect_same_credit(credit_by_completion(at_rollout), credit_by_completion(in_loss))


@pytest.mark.filterwarnings("ignore:the credit of")
def test_loss_timing_makes_no_extra_forward_pass(tmp_path):
    """Two updates a generation, each accumulated over two micro-batches. No learning: every run generates alike."""
    given = arguments(tmp_path, learning_rate=0.0, gradient_accumulation_steps=2, steps_per_generation=4)
    plain = passes(GRPOTrainer, GRPOConfig(**given))
    for name, params in IN_BOTH_TIMINGS:
        config = CreditGRPOConfig(**given, credit_method=name, credit_params=params, credit_timing="loss")
        assert passes(CreditGRPOTrainer, config) == plain


def test_divergence_takes_the_reference_pass_that_trl_makes(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear")
    given = arguments(tmp_path, max_steps=2, beta=0.1, credit_method="divergence", credit_timing="loss")
    trainer = trained(Keeping, CreditGRPOConfig(**given), peft_config=lora)
    last = trainer.kept[-1]
    assert (last["advantages"].std(1) > 1e-3).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"credit_method": "arca"}, "the adapter's residual"),
        ({"credit_method": "p2t"}, "worth to a reward model"),
        ({"credit_method": "attnpo", "credit_params": {"heads": [[1, 0]]}}, "whole groups"),
        ({"credit_method": "divergence"}, "beta > 0"),
        ({"credit_method": "entropy", "temperature": 0.7}, "temperature 0.7"),
        ({"credit_timing": "later"}, "rollout, loss"),
        ({"credit_outcome": "ppo"}, "trainer, grpo, dr_grpo, rloo"),
    ],
)
def test_what_a_timing_cannot_give_is_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        CreditGRPOConfig(**{**arguments(tmp_path, credit_timing="loss"), **changed})


def test_dropout_is_refused_in_the_loss(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
    args = CreditGRPOConfig(**arguments(tmp_path, credit_method="atpo", credit_timing="loss"))
    with pytest.raises(ValueError, match=r"lora_dropout=0\.0"):
        trained(CreditGRPOTrainer, args, peft_config=lora)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_outcome_advantages_of_ones_own_choice(tmp_path, name):
    class Spying(Keeping):
        def _assign(self, batch):
            credit = super()._assign(batch)
            self.seen = (self._weighted_rewards(), credit.advantages)
            return credit

    args = CreditGRPOConfig(**arguments(tmp_path, max_steps=1, credit_outcome=name, reward_weights=[2.0]))
    rewards, advantages = trained(Spying, args).seen
    expected = getattr(tc.outcome, name)(rewards, torch.arange(16) // 4)
    torch.testing.assert_close(advantages[:, 0], expected.float())
    assert rewards.std() > 0


def test_trainers_whose_loss_is_per_sequence_are_refused(tmp_path):
    from trl import RLOOTrainer
    from trl.experimental.gmpo import GMPOTrainer

    for base in (RLOOTrainer, GMPOTrainer):
        mixed = type("Mixed", (CreditGRPOTrainer, base), {})
        with pytest.raises(ValueError, match=rf"{base.__name__} has a loss per sequence"):
            mixed(policy_that_answers(), reward, args=CreditGRPOConfig(**arguments(tmp_path)))


@pytest.mark.parametrize("timing", ["rollout", "loss"])
def test_accumulation_does_not_change_credit(tmp_path, timing):
    given = arguments(tmp_path, max_steps=1, credit_method="atpo", credit_timing=timing)
    shapes = ((8, 1), (1, 8))
    whole, parts = (
        trained(
            Keeping,
            CreditGRPOConfig(
                **{
                    **given,
                    "per_device_train_batch_size": size,
                    "gradient_accumulation_steps": accumulated,
                    "steps_per_generation": accumulated,
                }
            ),
        )
        for size, accumulated in shapes
    )
    assert (len(whole.kept), len(parts.kept)) == (1, 8)
    expect_same_credit(credit_by_completion(whole), credit_by_completion(parts))


def test_share_of_the_step_and_completions_table(tmp_path):
    args = CreditGRPOConfig(**arguments(tmp_path, credit_method="atpo", max_steps=2, log_completions=True))
    trainer = trained(CreditGRPOTrainer, args)
    logged = [row for row in trainer.state.log_history if "credit/seconds" in row]
    assert all(0 < row["credit/share_of_step"] < 1 for row in logged)
    extra = trainer._logs["extra"]
    assert len(extra["credit_gini"]) == len(trainer._logs["prompt"])
