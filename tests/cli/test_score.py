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
from tokencredit.cli.score_tables import summary_table, trace_table
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


def test_a_windows_file(asked):
    result, rows = asked("--methods", "uniform", "--no-attention", encoding="utf-8-sig")
    assert result.exit_code == 0, result.output
    assert ["".join(row["tokens"]) for row in rows] == [row["completion"] for row in ROWS]


def test_traces_too_long_for_the_model_are_refused_left_out_or_cut_off(asked):
    """Their numbers are those of the file, in --trace too."""
    out = asked.path.parent / "out"
    long = {"prompt": "Q:a=1+6?a", "completion": "<think>" + "a=1+6=7;" * 200 + "</think>7", "correct": True}
    words, rows = ("--methods", "uniform", "--no-attention", "--table"), [ROWS[0], long, ROWS[1]]
    refused, _ = asked(*words, rows=rows)
    assert refused.exit_code == 2
    assert "1 of 3 traces are longer than the model's context" in refused.output
    assert "--long-traces skip" in refused.output
    assert not out.exists()
    left_out, _ = asked(*words, "--long-traces", "skip", "--trace", 2, rows=rows)
    assert left_out.exit_code == 2
    assert "--trace 2: is longer than the model's context" in left_out.output
    for rule, kept, fate in (("skip", 2, "left out: number 2 ("), ("truncate", 3, "of their completions: number 2 (")):
        result, found = asked(*words, "--long-traces", rule, "--trace", 3, "--overwrite", rows=rows)
        assert result.exit_code == 0, result.output
        assert fate in result.output
        assert fate in (out / "report.json").read_text()
        assert json.loads((out / "config.json").read_text())["too_long"]["context"] > 0
        assert len(found) == kept
        assert "".join(found[-1]["tokens"]) == ROWS[1]["completion"]
        assert "-1.000" in result.output  # the third trace is the wrong one
    cut = "".join(found[1]["tokens"])
    assert long["completion"].startswith(cut)
    assert len(cut) < len(long["completion"])


def test_a_text_prompt_can_be_a_users_message(asked):
    result, _ = asked("--methods", "uniform", "--chat")
    assert result.exit_code == 2
    assert "no chat template" in result.output


def test_what_is_there_is_only_replaced_on_request_and_only_by_what_worked(asked):
    out = asked.path.parent / "out"
    assert asked("--methods", "uniform", "--no-attention")[0].exit_code == 0
    (out / "mine.txt").write_text("kept")
    again, _ = asked("--methods", "random", "--no-attention")
    assert again.exit_code == 2
    assert "exists: choose another --out, or --overwrite to replace it" in again.output
    failed, _ = asked("--methods", "random", "--no-attention", "--overwrite", rows=[*ROWS, {"prompt": "a"}])
    assert failed.exit_code == 2
    assert (out / "mine.txt").read_text() == "kept"
    result, rows = asked("--methods", "random", "--no-attention", "--overwrite")
    assert result.exit_code == 0, result.output
    assert list(rows[0]["credit"]) == ["random"]
    assert not (out / "mine.txt").exists()


def test_traces_in_the_folder_that_would_be_replaced(asked):
    assert asked("--methods", "uniform", "--no-attention")[0].exit_code == 0
    asked.path.rename(asked.path.parent / "out" / "mine.jsonl")
    asked.path.symlink_to(asked.path.parent / "out" / "mine.jsonl")
    result, _ = asked("--methods", "uniform", "--overwrite")
    assert result.exit_code == 2
    assert "--overwrite would remove" in result.output
    assert asked.path.is_file()


def test_a_head_file_in_the_folder_that_would_be_replaced(asked):
    assert asked("--methods", "uniform", "--no-attention")[0].exit_code == 0
    heads = asked.path.parent / "out" / "heads.json"
    heads.write_text("{}")
    result, _ = asked("--methods", f"uniform,attnpo:heads={heads}", "--overwrite")
    assert result.exit_code == 2
    assert "--overwrite would remove" in result.output
    assert heads.is_file()


def test_ctrl_c_leaves_nothing_behind(asked, monkeypatch):
    """The forward passes are replaced by the interruption itself."""

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokencredit.signals.collect", interrupted)
    result, _ = asked("--methods", "uniform")
    assert result.exit_code == 130
    assert "Nothing has been written" in result.output
    assert not (asked.path.parent / "out").exists()


LONG = "rhythm:strategy=coupled,q=0.3,amplification=1.7"


