import warnings

import pytest
import torch

import tokencredit as tc
from tokencredit.notices import inactive


def test_assign_says_which_completions_stay_uniform_and_why(policy, rollouts):
    without_answers = tc.Rollouts(
        rollouts.prompt_ids,
        rollouts.prompt_mask,
        rollouts.completion_ids,
        rollouts.completion_mask,
        rollouts.rewards,
        rollouts.group,
        answer_start=torch.full((len(rollouts),), -1),
    )
    with pytest.warns(UserWarning, match=f"atpo leaves {len(rollouts)} of {len(rollouts)} completions uniform: no ans"):
        tc.assign(policy, without_answers, "atpo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tc.assign(policy, without_answers, "surprisal")


def test_a_method_without_explanations_says_nothing():
    assert inactive(object(), {"no_answer": torch.ones(3)}) == []
