"""A user's completions, as plain text and in labelled steps."""

from __future__ import annotations

import json
import re

import pytest
import torch
from test_steps import byte_level, sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokencredit.audit.traces import load_traces
from tokencredit.cli.heads_traces import read_traces
from tokencredit.cli.outcomes import known_outcomes, outcome_advantages
from tokencredit.completions import load_completions
from tokencredit.labelled import load_labelled
from tokencredit.testbed.policy import PolicySize, build_policy

STEPS = {"prompt": "Q", "steps": ["a", "b"], "answer": "4"}


def load(tmp_path, tokenizer, *rows, labelled=False, **options):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return (load_labelled if labelled else load_completions)(path, tokenizer, **options)


def without_letters():
    """Bytes of a text in which the letter e and spaces at both ends are nothing, and A is a."""
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    parts = [normalizers.Strip(), normalizers.Replace("e", ""), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_answer_of_plain_text_starts_where_it_is_asked_for(tmp_path):
    tokenizer = byte_level("x")
    row = {"prompt": "Q", "completion": "a\nAnswer: 4"}
    rollouts = load(tmp_path, tokenizer, row, answer="Answer:").rollouts
    assert tokenizer.decode(rollouts.completion_ids[rollouts.answer_mask]) == "Answer: 4"
    assert load(tmp_path, tokenizer, row).rollouts.answer_start.tolist() == [-1]


@pytest.mark.parametrize("option", [{"answer": "A"}, {"end_of_reasoning": "b"}, {"splitter": "newline"}])
def test_options_that_find_spans_are_refused_where_the_file_holds_them(tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"so {name} would have no effect"):
        load(tmp_path, byte_level("x"), STEPS, **option)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "ee", "completion": "a"}, "line 1: the prompt 'ee' has no token"),
        ({"prompt": " ", "completion": "a"}, "line 1: the prompt ' ' has no token"),
        ({"prompt": "Q", "completion": "ee"}, "line 1: the completion 'ee' has no token"),
        ({**STEPS, "prompt": "ee"}, "line 1: the prompt 'ee' has no token"),
        ({**STEPS, "steps": ["e"], "answer": "e"}, "line 1: the completion 'ee' has no token"),
        ({**STEPS, "steps": ["1+1=2", "Two"]}, "line 1: the tokenizer does not give this text back as it is"),
        ({**STEPS, "steps": ["1+1=2", "Two"]}, "behind '1+1=2' it reads 'two4' for 'Two4'"),
        ({**STEPS, "answer": "4 "}, "behind 'ab4' it reads '' for ' '"),
    ],
)
def test_text_that_the_tokenizer_reads_as_another_or_as_nothing(tmp_path, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path, without_letters(), row)


