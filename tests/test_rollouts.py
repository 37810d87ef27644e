import numpy as np
import pytest
import torch
from conftest import make_rollouts, tiny_policy

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
        ({"correct": torch.tensor([1, -1])}, "completion 1: correct must be true or false .* got -1"),
        ({"correct": torch.tensor([0.3, 1])}, "completion 0: correct must be true or false .* got 0.3"),
        ({"correct": torch.tensor([1, float("nan")])}, "completion 1: correct must be true or false .* got nan"),
        ({"completion_mask": torch.full((2, 4), 2)}, "completion 0: completion_mask must be true or false .* got 2"),
        ({"prompt_mask": torch.full((2, 3), 0.5)}, "completion 0: prompt_mask must be true or false .* got 0.5"),
        ({"group": torch.tensor([0, 0.5])}, "completion 1: group must be a whole number; got 0.5"),
        ({"group": torch.tensor([0, 1e30])}, r"completion 1: group must be a whole number; got 1e\+30"),
        ({"answer_start": torch.tensor([1.5, -1])}, "completion 0: answer_start must be a whole number; got 1.5"),
        (
            {"answer_start": torch.tensor([1, float("nan")])},
            "completion 1: answer_start must be a whole number; got nan",
        ),
        ({"step_index": torch.full((2, 4), 0.9)}, "completion 0: step_index must be a whole number; got 0.9"),
        ({"completion_ids": torch.full((2, 4), 1.2)}, "completion 0: completion_ids must be a whole number; got 1.2"),
        ({"prompt_ids": torch.full((2, 3), float("inf"))}, "completion 0: prompt_ids must be a whole number; got inf"),
        (
            {"prompt_ids": torch.tensor([[1, 1, 1], [-100, 1, 1]])},
            "completion 1: prompt_ids must be token ids.* got -100",
        ),
        ({"completion_ids": torch.full((2, 4), -1)}, "completion 0: completion_ids must be token ids.* got -1"),
        ({"rewards": torch.ones(2, dtype=torch.complex64)}, "rewards must be real numbers; got torch.complex64"),
        ({"rewards": [1.0, 0.0]}, r"rewards must be a torch tensor; got list: convert it with torch.as_tensor\("),
        ({"completion_ids": np.ones((2, 4))}, "completion_ids must be a torch tensor; got ndarray"),
        ({"prompt_mask": None}, "prompt_mask must be a torch tensor; got NoneType"),
    ],
)
def test_bad_input_is_refused_with_its_reason(changed, message):
    with pytest.raises(ValueError, match=message):
        tc.Rollouts(**parts(**changed))


def test_numbers_of_other_types_that_are_exactly_right_are_taken():
    whole = {"group": [0, 7], "answer_start": [-1, 3], "step_index": [[-1] * 4, [0, 0, 1, -1]]}
    plain = parts(correct=torch.tensor([True, False]), **{name: torch.tensor(value) for name, value in whole.items()})
    expected = tc.Rollouts(**plain)
    for dtype in (torch.int32, torch.int8, torch.float32, torch.bfloat16):
        given = tc.Rollouts(**{name: value.to(dtype) for name, value in plain.items()})
        for name in plain:
            assert getattr(given, name).dtype == getattr(expected, name).dtype
            assert torch.equal(getattr(given, name), getattr(expected, name))


def test_an_empty_batch_holds_nothing_to_assign_credit_to():
    empty = make_rollouts().rows(slice(0, 0))
    assert len(empty) == 0
    for method in ("uniform", "atpo"):
        with pytest.raises(ValueError, match="no completion to assign credit to"):
            tc.assign(tiny_policy(), empty, method)
