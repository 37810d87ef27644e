"""examples/smollm2.py from the first stage to the report, with a tiny random model in place of SmolLM2.

The run fails once, is interrupted once, and goes on each time. The interrupted part runs as a user starts it, in
processes of its own. In the other parts the stages' commands run in this process, because importing PyTorch for each of
them would take longer than all that they do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from byte_tokenizers import byte_level
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tokencredit.cli import app

DRIVER = Path(__file__).parents[2] / "examples" / "smollm2.py"
SOURCE = DRIVER.parents[1] / "src"
BEFORE = ["problems", "warm-up", "before-greedy", "before-sampled"]
STAGES = [*BEFORE, "training", "after-greedy", "after-sampled", "report"]
SETTINGS = ("--warmup-steps", "1", "--steps", "25", "--held-out", "3")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(folder):
    tokenizer = byte_level.__wrapped__()  # a tokenizer of our own, not the one that other tests share
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def driver():
    spec = importlib.util.spec_from_file_location("smollm2_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interrupted(words, moment):
    """Start the driver as a user does, press Ctrl-C as soon as `moment()` is true, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not moment():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and to the command that it runs
    output, _ = process.communicate()
    return process.returncode, output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What became of each part of the run: the commands it ran, the stages that were done then, and the message."""
    folder = tmp_path_factory.mktemp("driver")
    save_tiny_model(folder / "model")
    out = folder / "run"
    words = ["--model", str(folder / "model"), "--out", str(out), *SETTINGS]
    module, commands = driver(), []

    def stages():
        return list(json.loads((out / "stages.json").read_text("utf-8")))

    def exit_code(command):
        commands[-1].append(command)
        return CliRunner().invoke(app, command).exit_code

    def part(*others):
        commands.append([])
        try:
            module.main([*words, *others])
        except SystemExit as error:
            return SimpleNamespace(commands=commands[-1], stages=stages(), message=str(error))
        return SimpleNamespace(commands=commands[-1], stages=stages(), message="")

    module.exit_code = exit_code
    out.mkdir()
    (out / "trained").write_text("a file where training needs a folder")
    failed = part()
    (out / "trained").unlink()
    checkpoint = out / "trained" / "checkpoint-5" / "trainer_state.json"
    code, output = interrupted(words, checkpoint.exists)
    (out / "after-greedy.json").write_text("what an interrupted evaluation may leave")
    halted = SimpleNamespace(code=code, output=output, stages=stages())
    return SimpleNamespace(
        out=out,
        failed=failed,
        halted=halted,
        continued=part(),
        repeated=part(),
        changed=part("--held-out", "4"),
        summary=module.summary(out),
    )


def names(commands):
    return [command[0] for command in commands]


def test_a_stage_that_fails_ends_the_run_and_is_not_counted_as_done(run):
    assert names(run.failed.commands) == ["word-problems", "warmup", "eval", "eval", "train"]
    assert run.failed.stages == BEFORE
    assert "tokencredit train failed" in run.failed.message
    assert "the same command goes on from here" in run.failed.message


def test_an_interrupted_run_says_how_to_go_on_and_has_repeated_nothing(run):
    assert run.halted.code == 1
    assert run.halted.output.rstrip().endswith("Interrupted. The same command goes on from here.")
    assert re.findall(r"^\$ tokencredit (\S+)", run.halted.output, re.MULTILINE) == ["train"]
    assert run.halted.stages == BEFORE


def test_it_goes_on_from_the_last_checkpoint_through_the_stages_that_are_left(run):
    assert names(run.continued.commands) == ["train", "eval", "eval", "score"]
    training = run.continued.commands[0]
    checkpoint = Path(training[training.index("--resume_from_checkpoint") + 1])
    assert int(checkpoint.name.removeprefix("checkpoint-")) in (5, 10, 15, 20)
    state = json.loads((run.out / "trained" / "checkpoint-25" / "trainer_state.json").read_text("utf-8"))
    assert [row["step"] for row in state["log_history"] if "loss" in row] == list(range(1, 26))
    assert run.continued.message == ""
    assert run.continued.stages == STAGES


def test_a_run_that_is_done_runs_nothing_again(run):
    assert run.repeated.commands == []
    assert run.repeated.stages == STAGES


def test_other_settings_do_not_go_on_with_it(run):
    assert run.changed.commands == []
    assert "other settings (--held-out 3)" in run.changed.message


def test_the_summary_shows_the_accuracies_of_the_evaluations(run):
    for when in ("before", "after"):
        (line,) = [line for line in run.summary.splitlines() if line.startswith(when)]
        figures = list(map(float, re.findall(r"\d\.\d+", line)))
        rewards = [json.loads((run.out / f"{when}-{kind}.json").read_text("utf-8")) for kind in ("greedy", "sampled")]
        assert [results["problems"] for results in rewards] == [3, 3]
        expected = [results["reward"][name] for results in rewards for name in ("value", "low", "high")]
        assert figures == pytest.approx(expected, abs=0.005)


def test_the_report_shows_the_held_out_completions_after_training(run):
    completions = [json.loads(line) for line in (run.out / "after-sampled.jsonl").read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in (run.out / "report" / "scores.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == len(completions) == 3
    assert rows[0]["credit"].keys() == {"rhythm", "atpo", "surprisal"}
    assert (run.out / "report" / "report.html").stat().st_size > 50_000
