"""What workers ship is enough: the trainer's credit is that of the method, whichever way it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy

import tokencredit as tc
from tokencredit.credit import multiplicative
from tokencredit.signals import Needs
from tokencredit.trainers.verl.fields import marked, pack, shipped, unpack

HEADS = ((1, 2), (3, 0))
PARAMETERS = {"attnpo": {"heads": HEADS, "delay": 0}, "rhythm": {"horizon": (1, 4)}}
READABLE = sorted(set(tc.methods()) - {"p2t"})
VARIANTS = [
    *((name, PARAMETERS.get(name, {})) for name in READABLE),
    ("rhythm", {"horizon": (1, 4), "sign": "positive"}),
    ("rhythm", {"horizon": (1, 4), "sign": "negative", "strategy": "local"}),
    ("atpo", {"layers": 2}),
    ("attnpo", {**PARAMETERS["attnpo"], "incorrect": True}),
]


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_credit_survives_the_journey(name, params):
    """Outcomes of either sign and of 0, large and small; a completion without tokens, and some without an answer."""
    rollouts = make_rollouts(lengths=(12, 7, 9, 0, 12, 6), prompts=(5, 3, 4, 2, 5, 5), answers=(8, 4, -1, -1, 9, 2))
    outcome = torch.tensor([2.5, -0.01, 0.7, -1.0, 0.0, -3.0])
    method = tc.method(name, **params)
    signals = tc.collect(tiny_lora_policy(), rollouts, method.needs)
    expected = method(rollouts, outcome, signals, step=7)
    fields = pack(method, rollouts, signals) if method.needs.policy else {}
    assert sorted(fields) == sorted(shipped(method.needs))
    bare = replace(rollouts, answer_start=None, step_index=None)
    found = unpack(method, marked(bare, fields) if fields else rollouts, outcome, fields, 7)
    assert torch.equal(found.advantages, expected.advantages)
    # A method that a worker applies must not have diagnostics of its own: they would stay behind.
    assert found.diagnostics.keys() == expected.diagnostics.keys()
    for key, values in expected.diagnostics.items():
        assert torch.equal(found.diagnostics[key], values), key


@dataclass(frozen=True)
class OneHeadOfEach:
    """Weighs by one head of each of two layers, and differently: no head may come from elsewhere."""

    name: ClassVar[str] = "one head of each"
    needs: ClassVar[Needs] = Needs(answer_heads=frozenset({(-1, 0), (1, 2)}), group=True)

    def __call__(self, rollouts, advantages, signals, step=None):
        read = signals.answer_heads
        return multiplicative(rollouts, advantages, read[-1, 0] + 3 * read[1, 2])


def test_heads_arrive_where_they_were():
    rollouts, method = make_rollouts(), OneHeadOfEach()
    signals, outcome = tc.collect(tiny_lora_policy(), rollouts, method.needs), torch.tensor([1.0, -1.0, 0.5, 2.0])
    expected = method(rollouts, outcome, signals).advantages
    assert expected.std() > 0.01
    assert torch.equal(unpack(method, rollouts, outcome, pack(method, rollouts, signals), 0).advantages, expected)
