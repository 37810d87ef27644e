"""The commands on a pretrained model and four labelled completions."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def test_score_writes_the_credit_of_every_token(folder, short_file, traces, tmp_path):
    out = tmp_path / "score"
    methods = "atpo,rhythm,surprisal"
    run("score", folder, "--traces", short_file, "--methods", methods, "--out", out)
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4
    for row, trace in zip(rows, traces[:4], strict=True):
        sign = 1.0 if trace["correct"] else -1.0
        assert row["credit"].keys() == set(methods.split(","))
        for credit in row["credit"].values():
            assert len(credit["advantages"]) == len(row["tokens"])
            assert all(math.isfinite(a) and a * sign >= 0 for a in credit["advantages"])
            assert len({round(a, 4) for a in credit["advantages"]}) > 1
    assert (out / "report.html").stat().st_size > 50_000


def test_eval_measures_accuracy(folder, tmp_path):
    problems = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]
    path, out = tmp_path / "problems.jsonl", tmp_path / "results.json"
    path.write_text("\n".join(map(json.dumps, problems)), "utf-8")
    run("eval", folder, "--data", path, "--chat", "--max-new-tokens", 4, "--out", out)
    results = json.loads(out.read_text("utf-8"))
    assert results["problems"] == 3
    assert 0 <= results["reward"]["low"] <= results["reward"]["value"] <= results["reward"]["high"] <= 1
    assert 1 <= results["tokens"] <= 4


def test_heads_ranks_all_of_them(folder, short_file, tmp_path):
    out = tmp_path / "heads.json"
    result = run("heads", folder, "--traces", short_file, "--out", out, "--min-pairs", 1, "--min-completions", 1)
    assert "best 3 of 270 heads by step ranking accuracy" in result.output
    assert len(json.loads(out.read_text("utf-8"))["heads"]) == 3
    assert out.with_suffix(".svg").is_file()


def test_heads_labels_the_steps_of_plain_completions(folder, tmp_path):
    """The answer rests on the last step of each, which alone has its result."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Ben has {n} pens and buys 3 more. How many does he have?"}],
            "completion": f"Ben has pens. He buys more pens. In all he has {n} + 3 = {n + 3} pens. \\boxed{{{n + 3}}}",
            "reward": reward,
        }
        for n, reward in ((14, 1.0), (25, 1.0), (36, 0.0))
    ]
    path, out = tmp_path / "completions.jsonl", tmp_path / "heads.json"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    few = ("--min-pairs", 1, "--min-completions", 1)
    result = run(
        "heads", folder, "--traces", path, "--labels", "ablation", "--splitter", "sentence", "--out", out, *few
    )
    assert "2 of 3 completions can be used: 1 are wrong" in result.output
    assert "2 of 6 steps lose more than 1 and are essential" in result.output
    written = json.loads(out.read_text("utf-8"))
    assert (written["completions"], {head["pairs"] for head in written["heads"]}) == (2, {4})


def test_audit_scores_credit_against_the_labels(folder, short_file, tmp_path):
    run("audit", folder, "--traces", short_file, "--methods", "atpo,surprisal", "--out", tmp_path)
    (results,) = json.loads((tmp_path / "audit.json").read_text("utf-8"))["policies"].values()
    assert (results["completions"], results["correct"]) == (4, 2)
    scores = {row["name"]: row["scores"] for row in results["rows"]}
    assert {"essential_auroc", "error_auroc"} <= scores["surprisal"].keys()
    assert scores["oracle"]["essential_auroc"]["estimate"]["value"] == pytest.approx(1.0)
