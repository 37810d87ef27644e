"""`tokencredit eval` with a small model and a user's problems."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
ROWS = [
    {"prompt": "Q:a=6,b=a+1?b\n", "answer": "7"},
    {"prompt": "Q:a=6,b=a-1?b\n", "answer": "5"},
    {"prompt": "Q:a=2,b=a*a?b\n", "answer": "4"},
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and problems."""
    monkeypatch.chdir(tmp_path)
    build_policy(SIZE).save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def run(*args, data="problems.jsonl"):
    return CliRunner().invoke(app, ["eval", "--data", data, *map(str, args)], env={"COLUMNS": "200"})


def test_a_model_is_measured_and_its_completions_are_kept(here):
    result = run(
        "model", "--reward", "chain", "--samples", 4, "--temperature", 1, "--max-new-tokens", 5, "--limit", 2,
        "--batch-size", 3, "--out", "results/all.json", "--completions", "results/all.jsonl",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for said in ("evaluate: 2/2", "2 problems, reward chain", "avg@4", "pass@4", "tokens", "results/all.json"):
        assert said in result.output
    found = json.loads((here / "results/all.json").read_text())
    assert (found["model"], found["data"], found["reward_name"]) == ("model", "problems.jsonl", "chain")
    assert (found["problems"], found["samples"], found["temperature"]) == (2, 4, 1.0)
    lines = [json.loads(line) for line in (here / "results/all.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0] * 4 + [1] * 4
    assert [line["prompt"] for line in lines] == [ROWS[line["row"]]["prompt"] for line in lines]
    assert found["tokens"] == sum(line["tokens"] for line in lines) / 8
    assert found["reward"]["value"] == sum(line["reward"] for line in lines) / 8


@pytest.mark.parametrize("reward", ["chain", "math", "format"])
def test_gold_answers_score_one(here, reward):
    result = run("--gold", "--reward", reward, "--out", "gold.json")
    assert result.exit_code == 0, result.output
    assert "3 of 3 answers score 1 (100.0%)" in result.output
    assert json.loads((here / "gold.json").read_text())["gold"] == 1.0


def test_gold_lists_what_the_reward_cannot_read(here):
    (here / "problems.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, {"prompt": "?", "answer": "1+"}])))
    result = run("--gold")
    assert result.exit_code == 0, result.output
    assert "3 of 4 answers score 1 (75.0%)" in result.output
    assert "row 3: '1+'" in result.output
    assert "cannot be read as mathematics" in result.output
    before_the_model_loads = run("absent")
    assert before_the_model_loads.exit_code == 2
    assert "row 3: '1+'" in before_the_model_loads.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected either a MODEL, or --gold"),
        (["model", "--gold"], "expected either a MODEL, or --gold"),
        (["absent"], "absent cannot be loaded"),
        (["model", "--reward", "nope"], "Valid rewards"),
        (["model", "--prompt-column", "nope"], "there are prompt, answer"),
        (["model", "--samples", "2"], "2 samples at temperature 0"),
    ],
)
def test_bad_input_ends_with_its_reason(here, args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output


def test_chat_problems_need_a_chat_template(here):
    chat = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"style": "rule", "ground_truth": "2"}}
    (here / "chat.json").write_text(json.dumps([chat]))
    result = run("model", data="chat.json")
    assert result.exit_code == 2
    assert "has no chat template" in result.output