def test_it_prints_what_it_found(asked, monkeypatch):
    """On a terminal of 80 columns; uniform credit gives every part of a completion 1."""
    monkeypatch.setenv("COLUMNS", "80")
    steps = {"prompt": "Q:a=1+6?a", "steps": ["a=1+6=8;", "b=1;</think>"], "answer": "8", "essential": [True, False]}
    rows = [steps | {"correct": False, "first_error": 0}, steps | {"correct": True}]
    result, found = asked("--methods", f"uniform,{LONG}", "--no-attention", rows=rows)
    assert result.exit_code == 0, result.output
    assert "completions: 2/2" in result.output
    tokens = sum(len(row["tokens"]) for row in found)
    assert f"2 completions, {tokens} tokens: 1 correct, 1 wrong" in result.output
    lines = result.output.splitlines()
    assert next(line for line in lines if "Gini" in line).split() == [
        *("method", "Gini", "effective", "answer", "essential", "redundant", "first", "error"),
    ]
    assert next(line for line in lines if line.strip().startswith("uniform")).split()[1:] == ["0.00", *["1.00"] * 5]
    first = next(line for line in lines if "Gini" in line).index("Gini") - 1
    assert LONG in "".join(line[:first].strip() for line in lines)
    assert f"written: {asked.path.parent / 'out' / 'scores.jsonl'}" in result.output


def test_the_summary_says_where_credit_is():
    """In units of a completion's mean credit; completions without the part, or without any credit, do not count."""
    diagnostics = {"gini": 0.25, "effective_ratio": 0.5}

    def row(weights, advantages, **more):
        credit = {"weights": weights, "advantages": advantages, "diagnostics": diagnostics}
        known = {"correct": None, "answer_start": 3, "step_index": [0, 0, 1, -1], "tokens": [*"abcd"]}
        return {**known, "credit": {"[m]": credit}, **more}

    rows = [
        row([2.0, 4.0, 0.0, 2.0], [0.0] * 4, essential=[True, False], first_error=3),
        row(None, [-1.0, 3.0, 0.0, 4.0], essential=[None, True], first_error=None),
        row(None, [0.0] * 4, essential=[True, True], first_error=1),
        row([1.0, 1.0, 1.0, 1.0], [1.0] * 4, answer_start=-1, step_index=None),
    ]
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(summary_table(rows))
    (line,) = (line for line in capture.get().splitlines() if "[m]" in line)
    # answer: 2 / 2 and 4 / 2. essential: 3 / 2 and 0 / 2. redundant: 0 / 2. first error: the answer of the first.
    assert line.split() == ["[m]", "0.25", "0.50", "1.50", "0.75", "0.00", "1.00"]
    assert "4 completions, 16 tokens: 4 unknown" in capture.get()


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
    printed = result.output[result.output.index("position") :].splitlines()
    shown = [int(line.split()[0]) for line in printed if line.strip()[:1].isdigit()]
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
        console.print(trace_table(row, "rhythm:strategy=local,q=0.3"))
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
    ("name", "message"),
    [
        ("./absent", "there is no folder ./absent"),
        ("/absent/model", "there is no folder /absent/model"),
        ("~/absent", "there is no folder ~/absent"),
        ("runs/a/checkpoint-9", "there is no folder runs/a/checkpoint-9 (runs/a holds checkpoint-5)"),
        ("mine/", "there is no folder mine/"),
        ("absent.jsonl", "there is no folder absent.jsonl"),
        ("models/typo", "there is no folder models/typo (models holds mine)"),
        ("traces.jsonl", "traces.jsonl is a file"),
        ("runs", "holds no model (no config.json of one, and no adapter_config.json); these folders in it hold one: "),
        ("runs/a", "runs/a holds no model (no config.json of one, and no adapter_config.json); these folders in it "),
        ("models/mine", "holds a model but no tokenizer"),
    ],
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, model, name, message):
    """The last folder holds a model alone; `runs/a` is one of ours, whose config.json is no model's."""
    monkeypatch.chdir(tmp_path)
    for folder in ("models/mine", "runs/a/checkpoint-5"):
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*token*"))
    (tmp_path / "runs" / "a" / "config.json").write_text('{"command": "quickstart"}')
    (tmp_path / "traces.jsonl").write_text(json.dumps(ROWS[0]))
    result = CliRunner().invoke(app, ["score", name, "--traces", "traces.jsonl", "--methods", "uniform"])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "huggingface" not in result.output
    assert not list(tmp_path.glob("runs/score*"))


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        (["--methods", "nope"], ROWS, "Valid methods"),
        (["--long-traces", "drop"], ROWS, "refuse, skip, truncate"),
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
