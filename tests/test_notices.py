import warnings

import pytest
import torch

import tokencredit as tc
from tokencredit.notices import inactive, unranked


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


def test_a_method_that_explains_what_it_does_not_give_is_named():
    with pytest.raises(ValueError, match=r"atpo explains the diagnostic no_answer .* it gives gini"):
        inactive(tc.method("atpo"), {"gini": torch.ones(3)})


def test_heads_are_ranked_on_completions_with_a_pair_of_labelled_steps(rollouts):
    """Completions 0 and 1 have an answer, and two steps of three tokens before it."""
    every = torch.ones(4, 3, dtype=torch.bool)
    pair = torch.tensor([[True, False, False]] * 4)
    two = rollouts.rows(slice(0, 2))
    assert unranked(two, pair[:2], every[:2]) == []
    assert unranked(rollouts, pair, every) == ["heads are ranked on 2 of 4 completions: 2 have no answer span"]
    lacking = "1 do not have both an essential and a redundant step with a label"
    known = every.clone()
    known[1, 0] = False
    for essential, mask in ((pair | torch.tensor([[False], [True]] * 2), every), (pair, known)):
        assert unranked(two, essential[:2], mask[:2]) == [f"heads are ranked on 1 of 2 completions: {lacking}"]
    assert unranked(rollouts, pair, known)[0].endswith(f": 2 have no answer span and {lacking}")
