"""`tokencredit train`: every example is parsed and takes one step, with a tiny model and data standing in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_reward_model
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = {"smollm2": "rhythm"}
"""Of the examples that are not named after theirs."""
SMALL = {
    "dtype": "float32",
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_completion_length": 12,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture
def stand_ins(tmp_path):
    """A tiny policy, a process reward model with the same tokenizer, and problems."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    )
    policy = build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48))
    scorer = tiny_reward_model(process=True, vocab_size=len(tokenizer))
    for name, model in (("policy", policy), ("scorer", scorer)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"3,5,{n}={8 + n}?\n", "answer": str(8 + n)} for n in range(1, 9)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(folder, example, *more, **changed):
    given = {
        **SMALL,
        "model_name_or_path": folder / "policy",
        "data": folder / "problems.jsonl",
        "output_dir": folder / "out",
        **changed,
    }
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return CliRunner().invoke(app, ["train", "--config", str(EXAMPLES / f"{example}.yaml"), *options, *more])


@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_examples_take_a_step(stand_ins, example):
    own = {
        "p2t": {"reward_model": stand_ins / "scorer"},
        "attnpo": {"credit_params": json.dumps({"heads": [[1, 0]], "delay": 1000})},
    }
    result = run(stand_ins, example, "--dry-run", **own.get(example, {}))
    assert result.exit_code == 0, result.output
    assert f"dry run: one step of {METHODS.get(example, example)}" in result.output
    assert not (stand_ins / "out" / "model.safetensors").exists()


def test_a_run_leaves_its_model(stand_ins):
    result = run(stand_ins, "atpo", max_steps=1, save_strategy="no", report_to="none")
    assert result.exit_code == 0, result.output
    assert (stand_ins / "out" / "model.safetensors").is_file()
    assert (stand_ins / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"credit_method": "nope"}, "Valid methods"),
        ({"data": "absent.jsonl"}, "absent.jsonl"),
        ({"rewards": "nope"}, "nope"),
        ({"model_name_or_path": ""}, "name a model"),
        ({"lerning_rate": 1}, "lerning_rate"),
    ],
)
def test_bad_input_ends_with_its_reason(stand_ins, changed, message):
    result = run(stand_ins, "rhythm", "--dry-run", **changed)
    assert result.exit_code == 2, result.output
    assert message in result.output
