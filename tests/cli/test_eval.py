"""`tokencredit eval` with a small model and a user's problems."""

from __future__ import annotations

import json
import os
import sys

import pytest
from tokenizers import normalizers
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
    """A folder with a model and problems, where Python finds modules too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    build_policy(SIZE).save_pretrained("model")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")  # has no token for it, as real ones may not
    tokenizer.save_pretrained("model")
    rows = [row | {"blank": "~" if row["answer"] == "5" else "Q"} for row in ROWS]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
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


def test_completions_without_a_readable_answer_are_counted_and_the_remedy_is_named(here):
    none = ("--instruction", "")
    result = run("model", "--reward", "math", "--max-new-tokens", 3, "--out", "results.json", *none)
    assert result.exit_code == 0, result.output
    assert "instruction: none" in result.output
    assert "100.0% of the completions state no answer that the reward math can read; --instruction can" in result.output
    assert json.loads((here / "results.json").read_text())["unanswered"] == 1.0


def test_math_asks_for_a_boxed_answer_and_says_so(here):
    asking = {"prompt": "Q:a=1?a Write \\boxed{}.\n", "answer": "1"}
    (here / "problems.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, asking])))
    files = ("--out", "results.json", "--completions", "all.jsonl")
    result = run("model", "--max-new-tokens", 3, *files)
    assert result.exit_code == 0, result.output
    assert "the default of the reward math, added to 3 of 4 questions" in result.output
    assert '(--instruction "" adds none)' in result.output
    assert "--completions shows what they say" in result.output
    found = json.loads((here / "results.json").read_text())
    assert "\\boxed{}" in found["instruction"]
    assert found["instructed"] == 3
    prompts = [json.loads(line)["prompt"] for line in (here / "all.jsonl").read_text().splitlines()]
    assert prompts == [*(row["prompt"] + found["instruction"] for row in ROWS), asking["prompt"]]
    result = run("model", "--max-new-tokens", 3, "--reward", "format", *files, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "instruction: none" in result.output
    found = json.loads((here / "results.json").read_text())
    assert (found["instruction"], found["instructed"]) == ("", 0)


def test_another_instruction_is_not_advised_where_every_question_asks_for_a_box(here):
    rows = [row | {"prompt": row["prompt"] + "Write \\boxed{}.\n"} for row in ROWS]
    (here / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("model", "--max-new-tokens", 3)
    assert result.exit_code == 0, result.output
    assert "the reward math can read; --completions shows what they say" in result.output


def test_the_problems_are_not_replaced_under_another_name(here):
    (here / "folder").mkdir()
    before = (here / "problems.jsonl").read_text()
    (here / "link.jsonl").symlink_to("problems.jsonl")
    for option in ("--out", "--completions"):
        for name in ("folder/../problems.jsonl", "link.jsonl"):
            refused = run("model", option, name, "--overwrite")
            assert refused.exit_code == 2, refused.output
            assert f"{option} names the file of the problems" in refused.output
    refused = run("model", "--out", "a.json", "--completions", "folder/../a.json")
    assert "cannot both be written" in refused.output
    assert (here / "problems.jsonl").read_text() == before


def test_files_that_exist_are_replaced_on_request_only(here):
    for option in ("--out", "--completions"):
        (here / "kept").write_text("kept")
        refused = run("absent", option, "kept", data="absent.jsonl")
        assert refused.exit_code == 2, refused.output
        assert f"{option} kept exists: choose another file, or --overwrite to replace it" in refused.output
        assert (here / "kept").read_text() == "kept"
        result = run("model", "--reward", "format", "--max-new-tokens", 2, option, "kept", "--overwrite")
        assert result.exit_code == 0, result.output
        assert (here / "kept").read_text() != "kept"


INTERRUPTING = """
import os, signal

calls, stop_at = 0, None

def varied(completions, **_):
    global calls
    calls += 1
    if calls == stop_at:
        os.kill(os.getpid(), signal.SIGINT)
    return [float(sum(map(ord, text)) % 2) for text in completions]
