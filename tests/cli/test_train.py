"""`tokencredit train`: every example is parsed and takes one step, with a tiny model and data standing in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tokencredit.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = {"smollm2": "rhythm"}
"""Of the examples that are not named after theirs."""
FLAGS = {name: {"bf16": False} for name in ("arca", "atpo", "attnpo", "p2t", "rhythm")}
"""The flag that each example asks for on a CPU."""
SMALL = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_completion_length": 12,
}
"""Sizes that a test has time for."""


def run(folder, example, *more, **changed):
    given = {
        **SMALL,
        **FLAGS.get(example, {}),
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
        ({"learning_rate": "fast"}, "invalid float value: 'fast'"),
        ({"credit_method": "atpo:floor"}, "expected NAME:PARAMETER=VALUE"),
        ({"credit_method": "rhythm:q=0.3"}, "q is 0.3 in credit_method='rhythm:q=0.3' and 0.4 in credit_params"),
        ({"credit_method": "rhythm:q=0.4"}, "q is 0.4 in credit_method='rhythm:q=0.4' and 0.4 in credit_params"),
        ({"credit_params": "{q"}, "credit_params"),
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
        ("credit_methd: atpo\n", "there is no argument 'credit_methd'; did you mean credit_method?"),
        ("overwrite: true\n", "overwrite is no setting of a file: give --overwrite on the command line"),
        ("overwrite_output_dir: true\n", "give --overwrite on the command line"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learnig_rate", "1e-5"], "there is no option --learnig_rate; did you mean --learning_rate?"),
        (["--credit_methd=atpo"], "there is no option --credit_methd; did you mean --credit_method?"),
        (["--credit-methd", "atpo"], "there is no option --credit-methd; did you mean --credit_method?"),
        (["--learning_r", "1e-5"], "there is no option --learning_r; did you mean --learning_rate?"),
        (["--overwrite_output_dir"], "did you mean --overwrite?"),
        (["--dry_run"], "did you mean --dry-run?"),
        (["--conifg", "mine.yaml"], "did you mean --config?"),
        (["--qqqqqq", "1"], "there is no option --qqqqqq; `tokencredit train --help` lists them"),
        (["--learning_rate", "1e-5", "stray"], "the word 'stray' belongs to no option"),
        (["--max_steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_misspelt_option_is_one_line_before_a_model_is_looked_for(words, message):
    result = CliRunner().invoke(app, ["train", "--model_name_or_path", "/nowhere", "--data", "absent.jsonl", *words])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("name", "params", "joined"),
    [
        ("atpo:floor=0.5", {}, ("atpo", {"floor": 0.5})),
        ("rhythm:strategy=local,q=0.3", "{}", ("rhythm", {"strategy": "local", "q": 0.3})),
        ("attnpo:heads=[[1,0],[0,1]]", None, ("attnpo", {"heads": [[1, 0], [0, 1]]})),
        ("rhythm:q=0.3", {"strategy": "local"}, ("rhythm", {"q": 0.3, "strategy": "local"})),
        ("rhythm", {"q": 0.3}, ("rhythm", {"q": 0.3})),
        ("own_methods:Mine", {"q": 0.3}, ("own_methods:Mine", {"q": 0.3})),
    ],
)
def test_a_method_is_given_with_its_parameters_or_beside_them(name, params, joined):
    from tokencredit.cli.train_config import joined_method

    assert joined_method(name, params) == joined


def test_a_method_with_parameters_is_trained_with(stand_ins):
    result = run(stand_ins, "smollm2", "--dry-run", credit_method="atpo:floor=0.25,layers=1", credit_params="{}")
    assert result.exit_code == 0, result.output
    assert "dry run: one step of atpo" in result.output
    result = run(stand_ins, "smollm2", "--dry-run", credit_method="atpo:floor=2,layers=1", credit_params="{}")
    assert result.exit_code == 2, result.output
    assert "floor" in result.output


@pytest.mark.parametrize(
    ("example", "params"),
    [
        ("attnpo", {"heads": [[99, 0]]}),
        ("attnpo", {"heads": [[1, 0], [0, 7]]}),
        ("rhythm", {"local_heads": [[0, 0]], "global_heads": [[1, 9]]}),
        ("rhythm", {"local_heads": [[9, 0]], "global_heads": [[1, 0]]}),
    ],
)
def test_heads_that_the_model_lacks_are_refused_before_anything_is_generated(stand_ins, monkeypatch, example, params):
    (stand_ins / "own_reward.py").write_text("def never(**_):\n    raise AssertionError('generated')\n")
    monkeypatch.syspath_prepend(stand_ins)
    own = {"rewards": "own_reward:never", "credit_params": json.dumps(params), "reward_weights": 1.0}
    own |= {"credit_correct_reward": "never"}
    result = run(stand_ins, example, "--dry-run", **own)
    assert result.exit_code == 2, result.output
    assert "but the policy has 2" in result.output


def test_a_dry_run_leaves_nothing_behind(stand_ins, monkeypatch):
    here, temporary = stand_ins / "here", stand_ins / "temporary"
    for folder in (here, temporary):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    result = run(stand_ins, "atpo", "--dry-run", log_completions=True)
    assert result.exit_code == 0, result.output
    assert not (stand_ins / "out").exists()
    assert not [*here.iterdir(), *temporary.iterdir()]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"instruction": ""}, "instruction: none"),
        ({"instruction": " Be brief."}, "instruction: ' Be brief.', added to every question"),
    ],
)
def test_the_instruction_that_is_used_is_printed(stand_ins, changed, said):
    result = run(stand_ins, "atpo", "--dry-run", **changed)
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())


def test_texts_and_merged_keys_of_a_file_are_left_to_the_parser(tmp_path):
    from tokencredit.cli.train_config import Parser, check_config

    parser = Parser()
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-6\nmax_steps: 3.0\nlimit: null\nrewards: [math]\nchat: true\n")
    check_config(path, parser)
    for example in EXAMPLES.glob("*.yaml"):
        check_config(example, parser)
    path.write_text("credit_params: &own {q: 0.3}\nmodel_init_kwargs: {<<: *own, q: 0.4}\n")
    check_config(path, parser)
