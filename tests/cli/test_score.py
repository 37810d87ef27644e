"""`tokencredit score`: a user's traces under a user's model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from rich.console import Console
from tokenizers import normalizers
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.cli import app
from tokencredit.cli.score import _table
from tokencredit.completions import load_completions
from tokencredit.methods.specs import EVERY_METHOD
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
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")  # has no token for it, as real ones may not
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(tmp_path, model):
    path = tmp_path / "mine.jsonl"

    def asked(*words, rows=ROWS, encoding="utf-8"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding)
        out = tmp_path / "out"
        words = ["score", model, "--traces", path, "--out", out, *words]
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


def test_all_is_every_method_that_can_be_built_without_further_input(asked):
    result, rows = asked("--methods", "all,atpo:floor=0.5", "--no-attention", rows=ROWS[:1])
    assert result.exit_code == 0, result.output
    left_out = json.loads((asked.path.parent / "out" / "config.json").read_text())["left_out"]
    assert left_out.keys() == {"attnpo", "p2t", "arca", "divergence"}
    assert {*rows[0]["credit"], *left_out} == {*EVERY_METHOD, "atpo:floor=0.5"}
    for name in left_out:
        assert f"left out: {name}: it reads" in result.output


def test_only_what_is_known_to_be_wrong_gets_minus_one_and_what_is_not_known_is_said(asked):
    """In both layouts."""
    plain = [ROWS[1], {key: ROWS[0][key] for key in ("prompt", "completion")}]
    steps = {"prompt": "Q:a=1+6?a", "steps": ["<think>a=1;</think>"], "answer": "8"}
    for rows in (plain, [steps | {"correct": False}, steps]):
        result, found = asked("--methods", "uniform", rows=rows)
        assert result.exit_code == 0, result.output
        assert [row["credit"]["uniform"]["advantages"][0] for row in found] == [-1.0, 1.0]
        assert [row["correct"] for row in found] == [False, None]
        said = "1 of 2 traces do not say whether they are correct; their credit is shown for an advantage of +1"
        assert said in result.output
        assert said in (asked.path.parent / "out" / "report.json").read_text()
        shutil.rmtree(asked.path.parent / "out")


def rewarded(*rewards, **more):
    return [{key: ROWS[0][key] for key in ("prompt", "completion")} | {"reward": r} | more for r in rewards]


@pytest.mark.parametrize(
    ("words", "rewards", "advantages", "said"),
    [
        ([], [1, 0, 0], [1, -1, -1], "(1 is correct, 0 is wrong): 1 correct, 2 wrong"),
        (["--correct-threshold", "0.5"], [0.8, 0.5, 0.2], [1, 1, -1], "(0.5 or more is correct): 2 correct, 1 wrong"),
        (["--correct-threshold", "0"], [-1, 1, None], [-1, 1, 1], "1 of 3 traces do not say"),
        (["--outcome", "rloo"], [0.5, 1.5], [-1, 1], ""),
    ],
)
def test_a_reward_tells_what_is_correct_by_a_stated_rule(asked, words, rewards, advantages, said):
    """A wrong trace with a reward of 0 must not be credited as if it were right."""
    result, rows = asked("--methods", "uniform", "--no-attention", *words, rows=rewarded(*rewards))
    assert result.exit_code == 0, result.output
    assert [row["credit"]["uniform"]["advantages"][0] for row in rows] == advantages
    assert said in result.output
    if "rloo" not in words:
        known = [None if reward is None else a > 0 for reward, a in zip(rewards, advantages, strict=True)]
        assert [row["correct"] for row in rows] == known


def test_what_a_trace_says_of_itself_counts_more_than_its_reward(asked):
    rows = [*rewarded(0.2, correct=True), *rewarded(0.9, correct=False), *rewarded(1)]
    result, found = asked("--methods", "uniform", "--no-attention", rows=rows)
    assert result.exit_code == 0, result.output
    assert [row["correct"] for row in found] == [True, False, True]


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


def test_where_the_answer_is_and_what_stays_uniform_without_one(asked):
    """On the terminal, in the files, and on the page; for the methods that need an answer, and no others."""
    rows = [{"prompt": "Q:a=1+6?a", "completion": f"<think>a=1+6=7;{end}"} for end in ("\\boxed{a=7}", "a=7")]
    out = asked.path.parent / "out"
    for answer, starts in (("auto", [True, False]), ("end_of_reasoning", [False, False]), ("a=7", [True, True])):
        result, found = asked("--methods", "atpo:layers=1,surprisal", "--answer", answer, rows=rows)
        assert result.exit_code == 0, result.output
        assert [row["answer_start"] >= 0 for row in found] == starts
        config = json.loads((out / "config.json").read_text())
        assert config["answer"] == answer
        lacking = starts.count(False)
        expected = f"atpo:layers=1 leaves {lacking} of 2 completions uniform: no answer span was found in them"
        assert (expected in " ".join(result.output.split())) == (lacking > 0)
        assert (expected in (out / "report.json").read_text()) == (lacking > 0)
        assert list(config["notices"]) == ["atpo:layers=1"] * (lacking > 0)
        shutil.rmtree(out)


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
        ([], rewarded(0.5, 0), "2 of 2 traces have a reward but do not say"),
        ([], rewarded(0.5, 0), "--correct-threshold X"),
        (["--outcome", "grpo"], rewarded(0.5, None), "1 of 2 have none"),
        (["--outcome", "grpo", "--correct-threshold", "1"], ROWS, "goes with --outcome sign"),
        (["--correct-threshold", "nan"], ROWS, "finite number"),
        (["--methods", "rhythm:horizon=5"], ROWS, "horizon"),
        ([], [{"completion": "a", "prompt": "~"}], "line 1: the prompt '~' has no token"),
        ([], [ROWS[0], {"completion": "~", "prompt": "a"}], "line 2: the completion '~' has no token"),
        ([], [{"steps": ["~"], "answer": "~", "prompt": "a"}], "line 1: the completion '~~' has no token"),
        (["--table", "--trace", "4"], ROWS, "there are 3 traces"),
        (["--reward-model", "nowhere/at-all"], ROWS, "cannot be loaded"),
        (["--end-of-reasoning", ""], ROWS, "must be some text"),
        (["--answer", "("], ROWS, "is none"),
        (["--answer", "7"], [{"prompt": "a", "steps": ["a"], "answer": "7"}], "answer would have no effect"),
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
