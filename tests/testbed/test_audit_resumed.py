"""An audit of the testbed that was interrupted and taken up again is the audit that was not interrupted."""

from __future__ import annotations

import json

import pytest

from tokencredit.testbed import audit as module
from tokencredit.testbed.audit import TestbedAudit, run_audit
from tokencredit.testbed.policy import PolicySize
from tokencredit.testbed.training import Budget
from tokencredit.testbed.warmup import WarmUp

SMALL = TestbedAudit(
    arms=("uniform", "surprisal", "arca"),
    problems=2,
    group_size=2,
    estimated=1,
    samples=2,
    evaluation_problems=2,
    budget=Budget(steps=1, prompts=2, group_size=2, updates_per_step=1),
    warm_up=WarmUp(steps=2, batch_size=4, size=PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)),
)


class Interrupting:
    """Progress that notes each stage, and is interrupted as by Ctrl-C when the named one begins."""

    def __init__(self, at=None):
        self.at, self.stages, self.messages = at, [], []

    def stage(self, name, total):
        self.stages.append(name)
        if name == self.at:
            raise KeyboardInterrupt

    def advance(self, done, note=""):
        pass

    def message(self, text):
        self.messages.append(text)


def test_an_interrupted_audit_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "expected_seconds", lambda *_: 60.0)
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    whole = run_audit(SMALL, Interrupting(), tmp_path / "whole")
    before = Interrupting("after RL: effects")
    with pytest.raises(KeyboardInterrupt):
        run_audit(SMALL, before, tmp_path / "parts")
    assert "after RL: values" in before.stages
    # Without the cache: what is finished is in the folder.
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "empty"))
    after = Interrupting()
    resumed = run_audit(SMALL, after, tmp_path / "parts")
    assert json.dumps(resumed) == json.dumps(whole)
    repeated = set(before.stages) & set(after.stages)
    assert repeated == {"before RL: reading", "before RL: scoring", "after RL: effects"}
    assert after.stages[-1] == "after RL, LoRA: scoring"
    assert before.messages[0] == "expected time, from a short test on this machine: about a minute"
