"""Checkpoints that lack weights, which transformers would draw at random."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_policy, tiny_reward_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.checkpoints import load_complete
from tokencredit.cli import app
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

ROW = {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "wait;</think>"], "answer": "3}", "essential": [True, False]}
SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)


def cut(folder, drop=lambda key: False, change=lambda key, value: value):
    """Rewrite a checkpoint without some of its weights, or with others."""
    file = folder / "model.safetensors"
    weights = {key: change(key, value).contiguous() for key, value in load_file(file).items() if not drop(key)}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    """A policy of the testbed with a tokenizer, whose second layer is missing, and labelled completions."""
    policy = tmp_path / "policy"
    build_policy(SIZE).save_pretrained(policy)
    build_tokenizer().save_pretrained(policy)
    cut(policy, lambda key: ".layers.1." in key)
    (tmp_path / "mine.jsonl").write_text(json.dumps({**ROW, "correct": True}))
    return tmp_path


def test_a_reward_model_without_its_head_is_refused(tmp_path):
    """A classifier that was saved without it, whose reward would be drawn anew at every load."""
    tiny_policy().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"num_labels": 1, "architectures": ["Qwen3ForSequenceClassification"]})
    )
    with pytest.raises(ValueError, match=r"lacks 1 weights of a Qwen3ForSequenceClassification.* score\.weight"):
        tc.RewardModel.from_pretrained(str(tmp_path), build_tokenizer())
    tiny_reward_model().save_pretrained(tmp_path)
    tc.RewardModel.from_pretrained(str(tmp_path), build_tokenizer())


@pytest.mark.parametrize("command", ["score", "heads", "audit", "eval"])
def test_commands_refuse_a_policy_without_all_of_its_layers(folder, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    policy, traces = str(folder / "policy"), str(folder / "mine.jsonl")
    words = {
        "score": ["score", policy, "--traces", traces, "--out", str(folder / "out")],
        "heads": ["heads", policy, "--traces", traces],
        "audit": ["audit", policy, "--traces", traces],
        "eval": ["eval", policy, "--data", traces],
    }[command]
    (folder / "mine.jsonl").write_text(json.dumps({**ROW, "correct": True, "prompt": "a", "answer": "3"}))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    for part in ("lacks 11 weights of a Qwen3ForCausalLM", "model.layers.1.input_layernorm.weight", "and 6 more"):
        assert part in result.output


def test_weights_of_another_shape_are_missing_too(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    cut(tmp_path, change=lambda key, value: value[:40] if "mlp.up_proj" in key else value)
    with pytest.raises(ValueError, match=r"lacks 4 weights.*another shape.*up_proj"):
        load_complete(AutoModelForCausalLM, str(tmp_path))


def test_tied_weights_are_not_missing(tmp_path):
    policy = tiny_policy(tie_word_embeddings=True)
    policy.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_complete(AutoModelForCausalLM, str(tmp_path))
    assert torch.equal(loaded.lm_head.weight, policy.lm_head.weight)
