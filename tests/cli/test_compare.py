"""`tokencredit compare`: a small sweep, what it leaves, and what is refused."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.compare import _table
from tokencredit.testbed.curves import summarise

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
    words = ["--methods", "uniform,random", *chain(*SMALL.items()), "--out", tmp_path / "out"]
    refused = run(*words)
    assert refused.exit_code == 2
    assert "--resume to go on with it" in refused.output
    other = run(*words, "--steps", 2, "--resume")
    assert other.exit_code == 2
    assert "other settings (budget)" in other.output
    wider = run(*words, "--resume")
    assert wider.exit_code == 0, wider.output
    assert "the sweep keeps its other methods (atpo)" in wider.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["arms"] == ["uniform", "atpo", "random"]
    assert [r["arm"] for r in json.loads((tmp_path / "out" / "compare.json").read_text())["runs"]] == [
        "uniform",
        "atpo",
        "random",
    ]
    assert all(file.stat().st_mtime_ns == before for file, before in written.items())
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    """Training is replaced by the interruption itself."""

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokencredit.testbed.compare.sweep", interrupted)
    monkeypatch.chdir(tmp_path)
    result = run("--methods", "uniform", *chain(*SMALL.items()))
    assert result.exit_code == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"--out runs/{folder.name} --resume" in result.output
    report = CliRunner().invoke(app, ["report", str(folder)])
    assert report.exit_code == 2
    assert f"--out {folder} --resume" in report.output


def test_no_number_is_cut_off_beside_a_long_name():
    name = "lora shuffled rhythm:strategy=coupled,q=0.3,amplification=1.7"
    curve = {"before": 0.4, "accuracy": {"10": 0.5, "20": 0.6}, "length": [1.0], "credit_seconds": 1.0, "seconds": 1.0}
    runs = [
        {"arm": arm, "learning_rate": 1.5e-4, "checkpoint": checkpoint, "seed": 0, **curve}
        for arm in ("uniform", "lora uniform", name)
        for checkpoint in range(100)
    ]
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(_table(summarise(runs, 0.6), "title"))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    numbers = ["0.00015", "0.500", "+0.000", "[+0.000,", "+0.000]", "0.600", "0/100", "20"]
    assert sum(line.split()[-len(numbers) :] == numbers for line in lines) == 1
    first = min(line.index("0.00015") for line in lines if "0.00015" in line)
    assert name.replace(" ", "") in "".join(line[:first].strip().replace(" ", "") for line in lines)


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
