import pytest
import torch
from conftest import make_rollouts

import tokencredit as tc


def parts(**changed):
    base = {
        "prompt_ids": torch.ones(2, 3, dtype=torch.long),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.ones(2, 4, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }
    return {**base, **changed}


def test_positions_count_real_tokens_only():
    r = tc.Rollouts(**parts())
    assert r.position_ids.tolist() == [[0, 0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert r.lengths.tolist() == [2, 4]


def test_reasoning_and_answer_tile_a_completion_that_has_an_answer():
    r = make_rollouts()
    has = r.has_answer
    assert torch.equal(r.reasoning_mask[has] | r.answer_mask[has], r.completion_mask[has])
    assert not (r.reasoning_mask & r.answer_mask).any()
    assert not r.reasoning_mask[~has].any()
    assert not r.answer_mask[~has].any()
    assert r.answer_mask[0].nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_unmarked_spans_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="mark_spans"):
        _ = tc.Rollouts(**parts()).answer_mask


def test_rows_keeps_every_field():
    r = make_rollouts(correct=torch.tensor([True, False, True, False]))
    part = r.rows(slice(1, 3))
    assert len(part) == 2
    for name in ("prompt_ids", "completion_mask", "rewards", "group", "correct", "answer_start", "step_index"):
        assert torch.equal(getattr(part, name), getattr(r, name)[1:3])


def test_a_completion_of_no_tokens_is_allowed():
    r = tc.Rollouts(**parts(completion_mask=torch.zeros(2, 4), answer_start=torch.tensor([-1, -1])))
    assert r.lengths.tolist() == [0, 0]
    assert not r.answer_mask.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"completion_mask": torch.ones(2, 3)}, r"completion_mask has shape \(2, 3\), but completion_ids has \(2, 4\)"),
        ({"prompt_ids": torch.ones(3)}, "prompt_ids must be 2-D"),
        ({"prompt_ids": torch.ones(1, 3).long(), "prompt_mask": torch.ones(1, 3)}, "prompt_ids must have shape"),
        ({"completion_ids": torch.ones(2, 0), "completion_mask": torch.ones(2, 0)}, "no column"),
        ({"rewards": torch.ones(3)}, r"rewards must have shape \(2,\)"),
        ({"rewards": torch.tensor([0.0, float("nan")])}, "completion 1: reward is NaN"),
        ({"prompt_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "completion 0: prompt_mask must be left-padded"),
        ({"prompt_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])}, "completion 0: prompt has no token"),
        ({"completion_mask": torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]])}, "must be right-padded"),
        ({"answer_start": torch.tensor([2, 3])}, "completion 0: answer_start must be -1"),
        ({"answer_start": torch.tensor([-2, 3])}, "completion 0: answer_start must be -1"),
        ({"step_index": torch.full((2, 4), -2)}, "step_index must be -1"),
        ({"step_index": torch.zeros(2, 3)}, "step_index must have shape"),
    ],
)
def test_bad_input_is_refused_with_its_reason(changed, message):
    with pytest.raises(ValueError, match=message):
        tc.Rollouts(**parts(**changed))
