"""Traces that are longer than the model's context."""

from __future__ import annotations

import json

import pytest
import torch
from byte_tokenizers import chat_tokenizer
from conftest import tiny_config
from transformers import LlavaConfig, MambaConfig

from tokencredit.audit.traces import load_traces
from tokencredit.completions import load_completions
from tokencredit.labelled import load_labelled
from tokencredit.long_traces import LongTrace, context_of

TEXTS = [
    {"prompt": "Q", "completion": "a" * 9, "reward": 1.0},
    {"prompt": "Q", "completion": "b" * 12, "reward": 2.0},
    {"prompt": "Q" * 10, "completion": "c", "reward": 3.0},
    {"prompt": "R", "completion": "d", "reward": 4.0},
]
STEPS = [
    {"prompt": "Q", "steps": ["a"], "answer": "4", "correct": True},
    {"prompt": "Q", "steps": ["a" * 9], "answer": "4", "correct": True},
]


def write(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def texts(rollouts):
    tokenizer = chat_tokenizer()
    return [
        tokenizer.decode(ids[mask]) for ids, mask in zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)
    ]


def test_long_traces_are_refused_with_how_many_and_how_long_and_the_way_out(tmp_path):
    message = (
        r"2 of 4 traces are longer than the model's context of 10 tokens, the longest has 13: number 2 \(13 tokens\), "
        r"number 3 \(11 tokens\)\. .*--long-traces skip.*--long-traces truncate"
    )
    with pytest.raises(ValueError, match=message):
        load_completions(write(tmp_path, TEXTS), chat_tokenizer(), context=10)


def test_skipped_traces_are_listed_and_the_others_are_as_they_were(tmp_path):
    found = load_completions(write(tmp_path, TEXTS), chat_tokenizer(), context=10, long_traces="skip")
    assert texts(found.rollouts) == ["a" * 9, "d"]
    assert found.rollouts.rewards.tolist() == [1, 4]
    assert found.rollouts.group.tolist() == [0, 1]
    assert [label["reward"] for label in found.labels] == [1, 4]
    assert found.long.skipped == (LongTrace(2, 13), LongTrace(3, 11))
    assert found.long.as_json() == {
        "context": 10,
        "skipped": [{"number": 2, "tokens": 13}, {"number": 3, "tokens": 11}],
        "truncated": [],
    }
    assert found.long.notes == [
        "2 traces are longer than the model's context of 10 tokens and left out: number 2 (13 tokens), number 3 (11 tokens)"
    ]


def test_truncated_traces_fill_the_context_and_those_whose_prompt_does_are_left_out(tmp_path):
    found = load_completions(write(tmp_path, TEXTS), chat_tokenizer(), context=10, long_traces="truncate")
    assert texts(found.rollouts) == ["a" * 9, "b" * 9, "d"]
    assert found.rollouts.rewards.tolist() == [1, 2, 4]
    assert (found.long.truncated, found.long.skipped) == ((LongTrace(2, 13),), (LongTrace(3, 11),))


def test_spans_are_those_of_the_text_that_is_left(tmp_path):
    row = {"prompt": "Q", "completion": "ab</think>4"}
    found = load_completions(write(tmp_path, [row]), chat_tokenizer(), context=6, long_traces="truncate")
    assert found.rollouts.answer_start.tolist() == [-1]


@pytest.mark.parametrize("rule", ["skip", "truncate"])
@pytest.mark.parametrize("load", [load_completions, load_labelled, load_traces])
def test_labelled_traces_are_left_out_and_never_cut_off(tmp_path, load, rule):
    path = write(tmp_path, STEPS)
    found = load(path, chat_tokenizer(), context=10, long_traces=rule)
    rollouts = found.labelled.rollouts if load is load_labelled else found.rollouts
    assert texts(rollouts) == ["a4"]
    assert (found.long.skipped, found.long.truncated) == ((LongTrace(2, 11),), ())
    with pytest.raises(ValueError, match="1 of 2 traces are longer"):
        load(path, chat_tokenizer(), context=10)
    with pytest.raises(ValueError, match="no trace is left"):
        load(path, chat_tokenizer(), context=2, long_traces=rule)


def test_a_context_that_is_long_enough_or_unknown_changes_nothing(tmp_path):
    path = write(tmp_path, TEXTS)
    whole = load_completions(path, chat_tokenizer())
    for context in (13, 99, None):
        found = load_completions(path, chat_tokenizer(), context=context, long_traces="truncate")
        assert torch.equal(found.rollouts.completion_ids, whole.rollouts.completion_ids)
        assert (found.long.notes, found.long.context) == ([], context)


def test_an_unknown_rule(tmp_path):
    with pytest.raises(ValueError, match="refuse, skip, truncate; got 'cut'"):
        load_completions(write(tmp_path, TEXTS), chat_tokenizer(), long_traces="cut")


def test_the_context_is_that_of_the_text_model():
    assert context_of(tiny_config(max_position_embeddings=77)) == 77
    assert context_of(LlavaConfig(text_config=tiny_config(max_position_embeddings=77).to_dict())) == 77
    assert context_of(MambaConfig()) is None


def test_yarn_extends_the_context_where_the_configuration_does_not_say_so_itself():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
    assert context_of(tiny_config(max_position_embeddings=64, rope_parameters=rope)) == 256
    assert context_of(tiny_config(max_position_embeddings=256, rope_parameters=rope)) == 256
