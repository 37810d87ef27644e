"""Every command checks where it is to write before it does any work: the models and problems named here do not exist.

A file stands where a folder would have to be, or a folder where a file would: permissions do not hold for root.
"""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.outputs import (
    check_claim,
    check_file,
    check_folder,
    claim_file,
    claim_folder,
    explained_interruption,
)

SCORE = ["score", "absent", "--traces", "traces.jsonl"]
EVAL = ["eval", "--data", "absent.jsonl", "absent", "--reward", "format"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "traces.jsonl").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"command": "other"}')
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*SCORE, "--out", "file"], "file is a file, not a folder"),
        ([*SCORE, "--trace", "2"], "give --table as well"),
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
        ([*SCORE, "--out", "other", "--overwrite"], "does not hold a run of `tokencredit score`"),
        (["compare", "--out", "other"], "--overwrite to replace it, or --resume to go on with it"),
        (["compare", "--out", "other", "--resume"], "does not hold a run of `tokencredit compare`"),
        (["compare", "--out", "absent", "--resume"], "there is no run in absent"),
        (["quickstart", "--out", "other"], "--overwrite to replace it, or --resume to go on with it"),
        (["quickstart", "--out", "other", "--overwrite"], "does not hold a run of `tokencredit quickstart`"),
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


RUN = {"command": "eval", "model": "m", "seed": 0}


def test_a_folder_is_claimed_once_then_only_replaced_or_continued_on_request(tmp_path):
    folder = tmp_path / "new" / "run"
    check_claim(folder, RUN, overwrite=False, resume=False)
    assert not folder.parent.exists()
    claim_folder(folder, RUN, overwrite=False, resume=False)
    (folder / "part.jsonl").write_text("kept")
    with pytest.raises(ValueError, match=r"exists: choose another --out, --overwrite .*, or --resume"):
        claim_folder(folder, RUN, overwrite=False, resume=False)
    with pytest.raises(ValueError, match=r"exists: choose another --out, or --overwrite to replace it$"):
        claim_folder(folder, RUN, overwrite=False)
    claim_folder(folder, {**RUN, "tokencredit": "9"}, overwrite=False, resume=True)
    assert (folder / "part.jsonl").read_text() == "kept"
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        claim_folder(folder, {**RUN, "seed": 1}, overwrite=False, resume=True)
    claim_folder(folder, {**RUN, "seed": 1}, overwrite=True, resume=False)
    assert not (folder / "part.jsonl").exists()


@pytest.mark.parametrize("how", [{"overwrite": True, "resume": False}, {"overwrite": False, "resume": True}])
@pytest.mark.parametrize("config", [None, "no JSON", "[]", '{"model_type": "llama"}', '{"command": "audit"}'])
def test_what_is_no_run_of_this_command_is_neither_replaced_nor_continued(tmp_path, config, how):
    (tmp_path / "thesis.txt").write_text("kept")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="does not hold a run of `tokencredit eval`"):
        claim_folder(tmp_path, RUN, **how)
    assert (tmp_path / "thesis.txt").read_text() == "kept"


def test_nothing_to_continue_and_both_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no run"):
        check_claim(tmp_path / "none", RUN, overwrite=False, resume=True)
    with pytest.raises(ValueError, match="exclude each other"):
        check_claim(tmp_path, RUN, overwrite=True, resume=True)


def test_a_run_that_goes_on_may_get_more_of_what_grows_and_keeps_what_it_had(tmp_path):
    how = {"overwrite": False, "resume": True, "grows": ("methods", "seeds")}
    run = {**RUN, "methods": ("uniform", "atpo"), "seeds": (0, 1)}
    assert claim_folder(tmp_path / "run", run, overwrite=False, grows=how["grows"])["methods"] == ["uniform", "atpo"]
    more = claim_folder(tmp_path / "run", {**run, "methods": ("random", "uniform"), "seeds": (0,)}, **how)
    assert more == {**RUN, "methods": ["uniform", "atpo", "random"], "seeds": [0, 1]}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == more
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        claim_folder(tmp_path / "run", {**run, "seed": 1}, **how)
    with pytest.raises(ValueError, match=r"other settings \(methods\)"):
        claim_folder(tmp_path / "run", run, overwrite=False, resume=True, grows=("seeds",))


