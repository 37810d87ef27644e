import os

import pytest
from conftest import tiny_policy

from tokencredit.cli.outputs import claim_folder
from tokencredit.files import replacing_directory, write_text
from tokencredit.testbed.runs import RunFolder, folder_name

CONFIG = {"command": "quickstart", "methods": ["uniform", "atpo"], "seed": 0}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "checkpoint"

    def interrupted():
        with replacing_directory(target) as partial:
            (partial / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    for text in ("one", "two"):
        with replacing_directory(target) as partial:
            (partial / "file").write_text(text)
        assert (target / "file").read_text() == text
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_failed_replacement_keeps_what_was_there(tmp_path):
    target = tmp_path / "checkpoint"
    with replacing_directory(target) as partial:
        (partial / "file").write_text("good")
    with pytest.raises(OSError, match="disk"), replacing_directory(target):
        raise OSError("disk full")
    assert (target / "file").read_text() == "good"


def test_two_processes_that_replace_at_once_leave_one_whole_folder(tmp_path):
    target = tmp_path / "checkpoint"
    with replacing_directory(target) as mine:
        (mine / "file").write_text("mine")
        with replacing_directory(target) as theirs:
            (theirs / "file").write_text("theirs")
    assert (target / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_rename_that_fails_puts_back_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "checkpoint"
    with replacing_directory(target) as partial:
        (partial / "file").write_text("good")
    rename = type(target).rename

    def fail(self, to):
        if (self / "new").exists():
            raise OSError("no space")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", fail)

    def replace():
        with replacing_directory(target) as partial:
            (partial / "new").write_text("x")

    with pytest.raises(OSError, match="no space"):
        replace()
    assert (target / "file").read_text() == "good"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_text_that_no_encoding_takes(tmp_path):
    write_text(tmp_path / "t", "a\ud800b")
    assert (tmp_path / "t").read_text("utf-8") == "a?b"


def claimed(path):
    claim_folder(path, CONFIG, overwrite=False)
    return RunFolder(path)


def finish(folder, name):
    folder.record_method(name, {"seconds": 1}, [{"source": name, "tokens": ["\ud800"]}], tiny_policy())


def test_folders_of_methods_differ_where_the_methods_do():
    names = ["atpo", "atpo:floor=0.5", "attnpo:heads=a/b.json", "attnpo:heads=a-b.json", "attnpo:heads=a\\b.json"]
    names += ["attnpo:heads=" + "[1,2]," * 90 + end for end in "ab"]
    folders = [folder_name(name) for name in names]
    assert folders[:2] == ["atpo", "atpo-floor=0.5"]
    assert len({name.lower() for name in folders}) == len(names)
    assert all(len(name) < 100 and not set(name) & set('/\\:*?"<>|[] ') for name in folders)


def test_resuming_keeps_finished_methods_and_drops_the_rest(tmp_path):
    folder = claimed(tmp_path / "run")
    folder.record_before({"greedy": 0})
    for name in ("uniform", "atpo"):
        folder.record_step({"method": name, "step": 1})
    finish(folder, "uniform")
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"method": "atpo", "st')
    claim_folder(folder.path, CONFIG, overwrite=False, resume=True)
    again = RunFolder(folder.path)
    again.drop_unfinished()
    assert list(again.results["methods"]) == ["uniform"]
    assert again.results["before"] == {"greedy": 0}
    assert again.rows("metrics") == [{"method": "uniform", "step": 1}]
    assert (folder.path / "checkpoints" / "uniform" / "model.safetensors").is_file()
    assert not list(folder.path.rglob("*.bin"))


def test_finishing_a_method_again_replaces_its_rows(tmp_path):
    folder = claimed(tmp_path / "run")
    for name in ("uniform", "uniform", "atpo"):
        finish(folder, name)
    assert [row["source"] for row in folder.rows("traces")] == ["uniform", "atpo"]
