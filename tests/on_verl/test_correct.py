"""Which completions are correct: the score where the reward function gives nothing else, or the value named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from tokencredit.trainers.verl.correct import correctness

SCORES = torch.tensor([0.7, 1.0, -0.2])


def extras(*infos):
    """`extra_fields` as verl's reward managers fill them."""
    return [{"reward_extra_info": info, "num_turns": 2} for info in infos]


ACC = extras({"acc": 1.0}, {"acc": True}, {"acc": np.bool_(False)})
BOTH = extras({"score": 0.7, "acc": 1.0}, {"score": 1.0, "acc": 1.0}, {"score": -0.2, "acc": 0.0})


@pytest.mark.parametrize(
    "given",
    [
        [None, {}, {}],
        ACC,
        extras({"acc": 0.7, "pred": "5"}, {"acc": 1.0, "pred": "6"}, {"acc": -0.2, "pred": "7"}),
        extras({"acc": 0.7}, {"acc": 0.0, "timeout": True}, {"acc": -0.2}),
        extras(*[{"acc": 0.0, "timeout": True}] * 3),
    ],
)
def test_a_single_number_is_the_score(given):
    assert torch.equal(correctness("attnpo", SCORES, given, None), SCORES)


def test_several_numbers_are_ambiguous():
    with pytest.raises(ValueError, match=r"attnpo asks .* several numbers: set .*correct_reward to .*, of acc, score"):
        correctness("attnpo", SCORES, BOTH, None)


def test_the_named_number_is_taken():
    assert correctness("attnpo", SCORES, BOTH, "acc").tolist() == [1, 1, 0]
    assert correctness("attnpo", SCORES, ACC, "acc").tolist() == [1, 1, 0]
    lower = extras({"score": 1.0, "acc": 1.0}, {"score": 1.0, "acc": 0.0}, {"score": 0.0, "acc": 0.0})
    assert correctness("attnpo", SCORES, lower, "score").tolist() == [1, 1, 0]
    assert torch.equal(correctness("attnpo", SCORES, ACC, "score"), SCORES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ACC, "right is nothing that the reward function gives: acc"),
        ([{}, {}, {}], "it gives a score alone"),
        (extras({"right": 1.0}, {"right": float("nan")}, {"right": 1.0}), "must be a finite number, .* gave nan"),
        (extras({"right": "yes"}, {"right": "no"}, {"right": "no"}), "must be a finite number, .* gave 'yes'"),
    ],
)
def test_what_is_no_number_says_nothing(given, message):
    with pytest.raises(ValueError, match=message):
        correctness("attnpo", SCORES, given, "right")
