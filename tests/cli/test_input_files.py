"""Every command names the closest files that are there where a file is not, before it looks for the model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app

COMMANDS = {
    "score": ["score", "absent", "--traces"],
    "heads": ["heads", "absent", "--traces"],
    "audit": ["audit", "absent", "--traces"],
    "warmup": ["warmup", "absent", "--out", "model", "--data"],
    "quickstart": ["quickstart", "--problems"],
    "eval": ["eval", "absent", "--reward", "format", "--data"],
}


def said(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_there(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "zebra.csv").write_text("")
    shown = said([*COMMANDS[command], "mine.jsnol.csv"])
    assert "there is no file mine.jsnol.csv; in that folder are: mine.jsonl" in shown
    assert "there is no user nosuchuser" in said([*COMMANDS[command], "~nosuchuser/x.jsonl"])
    long = f"{'a' * 300}.jsonl"
    assert "there is no file aaa" in said([*COMMANDS[command], long])
    assert "is a folder: name a file in it: mine.jsonl, zebra.csv" in said([*COMMANDS[command], f"../{tmp_path.name}"])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_option_names_the_page_on_formats(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "docs/formats.md" in shown
    assert "JSONL," not in shown.replace("JSONL for", "")
