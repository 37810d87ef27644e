"""Where `tokencredit train` saves a run, what Ctrl-C leaves, and how the run goes on."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.train_output import check_steps_left, checkpoint_named, checkpoints, clear

REWARD = """
import os, signal

calls, stop_at = 0, None

def varied(completions, **_):
    global calls
    calls += 1
    if calls == stop_at:
        os.kill(os.getpid(), signal.SIGINT)
    return [sum(map(ord, text)) % 7 / 7 for text in completions]
"""
SETTINGS = {
    "dtype": "float32",
    "rewards": "interrupting:varied",
    "credit_method": "surprisal",
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 8,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
}
TIMES = ("time", "runtime", "per_second", "credit/seconds", "credit/share_of_step")


@pytest.fixture
def reward(stand_ins, monkeypatch):
    """The module of the reward, which sends the process a SIGINT in its call number `stop_at`."""
    (stand_ins / "interrupting.py").write_text(REWARD)
    monkeypatch.syspath_prepend(stand_ins)
    monkeypatch.delitem(sys.modules, "interrupting", raising=False)
    import interrupting

    return interrupting


def run(folder, out, *more, **changed):
    given = {
        **SETTINGS,
        "model_name_or_path": folder / "policy",
        "data": folder / "problems.jsonl",
        "output_dir": folder / out,
        **changed,
    }
    return CliRunner().invoke(app, ["train", *(f"--{name}={value}" for name, value in given.items()), *more])


def logged(folder):
    """Everything that was logged in each step, except what says how long something took."""
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in state["log_history"]]


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(stand_ins, reward):
    whole = run(stand_ins, "whole")
    assert whole.exit_code == 0, whole.output
    reward.calls, reward.stop_at = 0, 4
    cut = run(stand_ins, "cut")
    assert cut.exit_code == 130, cut.output
    assert "Traceback" not in cut.output
    out = stand_ins / "cut"
    said = " ".join(cut.output.split())
    assert f"The last checkpoint is {out / 'checkpoint-2'}." in said
    assert "the same command with --resume_from_checkpoint true." in said
    assert not (out / "model.safetensors").exists()
    again = run(stand_ins, "cut")
    assert again.exit_code == 2, again.output
    assert "holds a run with checkpoints up to checkpoint-2" in again.output
    reward.calls, reward.stop_at = 0, None
    resumed = run(stand_ins, "cut", "--resume_from_checkpoint", "true")
    assert resumed.exit_code == 0, resumed.output
    assert reward.calls == 2
    assert logged(out) == logged(stand_ins / "whole")
    ended, expected = (load_file(folder / "model.safetensors") for folder in (out, stand_ins / "whole"))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    start = load_file(stand_ins / "policy" / "model.safetensors")
    assert not all(torch.equal(start[name], expected[name]) for name in start)


def test_without_a_checkpoint_the_interruption_says_so(stand_ins, reward):
    reward.stop_at = 1
    result = run(stand_ins, "out")
    assert result.exit_code == 130, result.output
    assert "There is no checkpoint in" in result.output
    assert "save_steps is 2" in " ".join(result.output.split())
    reward.calls, reward.stop_at = 0, None
    again = run(stand_ins, "out", max_steps=1)
    assert again.exit_code == 0, again.output


@pytest.fixture
def old_run(tmp_path):
    """A folder with what a run leaves, a checkpoint that was cut off, and a file of the user's."""
    folder = tmp_path / "old"
    for step in (5, 10, 15):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text('{"global' if step == 15 else "{}")
    (folder / "completions").mkdir()
    for name in ("model.safetensors", "config.json", "notes.txt", "completions/completions_00001.parquet"):
        (folder / name).write_text("{}")
    return folder


NOTHING = ["train", "--model_name_or_path", "/nowhere", "--data", "absent.jsonl", "--bf16", "false"]


def test_a_run_is_replaced_on_request_only(old_run):
    words = [*NOTHING, "--output_dir", str(old_run)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2, refused.output
    assert len(refused.output.splitlines()) == 1
    for part in ("up to checkpoint-10 and a saved model", "--overwrite", "--resume_from_checkpoint true"):
        assert part in refused.output
    both = CliRunner().invoke(app, [*words, "--overwrite", "--resume_from_checkpoint", "true"])
    assert "exclude each other" in both.output
    for more in (["--overwrite"], ["--resume_from_checkpoint", "true"], ["--overwrite", "--dry-run"]):
        accepted = CliRunner().invoke(app, [*words, *more])
        assert accepted.exit_code == 2
        assert "there is no folder /nowhere to load the model" in accepted.output
    assert (old_run / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["model_name_or_path", "data", "reward_model"])
def test_what_a_run_reads_is_not_replaced_by_it(old_run, name):
    given = {"model_name_or_path": "/nowhere", "data": "absent.jsonl", name: old_run / "checkpoint-5"}
    words = [f"--{key}={value}" for key, value in given.items()]
    result = CliRunner().invoke(app, ["train", "--bf16=false", *words, "--output_dir", str(old_run), "--overwrite"])
    assert result.exit_code == 2, result.output
    assert f"{name} {old_run / 'checkpoint-5'} lies in output_dir" in result.output


def test_overwriting_removes_the_run_and_leaves_other_files(old_run):
    clear(old_run)
    assert sorted(path.name for path in old_run.iterdir()) == ["completions", "notes.txt"]
    assert not list((old_run / "completions").iterdir())


def test_an_overwriting_run_leaves_no_old_checkpoint_behind(stand_ins, reward, old_run):
    result = run(stand_ins, "old", "--overwrite", max_steps=1, save_strategy="no")
    assert result.exit_code == 0, result.output
    assert not list(old_run.glob("checkpoint-*"))
    assert load_file(old_run / "model.safetensors")
    assert (old_run / "notes.txt").exists()


def test_a_run_that_has_made_all_its_steps_makes_no_further_one(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    for max_steps in (2, 3):
        with pytest.raises(ValueError, match=f"has made 3 steps, and max_steps is {max_steps}: raise max_steps"):
            check_steps_left(str(tmp_path), max_steps)
    check_steps_left(str(tmp_path), 4)
    check_steps_left(str(tmp_path), -1)
    check_steps_left(None, 1)


def test_the_checkpoint_that_is_meant(old_run):
    assert [path.name for path in checkpoints(old_run)] == ["checkpoint-5", "checkpoint-10"]
    for given in (True, "true", "True"):
        assert checkpoint_named(given, old_run) == str(old_run / "checkpoint-10")
    assert checkpoint_named(str(old_run / "checkpoint-5"), old_run) == str(old_run / "checkpoint-5")
    for given in (None, False, "false", "none"):
        assert checkpoint_named(given, old_run) is None


@pytest.mark.parametrize(
    ("given", "out", "message"),
    [
        ("true", "new", "there is no complete checkpoint in"),
        ("old/checkpoint-7", "old", "there is no folder old/checkpoint-7; old holds checkpoint-5, checkpoint-10"),
        ("old/checkpoint-15", "old", "old/checkpoint-15 is no complete checkpoint"),
        ("policy", "new", "there is no folder policy"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(old_run, monkeypatch, given, out, message):
    """On the command line, and in a file."""
    monkeypatch.chdir(old_run.parent)
    words = [*NOTHING, "--output_dir", out]
    (old_run.parent / "mine.yaml").write_text(f"resume_from_checkpoint: {given}\n")
    for more in (["--resume_from_checkpoint", given], ["--config", "mine.yaml"]):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert len(result.output.splitlines()) == 1
        assert not (old_run.parent / "new").exists()