def test_what_the_run_itself_reads_is_not_removed(tmp_path):
    claim_folder(tmp_path / "run", RUN, overwrite=False)
    traces = tmp_path / "run" / "traces.jsonl"
    traces.write_text("kept")
    (tmp_path / "link.jsonl").symlink_to(traces)
    for inside in (traces, str(tmp_path / "link.jsonl"), tmp_path / "run"):
        with pytest.raises(ValueError, match="--overwrite would remove"):
            claim_folder(tmp_path / "run", RUN, overwrite=True, inputs=[None, "owner/name", inside])
    assert traces.read_text() == "kept"
    claim_folder(tmp_path / "run", RUN, overwrite=True, inputs=[None, "owner/name", tmp_path])
    assert not traces.exists()


def test_an_input_in_the_users_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    claim_folder(tmp_path / "run", RUN, overwrite=False)
    (tmp_path / "run" / "traces.jsonl").write_text("kept")
    with pytest.raises(ValueError, match="--overwrite would remove ~/run/traces"):
        claim_folder(tmp_path / "run", RUN, overwrite=True, inputs=["~/run/traces.jsonl"])


def test_a_run_that_another_version_continues_keeps_the_first_version(tmp_path, capsys):
    how = {"overwrite": False, "resume": True}
    claim_folder(tmp_path / "run", {**RUN, "tokencredit": "0.1"}, overwrite=False, resume=False)
    assert claim_folder(tmp_path / "run", {**RUN, "tokencredit": "0.1"}, **how)["tokencredit"] == "0.1"
    assert "note" not in capsys.readouterr().out
    settings = claim_folder(tmp_path / "run", {**RUN, "tokencredit": "0.2"}, **how)
    assert settings["tokencredit"] == "0.1"
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == settings
    said = " ".join(capsys.readouterr().out.split())
    assert "note: the run was begun with tokencredit 0.1, and goes on with 0.2" in said


def test_a_run_is_not_continued_with_a_model_that_has_changed(tmp_path):
    """The version of a model may be known only once it is loaded: until then the settings go without it."""
    how = {"overwrite": False, "resume": True}
    claim_folder(tmp_path / "run", {**RUN, "model_version": "a"}, overwrite=False, resume=False)
    claim_folder(tmp_path / "run", {**RUN, "model_version": "a"}, **how)
    assert claim_folder(tmp_path / "run", RUN, **how)["model_version"] == "a"
    with pytest.raises(ValueError, match="the files of the model have changed since"):
        claim_folder(tmp_path / "run", {**RUN, "model_version": "b"}, **how)


def test_a_folder_that_is_a_link_is_replaced_behind_it(tmp_path):
    """As on a machine whose `runs` are kept on another disk. What is linked from inside is not followed."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk", target_is_directory=True)
    claim_folder(tmp_path / "runs", RUN, overwrite=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    (tmp_path / "disk" / "data").symlink_to(tmp_path / "data", target_is_directory=True)
    claim_folder(tmp_path / "runs", {**RUN, "seed": 1}, overwrite=True)
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["config.json"]
    assert (tmp_path / "data" / "mine").read_text() == "kept"


def test_a_file_is_replaced_on_request_only(tmp_path):
    file = tmp_path / "heads.json"
    claim_file(file, overwrite=False)
    file.write_text("{}")
    with pytest.raises(ValueError, match="exists: choose another file, or --overwrite"):
        claim_file(file, overwrite=False)
    claim_file(file, overwrite=True)
    assert file.read_text() == "{}"


def test_an_interruption_is_explained(capsys):
    with pytest.raises(typer.Exit) as exit_, explained_interruption("Add --resume."):
        raise KeyboardInterrupt
    assert exit_.value.exit_code == 130
    assert "Interrupted. Add --resume." in capsys.readouterr().out
