"""A user's labelled completions."""

import json

import pytest
import torch

from tokencredit.labelled import load_labelled
from tokencredit.testbed.policy import build_tokenizer

TOKENIZER = build_tokenizer()
ROWS = [
    {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "wait;</think>"], "answer": "3", "essential": [True, False]},
    {"prompt": "Q:b=1+2,c=3?b\n", "steps": ["b=1+2=3;"], "answer": "33}", "essential": [None]},
    {"prompt": "Q:b?", "steps": ["b"], "answer": "3"},
]


def load(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return load_labelled(path, TOKENIZER).labelled


def test_steps_and_answers_lie_where_the_text_says(tmp_path):
    rollouts, essential, mask = load(tmp_path, ROWS)
    for i, row in enumerate(ROWS):
        prompt, completion = rollouts.prompt_ids[i], rollouts.completion_ids[i]
        assert TOKENIZER.decode(prompt[rollouts.prompt_mask[i]]) == row["prompt"]
        assert TOKENIZER.decode(completion[rollouts.answer_mask[i]]) == row["answer"]
        for k, step in enumerate(row["steps"]):
            assert TOKENIZER.decode(completion[rollouts.step_index[i] == k]) == step
    assert essential.tolist() == [[True, False], [False, False], [False, False]]
    assert mask.tolist() == [[True, True], [False, False], [False, False]]
    assert torch.equal(rollouts.answer_start >= 0, torch.tensor([True, True, True]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("no json", "line 1"),
        ("[1]", "expected"),
        ({"prompt": "Q", "steps": "b", "answer": "3"}, "expected"),
        ({"prompt": "Q", "steps": ["b", ""], "answer": "3"}, "none of them empty"),
        ({"prompt": "Q", "steps": ["b"]}, "answer is missing"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "essential": [True, False]}, "1 steps need as many labels"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "essential": ["yes"]}, "true, false or null"),
        ({"prompt": "Q", "steps": ["b"], "answer": "3", "essential": [1]}, "true, false or null"),
        ({"prompt": "Q", "steps": [], "answer": "3"}, "line 1: expected"),
        ({"prompt": "Q", "steps": ["b", "4"], "answer": "2"}, "shares its only token"),
        ({"prompt": "Q", "steps": ["b~"], "answer": "2"}, "does not give this text back"),
    ],
)
def test_broken_lines_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [row])


def test_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match="no completion"):
        load(tmp_path, [])


def test_special_tokens_that_end_a_text_do_not_stand_behind_the_prompt(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    ends = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    prompt = load_labelled(path, tokenizer).labelled.rollouts.prompt_ids[0].tolist()
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt
