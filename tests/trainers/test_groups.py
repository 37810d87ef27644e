"""A batch that holds a part of a group: the fraction of correct completions is given with it."""

from __future__ import annotations

import pytest
import torch
from tiny_run import policy_that_answers

import tokencredit as tc


@pytest.fixture
def rollouts():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (4, 12), generator=generator)
    return tc.Rollouts(
        ids[:, :2],
        torch.ones(4, 2),
        ids,
        torch.ones(4, 12),
        group=torch.zeros(4),
        correct=torch.tensor([True, True, True, False]),
        answer_start=torch.full((4,), 8),
        step_index=torch.cat([torch.arange(8), torch.full((4,), -1)]).expand(4, 12),
    )


def fields(rollouts, rows):
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    marks = ("correct", "answer_start", "step_index")
    return {name: getattr(rollouts, name)[rows] for name in (*names, *marks)}


def test_a_part_of_a_group_gets_the_credit_that_it_has_in_the_whole(rollouts):
    """The last two are half correct, and the whole is so by three quarters."""
    method, policy = tc.method("attnpo", heads=((1, 0),), delay=0), policy_that_answers()
    advantages = torch.tensor([1.0, 0.5, -0.5, 1.0])
    whole = tc.assign(policy, rollouts, method, advantages, step=1)
    part = tc.Rollouts(**fields(rollouts, slice(0, 2)), group_correct=torch.full((2,), 0.75))
    alone = tc.assign(policy, part, method, advantages[:2], step=1)
    assert (whole.weights[:2] < 1).any()
    torch.testing.assert_close(alone.weights, whole.weights[:2])
    misled = tc.Rollouts(**fields(rollouts, slice(0, 2)), group=torch.zeros(2))
    assert not torch.allclose(tc.assign(policy, misled, method, advantages[:2], step=1).weights, whole.weights[:2])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(rollouts, fraction):
    with pytest.raises(ValueError, match=r"group_correct must be a fraction in 0\.\.1"):
        tc.Rollouts(**fields(rollouts, slice(0, 2)), group_correct=torch.tensor([0.5, fraction]))
