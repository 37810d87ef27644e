"""What workers ship is enough: the trainer's credit is that of the method, whichever way it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy

import tokencredit as tc
from tokencredit.credit import additive, multiplicative
from tokencredit.signals import Needs
from tokencredit.trainers.verl.fields import check_shippable, marked, pack, shipped, unpack, weighed_by_worker

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


def shipped_credit(method, rollouts, outcome, signals, step=7):
    """What the trainer makes of what a worker packs."""
    fields = pack(method, rollouts, signals, step) if method.needs.policy else {}
    assert sorted(fields) == sorted(shipped(method))
    bare = replace(rollouts, answer_start=None, step_index=None)
    return unpack(method, marked(bare, fields) if fields else rollouts, outcome, fields, step)


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_credit_survives_the_journey(name, params):
    """Outcomes of either sign and of 0, large and small; a completion without tokens, and some without an answer."""
    rollouts = make_rollouts(lengths=(12, 7, 9, 0, 12, 6), prompts=(5, 3, 4, 2, 5, 5), answers=(8, 4, -1, -1, 9, 2))
    outcome = torch.tensor([2.5, -0.01, 0.7, -1.0, 0.0, -3.0])
    method = tc.method(name, **params)
    signals = tc.collect(tiny_lora_policy(), rollouts, method.needs)
    expected = method(rollouts, outcome, signals, step=7)
    found = shipped_credit(method, rollouts, outcome, signals)
    assert torch.equal(found.advantages, expected.advantages)
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


@dataclass(frozen=True)
class Fading:
    """Weights that fade in over the training steps where the outcome is positive, with diagnostics of its own."""

    name: ClassVar[str] = "fading"
    sign_only: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(answer_attention=frozenset({-1}))

    def __call__(self, rollouts, advantages, signals, step=None):
        share = 0.0 if step is None else step / 10
        strength = share * (advantages > 0).float()
        weights = 1 + strength[:, None] * signals.answer_attention[-1].mean(1)
        return multiplicative(rollouts, advantages, weights, strength=strength, attention=weights.amax(1))


ANSWER_HEADS = Needs(answer_heads=frozenset({(1, 2), (3, 0)}))


@dataclass(frozen=True)
class BySize:
    """Weights that depend on the size of the outcome advantage, and so not on its sign alone."""

    needs: Needs = ANSWER_HEADS
    name: ClassVar[str] = "by size"

    def __call__(self, rollouts, advantages, signals, step=None):
        read = signals.answer_heads
        return multiplicative(rollouts, advantages, advantages.abs()[:, None] * (read[1, 2] + read[3, 0]))


@dataclass(frozen=True)
class AdditiveBySign:
    """Declares `sign_only`, but has no weights."""

    name: ClassVar[str] = "additive by sign"
    sign_only: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(answer_attention=frozenset({-1}))

    def __call__(self, rollouts, advantages, signals, step=None):
        return additive(rollouts, advantages, signals.answer_attention[-1].mean(1))


OUTCOME = torch.tensor([2.5, -0.01, 0.0, 0.3])


@pytest.mark.parametrize("step", [None, 3, 9])
def test_the_worker_is_told_the_step(step):
    """A method with a schedule gets the trainer's step. Its own diagnostics come back, for the sign of the outcome."""
    rollouts, method = make_rollouts(), Fading()
    assert weighed_by_worker(method)
    signals = tc.collect(tiny_lora_policy(), rollouts, method.needs)
    expected = method(rollouts, OUTCOME, signals, step=step)
    found = shipped_credit(method, rollouts, OUTCOME, signals, step)
    assert torch.equal(found.advantages, expected.advantages)
    assert (step is None) == torch.equal(expected.weights, method(rollouts, OUTCOME, signals).weights)
    assert {"strength", "attention"} <= found.diagnostics.keys()
    for key, values in expected.diagnostics.items():
        assert torch.equal(found.diagnostics[key], values), key


def test_a_method_that_reads_the_size_of_the_outcome_is_applied_by_the_trainer():
    rollouts, method = make_rollouts(), BySize()
    check_shippable(method)
    assert not weighed_by_worker(method)
    signals = tc.collect(tiny_lora_policy(), rollouts, method.needs)
    expected = method(rollouts, OUTCOME, signals)
    assert not torch.equal(expected.weights, method(rollouts, OUTCOME.sign(), signals).weights)
    assert torch.equal(shipped_credit(method, rollouts, OUTCOME, signals).advantages, expected.advantages)


@pytest.mark.parametrize(
    "needs",
    [
        Needs(answer_attention=frozenset({-1})),
        Needs(distances=tc.method("rhythm").needs.distances),
        Needs(answer_attention=frozenset({-1}), group=True),
    ],
)
def test_attention_of_whole_layers_is_shipped_as_weights_or_not_at_all(needs):
    with pytest.raises(ValueError, match=r"by size reads the attention of whole layers.* declares sign_only = True"):
        check_shippable(BySize(needs))


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_every_built_in_method_can_be_shipped(name, params):
    check_shippable(tc.method(name, **params))


def test_a_method_without_weights_must_not_declare_that_they_depend_on_the_sign():
    rollouts, method = make_rollouts(), AdditiveBySign()
    signals = tc.collect(tiny_lora_policy(), rollouts, method.needs)
    with pytest.raises(ValueError, match="additive by sign declares sign_only = True, but its credit has no weights"):
        pack(method, rollouts, signals)
