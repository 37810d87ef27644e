"""Which of TRL's settings let the loss see which tokens credit favours, measured on the update of one step."""

from __future__ import annotations

import pytest
import torch
from tiny_run import arguments, policy_that_answers, trained, weights
from trl import GRPOConfig, GRPOTrainer

from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
GSPO = {"importance_sampling_level": "sequence"}


def update(folder, settings, method="uniform", *, by_force=None):
    """The change of the weights in one step of SGD; `by_force` are settings that the config would refuse."""
    plain = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "steps_per_generation": 1}
    args = CreditGRPOConfig(**arguments(folder, **plain, **settings), credit_method=method)
    for name, value in (by_force or {}).items():
        setattr(args, name, value)
    trainer = trained(CreditGRPOTrainer, args)
    start = torch.cat([p.detach().flatten() for p in policy_that_answers().parameters()])
    return (weights(trainer) - start).double()


def cosine(a, b):
    assert a.norm() > 0
    assert b.norm() > 0
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_sees_which_tokens_are_credited(tmp_path, loss_type):
    settings = {"loss_type": loss_type}
    assert cosine(update(tmp_path, settings), update(tmp_path, settings, "surprisal")) < 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": 1.5},
        {"top_entropy_quantile": 0.5},
        {"off_policy_mask_threshold": 0.5},
        {"num_iterations": 2},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_loss_keep_the_placement_of_credit(tmp_path, settings):
    assert cosine(update(tmp_path, settings), update(tmp_path, settings, "surprisal")) < 0.999


def test_one_importance_weight_a_sequence_loses_the_placement_of_credit(tmp_path):
    """Why it is refused: weights that sum to the length of a completion give uniform's update, however unequal."""
    credited = update(tmp_path, {}, "surprisal", by_force=GSPO)
    assert cosine(update(tmp_path, GSPO), credited) > 0.9999


@pytest.mark.parametrize("method", ["surprisal", "position", "random"])
def test_one_importance_weight_a_sequence_is_refused(tmp_path, method):
    with pytest.raises(ValueError, match=rf"GSPO.*{method}.*importance_sampling_level=.token."):
        CreditGRPOConfig(**arguments(tmp_path), credit_method=method, **GSPO)


@pytest.mark.parametrize("timing", ["rollout", "loss"])
@pytest.mark.parametrize("loss_type", ["grpo", "luspo"])
def test_uniform_credit_with_one_importance_weight_a_sequence_is_grpo_bit_for_bit(tmp_path, loss_type, timing):
    given = arguments(tmp_path, loss_type=loss_type, max_steps=3, **GSPO)
    plain = trained(GRPOTrainer, GRPOConfig(**given))
    credit = trained(CreditGRPOTrainer, CreditGRPOConfig(**given, credit_timing=timing))
    assert torch.equal(weights(plain), weights(credit))


def test_outcomes_of_our_own_refuse_an_aggregation_that_they_would_ignore(tmp_path):
    given = arguments(tmp_path, multi_objective_aggregation="normalize_then_sum")
    CreditGRPOConfig(**given)
    with pytest.raises(ValueError, match=r"credit_outcome='rloo'.*would ignore multi_objective_aggregation"):
        CreditGRPOConfig(**given, credit_outcome="rloo")
