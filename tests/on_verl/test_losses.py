"""verl's policy losses: those that lose the placement of credit within a completion are refused, the others keep it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from test_config import config_of, credit, made
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
LOSSES = sorted(POLICY_LOSS_REGISTRY.keys() - {"bypass_mode"})
"""All but one, which stands for one of the others."""
OUTCOME = torch.tensor([[1.0], [-0.5], [2.0]])
WEIGHTS = torch.tensor([[0.2, 1.0, 1.8, 1.0], [1.5, 0.5, 1.0, 1.0], [0.3, 1.7, 0.0, 0.0]])
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])


@cache
def actor_of(loss_mode):
    """verl's configuration of an actor with that loss."""
    overrides = [
        f"{LOSS_MODE}={loss_mode}",
        "actor_rollout_ref.actor.policy_loss.dro_beta=1.0",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    ]
    return omega_conf_to_dataclass(config_of(*overrides).actor_rollout_ref.actor)


def gradient(loss_mode, advantages):
    """(B, T): of the loss, with respect to the log-probs of a policy close to the one that generated."""
    rng = torch.Generator().manual_seed(0)
    log_prob = (-torch.rand(3, 4, generator=rng)).requires_grad_()
    old = log_prob.detach() + 1e-3 * torch.randn(3, 4, generator=rng)
    loss, _ = get_policy_loss_fn(loss_mode)(
        old_log_prob=old, log_prob=log_prob, advantages=advantages, response_mask=MASK, config=actor_of(loss_mode)
    )
    (found,) = torch.autograd.grad(loss, log_prob)
    return found


def keeps_placement(loss_mode):
    """Other positive weights of the same mean in each completion, which is 1, give another gradient."""
    placed, mirrored = (gradient(loss_mode, OUTCOME * weights) for weights in (WEIGHTS, 2 * MASK - WEIGHTS))
    return not torch.allclose(placed, mirrored, rtol=1e-3)


@pytest.mark.parametrize("loss_mode", LOSSES)
def test_losses_that_lose_the_placement_are_refused(loss_mode):
    overrides = [*credit("rhythm"), f"{LOSS_MODE}={loss_mode}"]
    if keeps_placement(loss_mode):
        made(*overrides)
        return
    with pytest.raises(ValueError, match=f"loss_mode={loss_mode} .*one advantage per completion"):
        made(*overrides)


def test_gspo_scales_each_tokens_gradient_by_its_weight():
    """verl has the token form of GSPO, whose gradient is the credit of each token times the ratio of its sequence."""
    uniform, placed = gradient("gspo", OUTCOME.expand(3, 4)), gradient("gspo", OUTCOME * WEIGHTS)
    torch.testing.assert_close(placed, uniform * WEIGHTS)
    assert torch.cosine_similarity(placed.flatten(), uniform.flatten(), dim=0) < 0.95
