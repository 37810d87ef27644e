"""`tokencredit audit`, on the testbed and on a user's traces."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.audit import policies as audit_policies
from tokencredit.cli import app, audit_tables
from tokencredit.cli.terminal import Bars
from tokencredit.head_files import HeadRank
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

command = import_module("tokencredit.cli.audit")

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


TESTBED = ["--warmup-steps", 2, "--steps", 1, "--problems", 2, "--estimated", 1, "--samples", 2]
ARMS = "uniform,atpo:floor=0.25,layers=1,arca"


def test_the_testbed(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    result = run("--methods", ARMS, *TESTBED, "--out", tmp_path / "out")
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
    assert "expected time, from a short test" in result.output
    assert "first error" in result.output
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "parts").exists()


def test_an_audit_of_traces_is_resumed(tmp_path, model, monkeypatch):
    """Also without --out, where the folder that was made up is named; and with the methods in another order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_BATCH_SIZE", 1)
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    words = [model, "--traces", "mine.jsonl", "--methods", "uniform,surprisal,atpo"]
    assert run(*words, "--out", "whole").exit_code == 0
    passes = []

    class Interrupted(Bars):
        def advance(self, done, note=""):
            passes.append(done)
            super().advance(done, note)
            if len(passes) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "Bars", Interrupted)
    result = run(*words)
    assert result.exit_code == 130
    (folder,) = Path("runs").iterdir()
    assert f"--out {folder} --resume" in result.output
    kept = {path.name for path in (folder / "parts" / "scores").iterdir()}
    assert kept == {Path(audit_policies.scores_part(name)).name for name in ("uniform", "surprisal")}
    weights = model / "model.safetensors"
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # as if the model had been trained on
    refused = run(*words, "--out", folder, "--resume")
    assert refused.exit_code == 2
    assert "the files of the model have changed since" in " ".join(refused.output.split())
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(audit_policies, "collect", None)
    result = run(*words[:-1], "atpo,surprisal,uniform", "--out", folder, "--resume")
    assert result.exit_code == 0, result.output
    resumed, whole = (json.loads((place / "audit.json").read_text()) for place in (folder, Path("whole")))
    for found in (resumed, whole):
        (audited,) = found["policies"].values()
        audited["rows"].sort(key=lambda row: row["name"])
    assert resumed == whole
    monkeypatch.setattr(command.Bars, "stage", None)
    assert run(*words, "--out", folder, "--resume").exit_code == 0, "a finished audit has nothing left to do"


def test_an_audit_writes_into_no_folder_that_is_not_its_own(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    words = [model, "--traces", "mine.jsonl", "--methods", "uniform", "--out", "out"]
    Path("out").mkdir()
    Path("out/config.json").write_text('{"command": "score"}')
    for more, message in (([], "--resume to go on"), (["--overwrite"], "does not hold a run of `tokencredit audit`")):
        result = run(*words, *more)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert [path.name for path in Path("out").iterdir()] == ["config.json"]
    Path("out/config.json").unlink()
    assert run(*words).exit_code == 0
    assert json.loads(Path("out/config.json").read_text())["command"] == "audit"
    Path("out/mine").write_text("")
    assert run(*words, "--overwrite").exit_code == 0
    assert not Path("out/mine").exists()
    Path("out/traces.jsonl").write_text(Path("mine.jsonl").read_text())
    result = run(model, "--traces", "out/traces.jsonl", "--methods", "uniform", "--out", "out", "--overwrite")
    assert "--overwrite would remove out/traces.jsonl" in " ".join(result.output.split())
    Path("mine.jsonl").write_text(json.dumps(ROWS[0]))
    assert "other settings (traces_sha256)" in run(*words, "--resume").output


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


def test_labels_that_tell_nothing_are_refused_before_the_work(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {**ROWS[0], "essential": [True, True]}
    Path("mine.jsonl").write_text(json.dumps(row))
    result = run(model, "--traces", "mine.jsonl", "--methods", "uniform", "--out", "out")
    assert result.exit_code == 2
    assert "nothing can be scored on these 1 completions" in " ".join(result.output.split())
    assert not Path("out").exists()


def test_what_is_missing_for_a_table_is_said(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(json.dumps(ROWS[0]))
    result = run(model, "--traces", "mine.jsonl", "--methods", "uniform", "--out", "out")
    told = " ".join(result.output.split())
    assert "Not scored: this needs wrong completions with a `first_error`." in told
    assert "1 completion of 1 problem; with fewer than 8 problems there is no interval and no star; at least 7" in told


def test_traces_that_are_too_long_and_chat_messages(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(model)
    long = {**ROWS[1], "steps": ["b=2;" * 20, "a=1+2=4;</think>"]}
    messages = {**ROWS[0], "prompt": [{"role": "user", "content": ROWS[0]["prompt"]}]}
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, [messages, ROWS[1], long])))
    words = [model, "--traces", "mine.jsonl", "--methods", "uniform", "--chat"]
    result = run(*words, "--out", "refused")
    assert result.exit_code == 2
    assert "longer than the model's context of 40 tokens" in " ".join(result.output.split())
    result = run(*words, "--out", "out", "--long-traces", "skip")
    assert result.exit_code == 0, result.output
    assert "left out: number 3" in " ".join(result.output.split())
    found = json.loads(Path("out/audit.json").read_text())
    assert [trace["number"] for trace in found["long_traces"]["skipped"]] == [3]
    assert found["policies"][str(model)]["completions"] == 2


def test_numbers_are_never_cut_off(monkeypatch, capsys):
    """At 80 columns, with long names and the widest numbers there are; an interval without width is not printed."""
    monkeypatch.setenv("COLUMNS", "80")
    names = ["attnpo:heads=[[1,0],[2,1],[0,2]],delay=0,baseline_length=sequence", "mine.methods:Credit", "oracle"]

    def score(place):
        low, value, high = -0.9 + place / 100, -0.5 + place / 100, -0.1 + place / 100
        estimate = {"value": value, "low": low, "high": high}
        return {"estimate": estimate, "completions": 40, "problems": 20, "informative": place % 2 == 0}

    measures = [measure for group in audit_tables._GROUPS for measure in group.columns.values()]
    rows = [
        {"name": name, "kind": "method", "scores": {m: score(5 * k + i) for i, m in enumerate(measures)}}
        for k, name in enumerate(names[:2])
    ]
    certain = {**score(0), "estimate": dict.fromkeys(("value", "low", "high"), 1.0), "informative": None}
    rows.append({"name": "oracle", "kind": "control", "scores": dict.fromkeys(measures, certain)})
    policy = {"completions": 40, "correct": 20, "rows": rows, "left_out": {}, "notices": {}}
    audit_tables.print_audit({"policies": {"a model": policy}})
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for row in rows[:2]:
        for cell in map(audit_tables._cell, row["scores"].values()):
            assert cell in shown
    assert "1.00 [" not in shown
    folded = "".join(line[:24].strip() for line in shown.splitlines())
    assert names[0] in folded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "nope"], "unknown method"),
        (["--methods", "atpo:nope=1"], "Valid parameters"),
        (["--methods", "atpo,atpo"], "each once"),
        (["--methods", ""], "at least one method"),
        (["--task", "nope"], "unknown task"),
        (["model"], "go together"),
        (["--chat"], "are about --traces"),
    ],
)
def test_what_cannot_be_audited_is_refused(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
