"""`tokencredit score`: a user's traces under a user's model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.cli import app
from tokencredit.cli.score import _table
from tokencredit.completions import load_completions
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

ROWS = [
    {"prompt": "Q:a=1+6?a", "completion": "<think>a=1+6=7;</think>\\boxed{a=7}", "correct": True, "reward": 1.0},
    {"prompt": "Q:a=1+6?a", "completion": "<think>a=1+6=8;</think>\\boxed{a=8}", "correct": False, "reward": 0.0},
    {"prompt": "Q:a=2+2?a", "completion": "<think>a=2", "correct": False, "reward": 0.0},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def asked(tmp_path, model):
    path = tmp_path / "mine.jsonl"

    def asked(*words, rows=ROWS, encoding="utf-8"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding)
        out = tmp_path / "out"
        words = ["score", "--model", model, "--traces", path, "--out", out, *words]
        result = CliRunner().invoke(app, [str(word) for word in words])
        lines = (out / "scores.jsonl").read_text().splitlines() if result.exit_code == 0 else []
        return result, [json.loads(line) for line in lines]

    asked.path = path
    return asked


def test_it_is_what_assign_gives(asked, model):
    result, rows = asked("--methods", "atpo:layers=1,surprisal,arca", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert "left out: arca" in result.output
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    rollouts = load_completions(asked.path, build_tokenizer()).rollouts
    assert rollouts.group.tolist() == [0, 0, 1]
    for name, m in {"atpo:layers=1": tc.method("atpo", layers=1), "surprisal": tc.method("surprisal")}.items():
        credit = tc.assign(policy, rollouts, m, torch.tensor([1.0, -1.0, -1.0]))
        for i, row in enumerate(rows):
            n = len(row["tokens"])
            assert row["credit"][name]["advantages"] == pytest.approx(credit.advantages[i, :n].tolist(), rel=1e-3)
    assert ["".join(row["tokens"]) for row in rows] == [row["completion"] for row in ROWS]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert (
        [row["answer_start"] >= 0 for row in rows]
        == [row["attention"] is not None for row in rows]
        == [True, True, False]
    )


def test_only_what_is_known_to_be_wrong_gets_minus_one(asked):
    """Whatever the others say, in both layouts."""
    plain = [ROWS[1], {key: ROWS[0][key] for key in ("prompt", "completion")}]
    steps = {"prompt": "Q:a=1+6?a", "steps": ["<think>a=1;</think>"], "answer": "8"}
    for rows in (plain, [steps | {"correct": False}, steps]):
        result, found = asked("--methods", "uniform", rows=rows)
        assert result.exit_code == 0, result.output
        assert [row["credit"]["uniform"]["advantages"][0] for row in found] == [-1.0, 1.0]
        assert [row["correct"] for row in found] == [False, None]
        shutil.rmtree(asked.path.parent / "out")


def test_a_windows_file_and_a_trace_too_long_for_the_model(asked):
    long = {"prompt": "Q:a=1+6?a", "completion": "<think>" + "a=1+6=7;" * 200 + "</think>7"}
    result, rows = asked("--methods", "uniform", rows=[long], encoding="utf-8-sig")
    assert result.exit_code == 0, result.output
    assert "the model was made for" in result.output
    assert "".join(rows[0]["tokens"]) == long["completion"]


def test_what_was_asked_is_written_down(asked):
    asked("--methods", "uniform,atpo:layers=1")
    config = json.loads((asked.path.parent / "out" / "config.json").read_text())
    assert config["methods"] == "uniform,atpo:layers=1"
    assert config["splitter"] == "phrases"


def test_outcomes(asked):
    _, rows = asked("--methods", "uniform", "--outcome", "rloo", rows=ROWS[:2])
    assert [row["credit"]["uniform"]["advantages"][0] for row in rows] == [1.0, -1.0]
    unlabelled = [{key: row[key] for key in ("prompt", "completion")} for row in ROWS]
    result, _ = asked("--outcome", "grpo", rows=unlabelled)
    assert result.exit_code == 2


def test_labelled_steps(asked):
    labelled = {"prompt": "Q:a=1+6?a", "steps": ["<think>a=1+6=8;", "b=1;</think>"], "answer": "8", "first_error": 0}
    result, (row,) = asked("--methods", "uniform", "--no-attention", rows=[labelled | {"essential": [True, False]}])
    assert result.exit_code == 0, result.output
    assert (row["essential"], row["first_error"]) == ([True, False], 0)
    assert set(row["step_index"]) == {0, 1, -1}
    assert row["signals"].keys() == {"logprob", "entropy"}
    assert row["attention"] is None


def test_the_table_of_the_paper(asked):
    long = [{"prompt": "Q:a=1+6?a", "completion": "<think>" + "a=1+6=7;" * 10 + "</think>\\boxed{a=7}"}]
    result, (row,) = asked("--methods", "atpo", "--table", rows=long)
    shown = [int(line.split()[0]) for line in result.output.splitlines() if line.strip()[:1].isdigit()]
    n, answer = len(row["tokens"]), row["answer_start"]
    assert shown == sorted({*range(10), *range(answer - 5, answer + 5), *range(n - 10, n)} & {*range(n)})
    assert "…" in result.output


def test_the_table_cuts_no_number_off_and_shows_characters_whole(monkeypatch):
    """At 80 columns, beside a token that is wider than the terminal."""
    row = {
        "tokens": ["x" * 200, "", "🙂", "[/red]\\", *"abcdefghi"],
        "partial": [1],
        "answer_start": -1,
        "credit": {
            "rhythm:strategy=local,q=0.3": {
                "weights": [123456.789, 1e-9, 0.0, *[0.5] * 10],
                "advantages": [-123456.789, -1e-9, -0.0, *[0.5] * 10],
            }
        },
    }
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(_table(row, "rhythm:strategy=local,q=0.3"))
    shown = [line.split() for line in capture.get().splitlines() if line.strip()[:1].isdigit()]
    assert shown[0][0] == "0"
    assert shown[0][2:] == ["123456.789", "-123456.789"]
    assert shown[1:4] == [
        ["1", "·", "1.0e-09", "-1.0e-09"],
        ["2", "🙂", "0", "0"],
        ["3", "[/red]\\", "0.500", "+0.500"],
    ]
    assert [line[0] for line in shown] == [str(t) for t in range(13)]


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        (["--methods", "nope"], ROWS, "Valid methods"),
        (["--methods", "attnpo"], ROWS, "heads=heads.json"),
        (["--methods", "arca"], ROWS, "no method is left"),
        (["--outcome", "best"], ROWS, "unknown outcome"),
        (["--table", "--trace", "4"], ROWS, "there are 3 traces"),
        (["--reward-model", "nowhere/at-all"], ROWS, "cannot be loaded"),
        (["--end-of-reasoning", ""], ROWS, "must be some text"),
        ([], [{"completion": "\ud83d", "prompt": "a"}], "line 1: half of a surrogate pair"),
        ([], [{"completion": "a", "prompt": ["a"]}], "chat messages"),
        ([], [{"completion": "a", "prompt": [{"role": "user"}]}], "chat messages"),
        ([], [{"completion": "a", "prompt": "a", "reward": 10**400}], "reward must be"),
        ([], [ROWS[0], {"prompt": "a"}], "line 2: expected"),
        ([], [{"completion": "a", "prompt": ""}], "line 1: expected"),
        ([], [{"completion": "a", "prompt": "a", "correct": "yes"}], "correct must be"),
        ([], [{"completion": "a", "prompt": "a", "reward": True}], "reward must be"),
        ([], [{"completion": "a", "prompt": [{"role": "user", "content": "a"}]}], "no chat template"),
    ],
)
def test_bad_input(asked, words, rows, message):
    result, _ = asked(*words, rows=rows)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
