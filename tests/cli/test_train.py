"""`tokencredit train`: every example is parsed and takes one step, with a tiny model and data standing in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import tiny_reward_model
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
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
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")  # has no token for it, as real ones may not
    for name, model in (("policy", policy), ("scorer", scorer)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"3,5,{n}={8 + n}?\n", "answer": str(8 + n)} for n in range(1, 9)]
    rows = [row | {"blank": "~" if n == 1 else row["prompt"]} for n, row in enumerate(rows)]
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
    assert "of 4 completions carry loss" in result.output
    assert not (stand_ins / "out").exists()


def test_a_dry_run_says_which_completions_the_method_leaves_uniform(stand_ins):
    """The credit is checked on all completions, also on those that carry no loss."""
    result = run(stand_ins, "atpo", "--dry-run", credit_answer="never [written]")
    assert result.exit_code == 0, result.output
    assert "atpo leaves 4 of 4 completions uniform: no answer span was found" in " ".join(result.output.split())


REWARDS = """
def text(completions, **_):
    return "0" * len(completions)

def one_number(completions, **_):
    return 1.0

def nested(completions, **_):
    return [[1.0] for _ in completions]
"""


@pytest.mark.parametrize("name", ["text", "one_number", "nested"])
def test_a_reward_that_returns_no_list_of_numbers_ends_the_run_with_one_line(stand_ins, monkeypatch, name):
    (stand_ins / "own_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(stand_ins)
    result = run(stand_ins, "atpo", "--dry-run", rewards=f"own_rewards:{name}")
    assert result.exit_code == 2, result.output
    assert f"error: the reward function {name} " in result.output
    assert "expected a list of 4 numbers" in " ".join(result.output.split())


def test_a_model_without_weights_ends_with_its_reason(stand_ins):
    (stand_ins / "policy" / "model.safetensors").unlink()
    result = run(stand_ins, "atpo", "--dry-run")
    assert result.exit_code == 2, result.output
    assert "policy cannot be loaded: " in " ".join(result.output.split())


def test_a_model_that_lacks_a_layer_is_refused_with_the_names_of_its_weights(stand_ins):
    file = stand_ins / "policy" / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.0" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    result = run(stand_ins, "atpo", "--dry-run")
    assert result.exit_code == 2, result.output
    assert "lacks" in result.output
    assert "model.layers.0.input_layernorm.weight" in " ".join(result.output.split())


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
        ({"model_name_or_path": "absent/model/folder"}, "the model absent/model/folder cannot be loaded"),
        ({"lerning_rate": 1}, "lerning_rate"),
        ({"learning_rate": "fast"}, "invalid float value: 'fast'"),
        ({"model_name_or_path": "/nowhere/at/all"}, "there is no folder /nowhere/at/all to load the model"),
        ({"model_name_or_path": "nobody/absent"}, "the model nobody/absent cannot be loaded"),
        ({"output_dir": EXAMPLES / "atpo.yaml"}, "atpo.yaml is a file, not a folder"),
        (
            {"instruction": "~", "prompt_column": "blank", "rewards": "format", "chat": False},
            "row 1: the prompt '~~' has no token",
        ),
    ],
)
def test_bad_input_ends_with_its_reason(stand_ins, changed, message):
    result = run(stand_ins, "rhythm", "--dry-run", **changed)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rewards: [math", "line 1 cannot be read as YAML: expected ',' or ']'"),
        ("\xff", "cannot be read as YAML"),
        ("- math\n", "must be a YAML mapping"),
        ("", "must be a YAML mapping"),
        ("chat: true\nlimit: 4\nchat: false\n", "line 3 cannot be read as YAML: the key 'chat' is there twice"),
        ("lerning_rate: 1.0\n", "there is no argument 'lerning_rate'; did you mean learning_rate?"),
        ("1: 2\n", "there is no argument 1"),
        ("learning_rate: [1.0]\n", "learning_rate must be a number; got [1.0]"),
        ("learning_rate: yes\n", "learning_rate must be a number; got True"),
        ("max_steps: 1.5\n", "max_steps must be a whole number; got 1.5"),
        ("rewards: math\n", "rewards must be a list, such as [math]; got 'math'"),
        ("env: 3\n", "env"),
    ],
)
def test_a_file_that_does_not_fit_ends_with_its_reason(tmp_path, content, message):
    """Before a model or data are looked for: the file names none."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode("latin-1"))
    result = CliRunner().invoke(app, ["train", "--config", str(path)])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1
    assert message in result.output


def test_texts_and_merged_keys_of_a_file_are_left_to_the_parser(tmp_path):
    from trl import ModelConfig, TrlParser

    from tokencredit.cli.train_config import check_config
    from tokencredit.trainers.trl import CreditGRPOConfig
    from tokencredit.trainers.trl_script import TrainArguments

    parser = TrlParser((TrainArguments, CreditGRPOConfig))
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-6\nmax_steps: 3.0\nlimit: null\nrewards: [math]\nchat: true\n")
    check_config(path, parser)
    parser = TrlParser((TrainArguments, CreditGRPOConfig, ModelConfig))
    for example in EXAMPLES.glob("*.yaml"):
        check_config(example, parser)
    path.write_text("credit_params: &own {q: 0.3}\nmodel_init_kwargs: {<<: *own, q: 0.4}\n")
    check_config(path, parser)
