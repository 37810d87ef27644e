"""`tokencredit compare`: a small sweep, what it leaves, and what is refused."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app

SMALL = {
    "--checkpoints": 1,
    "--seeds": 1,
    "--learning-rates": 1e-3,
    "--steps": 1,
    "--prompts": 2,
    "--group-size": 2,
    "--warmup-steps": 2,
    "--processes": 1,
}


def run(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_a_sweep_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    result = run("--methods", "uniform,atpo", *chain(*SMALL.items()), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [r["arm"] for r in found["runs"]] == ["uniform", "atpo"]
    assert "over uniform" in result.output
    assert (tmp_path / "out" / "report.html").is_file()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "runs").iterdir()}
    wider = run("--methods", "uniform,atpo,random", *chain(*SMALL.items()), "--out", tmp_path / "out")
    assert wider.exit_code == 0, wider.output
    assert all(file.stat().st_mtime_ns == before for file, before in written.items())
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "atpo"], "compared with 'uniform'"),
        (["--methods", "uniform,nope"], "Valid methods"),
        (["--learning-rates", "1,2"], "between 0 and 1"),
        (["--task", "nope"], "gather"),
    ],
)
def test_what_is_refused(words, message, tmp_path):
    result = run(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
