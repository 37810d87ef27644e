"""Trace rows hold what was read, and an attention picture is rows of the full matrix."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from byte_tokenizers import byte_level
from conftest import tiny_policy

import tokencredit as tc
from tokencredit.analysis.headlines import Headlines
from tokencredit.analysis.rhythm import find_peaks
from tokencredit.analysis.traces import PEAK_SHARE, PICTURE, VIEW, attention_pictures, trace_rows
from tokencredit.credit import additive
from tokencredit.methods.rhythm import Rhythm
from tokencredit.signals import Signals
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

TEXTS = ["<think>a=1+6=7;b=2*3=6;</think>\\boxed{a=7}", "<think>a=1+6=8;</think>\\boxed{a=8}", "<think>1"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def policy():
    return build_policy(PolicySize(width=32, layers=3, heads=2, kv_heads=1, feed_forward=48)).eval()


@pytest.fixture
def rollouts(tokenizer):
    prompts = tokenizer(["Q:a=1+6,b=2*3?a", "Q:a=1+6?a", "Q:a=1?a"], padding=True, return_tensors="pt")
    ids = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    found = tc.Rollouts(prompts.input_ids, prompts.attention_mask, ids.input_ids, ids.attention_mask)
    return tc.mark_spans(replace(found, rewards=torch.tensor([1.0, 0.0, 0.5])), tokenizer)


def test_rows_are_what_was_read(policy, tokenizer, rollouts):
    signals = tc.collect(policy, rollouts, VIEW)
    credits = {"drawn": tc.assign(policy, rollouts, "random", torch.tensor([1.0, -1.0, 0.5]))}
    credits["added"] = replace(credits["drawn"], weights=None)
    rows = trace_rows(tokenizer, rollouts, credits, signals)
    m = Rhythm()
    waad, fai = m.group_means(signals.distances[next(iter(m.needs.distances))])
    peaks = find_peaks(waad, rollouts.completion_mask, PEAK_SHARE)
    for i, row in enumerate(rows):
        n = int(rollouts.lengths[i])
        assert "".join(row["tokens"]) == TEXTS[i]
        for name, curve in {"logprob": signals.logprob, "entropy": signals.entropy, "waad": waad}.items():
            assert row["signals"][name] == pytest.approx(curve[i, :n].tolist(), rel=1e-5)
        assert row["signals"]["fai"] == [
            pytest.approx(v) if n - t > 10 else None for t, v in enumerate(fai[i, :n].tolist())
        ]
        assert row["peaks"]["preplan"] == peaks[i].nonzero().flatten().tolist()
        assert row["credit"]["drawn"]["weights"] == pytest.approx(credits["drawn"].weights[i, :n].tolist(), rel=1e-3)
        assert row["credit"]["added"]["weights"] is None
        assert row["credit"]["drawn"]["diagnostics"].keys() == credits["drawn"].diagnostics.keys()
        assert row["reward"] == float(rollouts.rewards[i])
        assert row["answer_start"] == int(rollouts.answer_start[i])
        assert row["correct"] is row["group"] is None
    assert any(row["peaks"]["preplan"] for row in rows)
    assert trace_rows(tokenizer, rollouts, credits, signals, [2, 0]) == [rows[2], rows[0]]
    bare = trace_rows(tokenizer, rollouts, credits, tc.collect(policy, rollouts, tc.method("uniform").needs))
    assert [(row["signals"], row["peaks"]) for row in bare] == [({}, {})] * 3


@pytest.mark.parametrize("layer", [-1, 0])
def test_pictures_are_rows_of_the_full_matrix(policy, rollouts, layer):
    pictures = attention_pictures(policy, rollouts, layer)
    assert [picture is None for picture in pictures] == [False, False, True]
    policy.set_attn_implementation("eager")
    batch = {"attention_mask": rollouts.attention_mask.long(), "position_ids": rollouts.position_ids}
    with torch.no_grad():
        full = policy(rollouts.input_ids, **batch, output_attentions=True).attentions[layer].mean(1)
    policy.set_attn_implementation("sdpa")
    prompt = rollouts.prompt_ids.shape[1]
    for i in range(2):
        start, length = int(rollouts.answer_start[i]), int(rollouts.lengths[i])
        assert pictures[i]["layer"] == layer % 3
        assert pictures[i]["rows"] == list(range(start, length))
        assert pictures[i]["columns"] == list(range(start))
        expected = full[i, prompt + start : prompt + length, prompt : prompt + start]
        torch.testing.assert_close(torch.tensor(pictures[i]["values"]), expected, rtol=1e-3, atol=1e-6)


def test_a_long_picture_is_averaged_down():
    policy, (rows, columns) = tiny_policy(), PICTURE
    start, length = 3 * columns, 3 * columns + 2 * rows
    ids = torch.arange(length)[None] % 60 + 2
    mask = torch.ones_like(ids)
    one = tc.Rollouts(ids[:, :4], mask[:, :4], ids, mask, answer_start=torch.tensor([start]))
    (small,) = attention_pictures(policy, one)
    policy.set_attn_implementation("eager")
    with torch.no_grad():
        full = policy(one.input_ids, output_attentions=True).attentions[-1].mean(1)[0, 4:, 4:]
    expected = full[start:, :start].reshape(rows, 2, columns, 3).mean((1, 3))
    assert small["columns"] == list(range(0, start, 3))
    assert small["rows"] == list(range(start, length, 2))
    torch.testing.assert_close(torch.tensor(small["values"]), expected, rtol=1e-3, atol=1e-7)


def test_a_character_of_several_tokens_is_whole_in_the_prompt_and_at_its_last_token():
    tokenizer = byte_level()
    prompt, completion = (torch.tensor([tokenizer(text).input_ids]) for text in ("é?", "a🙂数"))
    rollouts = tc.Rollouts(prompt, torch.ones_like(prompt), completion, torch.ones_like(completion))
    credits = {"added": additive(rollouts, torch.ones(1), torch.zeros_like(completion))}
    (row,) = trace_rows(tokenizer, rollouts, credits, Signals())
    assert row["prompt"] == "é?"
    assert row["tokens"] == ["a", "", "", "", "🙂", "", "", "数"]
    assert row["partial"] == [1, 2, 3, 5, 6]


CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content }}{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "How many\nusers 🙂?"},
]


def chat_tokenizer(template):
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|eot|>"]})
    tokenizer.chat_template = template
    return tokenizer


def headline(tokenizer, prompt, completion="Seven."):
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    return Headlines(tokenizer)(ids, prompt, completion)


@pytest.mark.parametrize("template", [CHATML, LLAMA, MISTRAL])
@pytest.mark.parametrize("messages", [TURNS, TURNS[2:]])
def test_a_chat_is_called_by_its_last_question(template, messages):
    tokenizer = chat_tokenizer(template)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert headline(tokenizer, prompt) == "How many users 🙂?"


def test_what_is_no_chat_is_called_by_its_text_and_an_unknown_chat_by_its_completion():
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
    assert headline(chat_tokenizer(CHATML), "Q: how\nmany?") == "Q: how many?"
    assert headline(chat_tokenizer(None), "<|im_start|>how many?") == "how many?"
    assert headline(chat_tokenizer(None), chat) == "Seven."
    assert headline(chat_tokenizer("{{ raise_exception('no') }}"), chat) == "Seven."
    assert len(headline(chat_tokenizer(None), "word " * 500)) == 200


def test_a_group_of_one_reward_is_known(policy, tokenizer, rollouts):
    rewarded = replace(rollouts, rewards=torch.tensor([1.0, 1.0, 0.5]), group=torch.tensor([0, 0, 1]))
    credits = {"even": tc.assign(policy, rewarded, "uniform", torch.zeros(3))}
    rows = trace_rows(tokenizer, rewarded, credits, Signals())
    assert [row["same_reward"] for row in rows] == [2, 2, 1]
    mixed = replace(rewarded, group=torch.tensor([0, 1, 1]))
    assert [row["same_reward"] for row in trace_rows(tokenizer, mixed, credits, Signals())] == [1, None, None]
    assert trace_rows(tokenizer, rollouts, credits, Signals())[0]["same_reward"] is None
