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
        ({"rewards": "10"}, "rewards must be a tensor, a NumPy array or a list of numbers.* got str"),
        ({"rewards": {1.0, 0.0}}, "rewards must be a tensor, a NumPy array or a list of numbers.* got set"),
        ({"rewards": [1.0, None]}, r"rewards must hold real numbers.* at \[1\] it has None"),
        ({"rewards": ["1", "0"]}, "rewards must hold real numbers"),
        ({"rewards": [1.0, float("nan")]}, "completion 1: reward is NaN"),
        ({"rewards": 1.0}, "rewards must be a tensor, a NumPy array or a list of numbers.* got float"),
        ({"rewards": np.ones(2, np.complex64)}, "rewards must hold real numbers"),
        ({"group": [0, 2**64]}, r"group must hold real numbers of at most 64 bits; at \[1\]"),
        ({"group": np.array([0, 2**63], np.uint64)}, "larger than any 64-bit integer"),
        ({"group": [0.5, 2**53 + 1]}, "9007199254740993, which a floating-point number cannot hold"),
        ({"group": ["a", 1]}, "group must hold real numbers"),
        ({"completion_ids": [[1, 1, 1], [1, 1, 1, 1]]}, "row 0 has 3 values, row 1 has 4.*Rollouts.from_lists"),
        ({"completion_ids": [torch.ones(3), torch.ones(4)]}, r"row 0 has shape \(3,\), row 1 has \(4,\).*from_lists"),
        ({"completion_ids": [[[1], [1]], [[1], [1, 2]]]}, "completion_ids cannot be read as an array of numbers"),
        ({"completion_ids": []}, r"completion_ids must be 2-D, one row a completion; got shape \(0,\)"),
        ({"completion_ids": np.full((2, 4), 1.5)}, "completion_ids must be a whole number; got 1.5"),
        ({"completion_ids": [["a"] * 4] * 2}, "completion_ids must hold real numbers"),
        ({"prompt_mask": None}, "prompt_mask must be a tensor, an array or a list; got None"),
        ({"completion_ids": torch.full((2, 4), 300).bfloat16()}, "torch.bfloat16, which rounds from 256 on: give int"),
        ({"prompt_ids": torch.full((2, 3), 5000.0).half()}, "torch.float16, which rounds from 2048 on: give integers"),
        ({"group": torch.tensor([257, 256]).bfloat16()}, "completion 0: group is given in torch.bfloat16.*; got 256"),
        ({"completion_ids": torch.full((2, 4), 2.0**24 + 1)}, "torch.float32, which rounds from 1.67772e"),
        ({"group": [np.int64(2**53 + 1), 1.0]}, "9007199254740993, which a floating-point number cannot hold"),
        ({"group": np.array([2**53 + 1, 1], float)}, "torch.float64, which rounds from 9.0072e"),
        (
            {"prompt_mask": [[1, 1, 0], [1, 1, 1]], "completion_mask": [[0, 1, 1, 1], [1, 1, 1, 1]]},
            "left-padded.* prompts and completions may be swapped: the order of the first four is prompt_ids, ",
        ),
        ({"prompt_mask": [[1, 1, 0], [1, 1, 1]]}, r'tokenizer.padding_side = "left"'),
        (
            {"prompt_mask": torch.ones(2, 4), "completion_ids": torch.ones(2, 3)},
            "the order of the first four is prompt_",
        ),
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


def test_lists_and_arrays_are_the_tensors_of_the_same_numbers():
    lists = {name: value.tolist() for name, value in parts().items()}
    lists |= {"rewards": [0.1, 1], "group": [7, 7], "correct": [False, True], "answer_start": [1, -1]}
    arrays = {name: np.array(value) for name, value in lists.items()}
    assert arrays["group"].dtype == np.int64
    nested = {**lists, "completion_ids": [torch.ones(4), torch.ones(4)], "prompt_ids": np.ones((2, 3), np.uint16)}
    swapped_bytes = {**arrays, "completion_ids": np.ones((2, 4), ">i4"), "rewards": np.array([0.1, 1.0], ">f8")[::1]}
    for given in (lists, arrays, nested, swapped_bytes):
        made = tc.Rollouts(**given)
        for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
            assert torch.equal(getattr(made, name), getattr(tc.Rollouts(**parts()), name))
        assert made.rewards.tolist() == [0.1, 1]  # not what float32 makes of 0.1
        assert made.group.tolist() == [7, 7]
        assert made.correct.tolist() == [False, True]
        assert made.answer_start.tolist() == [1, -1]


def test_an_array_that_is_changed_later_does_not_change_the_rollouts():
    ids = np.ones((2, 4), np.int64)
    made = tc.Rollouts(**parts(completion_ids=ids))
    ids[:] = 9
    assert (made.completion_ids == 1).all()


def test_groups_may_be_named_by_texts():
    assert tc.Rollouts(**parts(group=["q7", "q2"])).group.tolist() == [0, 1]
    assert tc.outcome.dr_grpo([1, 0, 3], ["a", "b", "a"]).tolist() == [-1, 0, 1]


def test_lists_of_different_lengths_are_padded():
    made = tc.Rollouts.from_lists(
        [[5], [6, 7]], [[1, 2, 3], []], rewards=[1, 0], group=["a", "a"], step_index=[[0, 0, 1], []]
    )
    assert made.prompt_ids.tolist() == [[0, 5], [6, 7]]
    assert made.prompt_mask.tolist() == [[False, True], [True, True]]
    assert made.completion_ids.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert made.completion_mask.tolist() == [[True] * 3, [False] * 3]
    assert made.step_index.tolist() == [[0, 0, 1], [-1] * 3]
    assert made.group.tolist() == [0, 0]
    of_arrays = tc.Rollouts.from_lists([np.array([5]), torch.tensor([6, 7])], [(1, 2, 3), np.array([], int)])
    assert torch.equal(of_arrays.input_ids, made.input_ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([[1]], [[2], [3]]), "1 prompts and 2 completions: give a prompt for each completion"),
        (([], []), "prompt_ids must be lists of token ids, one per completion, at least one"),
        (("ab", "cd"), "prompt_ids must be lists of token ids"),
        ((["what?"], [[1]]), r"row 0 is text: tokenizer\(texts\).input_ids"),
        (([[1]], ["7"]), r"row 0 is text: tokenizer\(texts, add_special_tokens=False\).input_ids"),
        (([[1], [1]], [[1], [1.5]]), "completion 1: completion_ids must be a whole number; got 1.5"),
        (([[1]], [[[1]]]), r"row 0 has shape \(1, 1\)"),
        (([[1], []], [[1], [1]]), "prompt has no token"),
        (([1, 2], [3, 4]), "row 0 of prompt_ids must be a tensor.* got int"),
    ],
)
def test_lists_that_are_no_token_ids_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        tc.Rollouts.from_lists(*given)
    with pytest.raises(ValueError, match="a number for each token"):
        tc.Rollouts.from_lists([[1]], [[1, 2]], step_index=[[0]])
