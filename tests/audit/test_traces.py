"""A user's completions with labels, as an audit takes them."""

from __future__ import annotations

import json

import pytest
import torch

from tokencredit.audit import audit, signs
from tokencredit.audit.traces import load_traces
from tokencredit.testbed.policy import build_tokenizer

TOKENIZER = build_tokenizer()
OURS = [
    {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "wait;</think>"], "answer": "3", "essential": [True, False]},
    {"prompt": "Q:a=1+2?a\n", "steps": ["b=2;", "a=1+2=4;</think>"], "answer": "4", "first_error": 1},
    {"prompt": "Q:b=1+2?b\n", "steps": ["b=1+2=3;</think>"], "answer": "4", "first_error": 1, "correct": False},
]
PROCESSBENCH = [
    {"problem": "1+2?", "steps": ["1+2=3", "3+0=4", "4"], "label": 1, "final_answer_correct": False, "id": "x"},
    {"problem": "1+2?", "steps": ["1+2=3", "3"], "label": -1, "final_answer_correct": True},
    {"problem": "1+2?", "steps": ["1+2=4", "3"], "label": 0, "final_answer_correct": True},
]


def load(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_traces(path, TOKENIZER)


def text_where(rollouts, mask, row):
    return TOKENIZER.decode(rollouts.completion_ids[row][mask[row]])


def test_our_layout(tmp_path):
    rollouts, truth, _ = load(tmp_path, OURS)
    assert truth.correct.tolist() == [True, False, False]
    assert rollouts.group.tolist() == [0, 0, 1]
    assert [text_where(rollouts, truth.error, row) for row in range(3)] == ["", "a=1+2=4;</think>", "4"]
    assert truth.labelled.tolist() == [[True, True], [False, False], [False, False]]
    assert truth.essential[0].tolist() == [True, False]


def test_processbench_layout(tmp_path):
    rollouts, truth, _ = load(tmp_path, PROCESSBENCH)
    assert truth.correct.tolist() == [False, True, True]
    assert text_where(rollouts, truth.error, 0).strip() == "3+0=4"
    assert not truth.error[1:].any()
    assert text_where(rollouts, rollouts.answer_mask, 0) == "4"


def test_an_audit_of_a_file(tmp_path):
    rollouts, truth, _ = load(tmp_path, OURS)
    blame = signs(truth)[:, None] * (0.1 + truth.error)
    found = audit({"c": blame}, rollouts, truth).row("c").scores
    assert found["error_hit_1"].estimate.value == 1
    assert found["error_hit_1"].completions == 2
    assert found["step_ranking"].estimate.value == 0.5
    assert found["step_ranking"].completions == 1
    assert found["step_ranking"].estimate.low is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "steps": ["b"], "answer": "3"}, "says neither correct nor first_error nor essential"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "reward": 0.5}, "line 1: the reward 0.5 does not say whether"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "correct": True, "completion": "b"}, "both a completion and"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "first_error": 2}, "from 0 to 1"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "first_error": True}, "first_error"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "correct": "no"}, "true, false or null"),
        ({"problem": "Q", "steps": ["b"], "label": -1}, "at least two steps"),
        ({"problem": "Q", "steps": ["b", "c"], "label": 5}, "first_error must be"),
    ],
)
def test_broken_lines_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [row])


def test_rows_are_as_they_were_on_a_wider_grid(tmp_path):
    """A completion's labels do not depend on its batch mates."""
    _, alone, _ = load(tmp_path, OURS[1:2])
    _, among, _ = load(tmp_path, OURS)
    assert torch.equal(alone.error[0], among.error[1][: alone.error.shape[1]])