"""


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(here, monkeypatch):
    (here / "interrupting.py").write_text(INTERRUPTING)
    monkeypatch.delitem(sys.modules, "interrupting", raising=False)
    import interrupting

    settings = ("model", "--reward", "interrupting:varied", "--samples", 4, "--temperature", 1, "--max-new-tokens", 6)
    settings += ("--batch-size", 4)
    assert run(*settings, "--out", "whole.json", "--completions", "whole.jsonl").exit_code == 0
    files = ("--out", "cut.json", "--completions", "cut.jsonl")
    (here / "cut.json").write_text("older")
    interrupting.calls, interrupting.stop_at = 0, 3
    cut = run(*settings, *files, "--overwrite")
    assert cut.exit_code == 130, cut.output
    assert "cut.json.partial holds what has been scored" in cut.output
    assert "the same command with --resume in place of --overwrite goes on" in cut.output
    assert (here / "cut.json").read_text() == "older"
    assert not (here / "cut.jsonl").exists()
    partial = here / "cut.json.partial"
    partial.write_text(partial.read_text()[:-9])  # as if the last line had been cut off
    interrupting.calls, interrupting.stop_at = 0, None
    for more, message in (
        (("--overwrite", "--resume"), "exclude each other"),
        (("--resume", "--seed", 1), "other settings (seed)"),
        (("--resume", "--instruction", "?"), "other settings (instruction, problems)"),
    ):
        refused = run(*settings, *files, *more)
        assert refused.exit_code == 2, refused.output
        assert message in refused.output
    (here / "cut.json").rename(here / "older.json")
    refused = run(*settings, *files)
    (here / "older.json").rename(here / "cut.json")
    assert "holds an unfinished evaluation: --resume to go on with it, or --overwrite" in refused.output
    resumed = run(*settings, *files, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert interrupting.calls == 2
    for kind in ("json", "jsonl"):
        assert (here / f"cut.{kind}").read_text() == (here / f"whole.{kind}").read_text()
    assert not partial.exists()
    again = run(*settings, *files, "--resume")
    assert again.exit_code == 2, again.output
    assert "there is no unfinished evaluation" in again.output


def test_an_evaluation_that_is_interrupted_between_its_two_files_is_resumed(here, monkeypatch):
    """Also: not with a model that has changed, and not with problems of which another column has."""
    from tokencredit.cli import eval as command

    files = ("model", "--reward", "chain", "--max-new-tokens", 3, "--out", "r.json", "--completions", "c.jsonl")
    assert run(*files).exit_code == 0
    whole = [(here / name).read_text() for name in ("r.json", "c.jsonl")]
    (here / "r.json").unlink()
    (here / "c.jsonl").unlink()
    write = command.write_text

    def interrupted(path, text):
        if path.name == "r.json":
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_text", interrupted)
        cut = run(*files)
    assert cut.exit_code == 130, cut.output
    assert "the same command with --resume goes on from there" in cut.output
    assert (here / "c.jsonl").exists()
    weights, problems = here / "model" / "model.safetensors", here / "problems.jsonl"
    times, rows = weights.stat(), problems.read_text()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # as if the model had been trained on
    assert "the files of the model have changed since" in run(*files, "--resume").output
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    problems.write_text(rows.replace("~", "q"))
    assert "other settings (problems)" in run(*files, "--resume").output
    problems.write_text(rows)
    resumed = run(*files, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert [(here / name).read_text() for name in ("r.json", "c.jsonl")] == whole
    assert not (here / "r.json.partial").exists()


def test_a_reward_that_does_not_say_what_it_reads_counts_none(here):
    run("model", "--reward", "format", "--max-new-tokens", 3, "--out", "results.json")
    assert json.loads((here / "results.json").read_text())["unanswered"] is None


@pytest.mark.parametrize("reward", ["chain", "math", "format"])
def test_gold_answers_score_one(here, reward):
    result = run("--gold", "--reward", reward, "--out", "gold.json")
    assert result.exit_code == 0, result.output
    assert "3 of 3 answers score 1 (100.0%)" in result.output
    assert json.loads((here / "gold.json").read_text())["gold"] == 1.0


def test_what_was_evaluated_can_be_scored_with_its_outcomes(here):
    """The completions file of eval is what score reads: wrong completions get negative advantages."""
    (here / "mine.py").write_text(
        "def first(completions, **_):\n    return [float(i % 2) for i in range(len(completions))]\n"
        "def halves(completions, **_):\n    return [0.5 * (i % 3) for i in range(len(completions))]\n"
    )
    sampled = ("model", "--samples", 4, "--temperature", 1, "--max-new-tokens", 8, "--completions", "all.jsonl")
    for reward, known in (("mine:first", True), ("mine:halves", False)):
        result = run(*sampled, "--reward", reward, "--overwrite")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in (here / "all.jsonl").read_text().splitlines()]
        assert len(lines) == 12
        assert [line["correct"] for line in lines] == [line["reward"] == 1 if known else None for line in lines]
        score = ["score", "model", "--traces", "all.jsonl", "--methods", "uniform", "--no-attention"]
        result = CliRunner().invoke(app, [*score, "--out", f"run-{known}"])
        assert (result.exit_code == 0) == known, result.output
        if known:
            rows = [json.loads(line) for line in (here / "run-True/scores.jsonl").read_text().splitlines()]
            assert [row["correct"] for row in rows] == [line["correct"] for line in lines]
            advantages = [row["credit"]["uniform"]["advantages"][0] for row in rows]
            assert advantages == [1.0 if line["correct"] else -1.0 for line in lines]
            assert "do not say" not in result.output
        else:
            assert result.exit_code == 2
            assert "--correct-threshold" in result.output


@pytest.mark.parametrize("returned", ["'7'", "1.0", "[[1.0]] * len(completions)", "['1'] * len(completions)"])
@pytest.mark.parametrize("gold", [True, False])
def test_a_reward_that_returns_something_else_is_named(here, returned, gold):
    name = f"mine_{abs(hash((returned, gold)))}"
    (here / f"{name}.py").write_text(f"def odd(completions, **_):\n    return {returned}\n")
    result = run("--gold" if gold else "model", "--reward", f"{name}:odd", "--max-new-tokens", 2)
    assert result.exit_code == 2, result.output
    assert "the reward function odd" in result.output
    assert "expected a list of" in result.output


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
        (["model", "--instruction", "~", "--prompt-column", "blank"], "row 1: the prompt '~~' has no token"),
        ([], "expected either a MODEL, or --gold"),
        (["model", "--gold"], "expected either a MODEL, or --gold"),
        (["--gold", "--completions", "c.jsonl"], "--gold generates no completions"),
        (["model", "--resume"], "--resume needs the --out or --completions"),
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