def test_a_prompt_of_added_special_tokens_alone_is_none(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = without_letters()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    with pytest.raises(ValueError, match="line 1: the prompt 'ee' has no token"):
        load(tmp_path, tokenizer, {"prompt": "ee", "completion": "a"})
    assert load(tmp_path, tokenizer, {"prompt": "Q", "completion": "a"}).rollouts.prompt_ids.shape == (1, 2)


@pytest.mark.parametrize("tokenizer", [byte_level(" Wait", "\n\nWait"), byte_level("x"), sentencepiece(" Wait")])
@pytest.mark.parametrize("space", [" ", "\n\n", "  ", "\n "])
def test_it_makes_no_difference_on_which_side_of_a_boundary_its_spaces_are(tmp_path, tokenizer, space):
    """For the steps, the first error and the answer."""
    before = {"steps": ["one.", f"{space}Wait no.", f"{space}So 4."], "answer": f"{space}Wait 4"}
    behind = {"steps": [f"one.{space}", f"Wait no.{space}", f"So 4.{space}"], "answer": "Wait 4"}
    known = {"prompt": "Q", "first_error": 1}
    (rollouts, labels, *_), (other, others, *_) = (
        load(tmp_path, tokenizer, {**row, **known}) for row in (before, behind)
    )
    assert torch.equal(rollouts.step_index, other.step_index)
    assert torch.equal(rollouts.answer_start, other.answer_start)
    assert labels == others
    ids = rollouts.completion_ids
    found = [tokenizer.decode(ids[rollouts.step_index == k]).strip() for k in range(3)]
    assert [*found, tokenizer.decode(ids[rollouts.answer_mask]).strip()] == ["one.", "Wait no.", "So 4.", "Wait 4"]
    assert tokenizer.decode(ids[0, labels[0]["first_error"] :]).lstrip().startswith("Wait no.")


def test_labelled_steps_are_those_that_a_splitter_finds_in_the_same_text(tmp_path):
    tokenizer = byte_level(" Wait", "\n\nThe")
    steps, answer = ["one. ", "Wait no. ", "Wait yes</think>"], "\n\nThe 4"
    labelled = load(tmp_path, tokenizer, {"prompt": "Q", "steps": steps, "answer": answer}).rollouts
    plain = load(
        tmp_path,
        tokenizer,
        {"prompt": "Q", "completion": "".join([*steps, answer])},
        splitter=lambda text: [m.start() for m in re.finditer("Wait", text)],
    ).rollouts
    assert torch.equal(labelled.step_index, plain.step_index)
    assert torch.equal(labelled.answer_start, plain.answer_start)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"steps": ["a"], "answer": " "}, "no token begins in the answer"),
        ({"steps": ["a"], "answer": "b"}, "no token begins in the answer"),
        (
            {"steps": ["c", "a", "b", "c"], "answer": "4", "first_error": 2},
            "no token begins in step 2, the first error",
        ),
        ({"steps": ["a", " ", "c"], "answer": "4", "first_error": 1}, "no token begins in step 1, the first error"),
    ],
)
def test_parts_without_a_token_of_their_own(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        load(tmp_path, byte_level("ab"), {"prompt": "Q", **row})


@pytest.mark.parametrize(
    ("known", "correct"),
    [
        ({"reward": 0}, False),
        ({"reward": 1.0}, True),
        ({"first_error": 0}, False),
        ({"first_error": 0, "reward": 0}, False),
        ({"first_error": 0, "reward": 1, "correct": True}, True),
        ({"correct": False, "reward": 1}, False),
    ],
)
def test_score_heads_and_audit_agree_on_which_labelled_traces_are_correct(tmp_path, known, correct):
    tokenizer, row = byte_level("x"), {**STEPS, "essential": [True, False], **known}
    completions = load(tmp_path, tokenizer, row)
    scored, _ = known_outcomes(completions, None)
    assert outcome_advantages("sign", scored).tolist() == [1.0 if correct else -1.0]
    policy = build_policy(PolicySize(width=32, layers=1, heads=2, kv_heads=1, feed_forward=48))
    spans = {"splitter": "phrases", "end_of_reasoning": "</think>", "answer": "auto"}
    options = {"chat": False, "long_traces": "refuse", "correct_threshold": None, "needs_correct": True}
    assert read_traces(tmp_path / "mine.jsonl", policy, tokenizer, **spans, **options).correct == [correct]
    assert load_traces(tmp_path / "mine.jsonl", tokenizer).truth.correct.tolist() == [correct]


def test_labelled_traces_keep_their_rewards(tmp_path):
    tokenizer, bench = byte_level("x"), {"problem": "Q", "steps": ["a", "4"], "label": -1}
    completions = load(tmp_path, tokenizer, {**STEPS, "reward": 0.25}, {**bench, "reward": 1})
    assert [label["reward"] for label in completions.labels] == [0.25, 1.0]
    assert completions.rollouts.rewards.tolist() == [0.25, 1.0]
    labelled = load(tmp_path, tokenizer, {**STEPS, "reward": 0.25}, labelled=True).labelled
    assert labelled.rollouts.rewards.tolist() == [0.25]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"reward": "high"}, "line 1: reward must be a number or null; got 'high'"),
        ({"reward": True}, "line 1: reward must be a number or null; got True"),
        ({"first_error": 0, "reward": 1}, "line 1: first_error is 0, but the reward is 1: add correct"),
    ],
)
def test_rewards_of_labelled_traces_are_checked(tmp_path, known, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, byte_level("x"), {**STEPS, **known})


def test_an_empty_cell_is_not_called_a_missing_column(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,response\nQ,\n")
    with pytest.raises(ValueError, match=r"line 2: .*response is empty") as error:
        load_completions(tmp_path / "mine.csv", byte_level("x"))
    assert "missing" not in str(error.value)
