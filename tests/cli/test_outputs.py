"""Every command checks where it is to write before it does any work: the models and problems named here do not exist.

A file stands where a folder would have to be, or a folder where a file would: permissions do not hold for root.
"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.outputs import check_file, check_folder

SCORE = ["score", "--model", "absent", "--traces", "traces.jsonl"]
EVAL = ["eval", "--data", "absent.jsonl", "absent", "--reward", "format"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "traces.jsonl").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*SCORE, "--out", "file"], "file is a file, not a folder"),
        ([*SCORE, "--out", "."], "exists: choose another --out"),
        ([*SCORE, "--out", "file/run"], "file is a file, not a folder"),
        ([*EVAL, "--out", "folder"], "folder is a folder: name the file to write"),
        ([*EVAL, "--out", "file/all.json"], "file is a file, not a folder"),
        ([*EVAL, "--completions", "folder"], "--completions folder is a folder"),
        ([*EVAL, "--out", "a.json", "--completions", "./a.json"], "cannot both be written"),
        ([*EVAL, "--out", "a", "--completions", "a/b.jsonl"], "cannot both be written"),
        (["eval", "--data", "traces.jsonl", "absent", "--completions", "traces.jsonl"], "would replace it"),
        (["heads", "absent", "--out", "folder"], "folder is a folder"),
        (["heads", "absent", "--out", "file/heads.json"], "a folder that exists"),
        (["audit", "absent", "--traces", "traces.jsonl", "--out", "file"], "file is a file, not a folder"),
        (["audit", "--out", "file/audit"], "file is a file, not a folder"),
        (["compare", "--out", "file"], "file is a file, not a folder"),
        (["quickstart", "--out", "file/run"], "file is a file, not a folder"),
        (["report", "file"], "is not a run folder"),
        ([*SCORE, "--out", "n" * 300], "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_the_work(here, command, message):
    before = sorted(here.rglob("*"))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert sorted(here.rglob("*")) == before
    assert (here / "file").read_text() == "kept"


def test_a_report_that_cannot_be_written(here):
    (here / "folder" / "report.html").mkdir()
    (here / "folder" / "config.json").write_text(json.dumps({"command": "score"}))
    result = CliRunner().invoke(app, ["report", "folder"])
    assert result.exit_code == 2
    assert "report.html is a folder" in result.output


def test_what_can_be_written_is_not_made_by_the_check(here):
    check_folder(here / "a/b")
    check_folder(here / "folder")
    check_file(here / "a/b.json")
    check_file(here / "file")
    assert not (here / "a").exists()
