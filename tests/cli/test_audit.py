"""`tokencredit audit`, on the testbed and on a user's traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.cli import app
from tokencredit.head_files import HeadRank
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

ROWS = [
    {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "b=2;</think>"], "answer": "3", "essential": [True, False]},
    {"prompt": "Q:a=1+2?a\n", "steps": ["b=2;", "a=1+2=4;</think>"], "answer": "4", "first_error": 1},
]


def run(*words):
    return CliRunner().invoke(app, ["audit", *map(str, words)])


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_the_testbed(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    small = ["--warmup-steps", 2, "--steps", 1, "--problems", 2, "--estimated", 1, "--samples", 2]
    arms = "uniform,atpo:floor=0.25,layers=1,arca"
    result = run("--methods", arms, *small, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["policies"].keys() == {"before RL", "after RL", "after RL, LoRA"}
    assert found["policies"]["before RL"]["left_out"].keys() == {"arca"}
    names = [row["name"] for row in found["policies"]["after RL, LoRA"]["rows"]]
    assert {
        "uniform",
        "atpo:floor=0.25,layers=1",
        "arca",
        "arca, shuffled",
        "later",
        "replacement effect",
        "oracle",
    } <= set(names)
    assert "first error" in result.output
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_users_traces(tmp_path, model):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    result = run(model, "--traces", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "audit.json").read_text())["policies"][str(model)]
    assert found["left_out"].keys() == {"arca", "divergence", "p2t", "attnpo"}
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    assert rows["oracle"]["error_auroc"]["estimate"]["value"] == 1
    assert rows["uniform"]["step_ranking"]["estimate"]["value"] == 0.5
    assert len(found["traces"]) == 2


def test_completions_that_a_method_leaves_uniform_are_said(tmp_path, model, monkeypatch):
    """On the terminal, in audit.json and on the page."""
    monkeypatch.chdir(tmp_path)
    signature = tc.signals.model_signature(AutoModelForCausalLM.from_pretrained(model))
    tc.HeadFile(signature, (HeadRank(1, 0, 0.9, 10),), completions=3, labels="exact").write(Path("heads.json"))
    single = {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;</think>"], "answer": "3", "correct": True}
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, single])))
    result = run(model, "--traces", "mine.jsonl", "--methods", "atpo,attnpo:heads=heads.json", "--out", "out")
    assert result.exit_code == 0, result.output
    expected = "attnpo:heads=heads.json leaves 1 of 3 completions uniform: their reasoning is a single step"
    assert expected in " ".join(result.output.split())
    (found,) = json.loads(Path("out/audit.json").read_text())["policies"].values()
    assert list(found["notices"]) == ["attnpo:heads=heads.json"]
    assert expected in Path("out/report.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "nope"], "unknown method"),
        (["--methods", "atpo:nope=1"], "Valid parameters"),
        (["--methods", "atpo,atpo"], "each once"),
        (["--methods", ""], "at least one method"),
        (["--task", "nope"], "unknown task"),
        (["model"], "go together"),
    ],
)
def test_what_cannot_be_audited_is_refused(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
