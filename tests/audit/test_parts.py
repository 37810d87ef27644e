"""Finished parts of an audit are kept, and only they."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from tokencredit.audit import Estimate
from tokencredit.audit.parts import Parts
from tokencredit.audit.progress import duration_in_words
from tokencredit.testbed import audit_time
from tokencredit.testbed.audit import TestbedAudit, parts_in
from tokencredit.testbed.training import Budget


def test_a_part_is_computed_once(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return {"advantage": torch.ones(2), "estimate": Estimate(0.5, None, 1.0), "names": ["a"]}

    for _ in range(2):
        found = Parts(tmp_path / "parts", (Estimate,)).within("policy").value("scores/0", compute)
        assert found["estimate"] == Estimate(0.5, None, 1.0)
        assert found["advantage"].tolist() == [1, 1]
    assert computed == [1]


def test_an_unfinished_part_is_absent(tmp_path):
    parts = Parts(tmp_path / "parts")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.value("values", interrupted)
    assert not parts.holds("values")
    assert parts.value("values", lambda: 1) == 1


def test_parts_of_another_version_are_computed_again(tmp_path):
    assert Parts(tmp_path).value("values", lambda: 1) == 1
    (tmp_path / "version").write_text("0.0.1")
    assert Parts(tmp_path).value("values", lambda: 2) == 2


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no finished parts of an audit"):
        Parts(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_a_part_is_loaded_where_it_is_needed(tmp_path, monkeypatch):
    """Its file says that it was on a GPU, which is not here; "meta" stands for another device than the CPU."""
    parts = Parts(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        assert parts.value("signals/0", lambda: torch.ones(2)).tolist() == [1, 1]
    assert parts.value("signals/0", lambda: None).device.type == "cpu"
    assert parts.value("signals/0", lambda: None, "meta").device.type == "meta"


@dataclass
class Foreign:
    value: int = 0


def test_a_part_that_holds_another_class_is_not_loaded(tmp_path):
    parts = Parts(tmp_path, (Estimate,))
    with pytest.raises(pickle.UnpicklingError, match="Foreign"):
        parts.value("values", Foreign)


def test_without_a_folder_nothing_is_kept():
    parts = Parts()
    assert [parts.within("policy").value("values", lambda n=n: n) for n in (1, 2)] == [1, 2]
    assert not parts.holds("values")


def test_the_expected_time_is_that_of_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(audit_time, "_speed", lambda *_: audit_time._Speed(token=1e-4, step=1e-2, row=1e-4))
    monkeypatch.setattr(audit_time, "_scoring", lambda *_: 0.1)
    asked = TestbedAudit(arms=("uniform", "attnpo", "p2t"))
    kept = parts_in(tmp_path / "parts")
    whole = audit_time.expected_seconds(asked, kept)
    assert audit_time.expected_seconds(replace(asked, samples=32), kept) > whole
    assert audit_time.expected_seconds(replace(asked, budget=Budget(steps=100)), kept) > whole
    for name in ("before-rl", "after-rl", "after-rl-lora"):
        kept.value(f"{name}/values", lambda: 0)
    left = audit_time.expected_seconds(asked, kept)
    assert 0 < left < whole
    for part in ("models/before-rl", "models/after-rl", "models/after-rl-lora", "models/reward-model"):
        kept.value(part, lambda: 0)
    assert 0 < audit_time.expected_seconds(asked, kept) < left


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "less than a minute"), (60, "about a minute"), (700, "12 minutes"), (9000, "2.5 hours")]
)
def test_durations(seconds, words):
    assert words in duration_in_words(seconds)
