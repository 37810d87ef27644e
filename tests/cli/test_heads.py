"""`tokencredit heads` on testbed policies and on a user's own completions."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.cli import app
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
ROW = {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "wait;</think>"], "answer": "3}", "essential": [True, False]}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two checkpoints of one small model, with a tokenizer, and labelled completions."""
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name, seed in (("one", 0), ("two", 1)):
        build_policy(SIZE, seed).save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "mine.jsonl").write_text("\n".join([json.dumps(ROW)] * 3))
    return tmp_path


def run(*args):
    return CliRunner().invoke(app, ["heads", *map(str, args)])


def test_a_users_model_and_labels(models):
    result = run(models / "one", "--traces", models / "mine.jsonl", "--out", models / "heads.json", "--top", 2)
    assert result.exit_code == 0, result.output
    found = tc.HeadFile.read(models / "heads.json")
    assert len(found.heads) == 2
    assert found.completions == 3
    assert {rank.pairs for rank in found.heads} == {3}
    assert (models / "heads.svg").read_text().startswith("<svg")
    m = tc.method("attnpo", heads=str(models / "heads.json"))
    assert m.model == tc.signals.model_signature(build_policy(SIZE))


def test_completions_that_do_not_count_are_said(models):
    lacking = {**ROW, "essential": [True, None]}
    (models / "some.jsonl").write_text("\n".join(map(json.dumps, [ROW, ROW, lacking])))
    result = run(models / "one", "--traces", models / "some.jsonl")
    assert result.exit_code == 0, result.output
    assert "heads are ranked on 2 of 3 completions: 1 do not have both an essential and a redundant" in result.output
    assert "ranked on" not in run(models / "one", "--traces", models / "mine.jsonl").output


def test_stability_ablation_and_rhythm(models):
    result = run(
        models / "one", "--traces", models / "mine.jsonl", "--against", models / "two", "--labels", "ablation",
        "--threshold", -100, "--rhythm",
    )  # fmt: skip
    assert result.exit_code == 2  # with such a threshold every step is essential
    assert "both an essential and a redundant" in result.output
    result = run(models / "one", "--traces", models / "mine.jsonl", "--against", models / "two", "--rhythm")
    assert result.exit_code == 0, result.output
    for said in ("stability", "lowest of all 4", "rhythm: 3 completions", "entropy at WAAD peaks", "Jaccard"):
        assert said in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", "guess"], "exact or ablation"),
        (["--out", "heads.svg"], "must name a .json file"),
        (["--out", "nowhere/heads.json"], "a folder that exists"),
        (["absent", "--traces", "mine.jsonl"], "cannot be loaded"),
        (["--traces", "mine.jsonl"], "needs the MODEL"),
        (["absent"], "cannot be loaded"),
        (["--task", "nope"], "Valid tasks"),
    ],
)
def test_bad_input_ends_with_its_reason(models, monkeypatch, args, message):
    monkeypatch.chdir(models)
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output
