"""A credit method in the settings of a run: as an object, by name, or by name with parameters."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_run import arguments, policy_that_answers, trained, weights
from trl import TrlParser

import tokencredit as tc
from tokencredit.methods.atpo import ATPO
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

SMALL = {"steps_per_generation": 1, "max_steps": 2}


@dataclass(frozen=True)
class FirstTokens:
    """A method of a user's own: credit to the first tokens of a completion."""

    count: int = 2
    name: ClassVar[str] = "first_tokens"

    @property
    def needs(self):
        return tc.Needs()

    def __call__(self, rollouts, advantages, signals, step=None):
        first = torch.arange(rollouts.completion_mask.shape[1]) < self.count
        return tc.multiplicative(rollouts, advantages, first.float().expand(len(rollouts), -1))


def test_an_object_trains_as_its_name_does_and_resumes(tmp_path, monkeypatch):
    """After two steps the weights are the same, bit for bit: by name, by object, and resumed after the first step."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    given = arguments(tmp_path / "name", **SMALL)
    by_name = trained(CreditGRPOTrainer, CreditGRPOConfig(**given, credit_method="entropy", credit_params={"q": 0.25}))
    saving = arguments(tmp_path / "object", **SMALL) | {"save_strategy": "steps", "save_steps": 1}
    args = CreditGRPOConfig(**saving, credit_method=tc.method("entropy", q=0.25))
    by_object = trained(CreditGRPOTrainer, args)
    assert torch.equal(weights(by_name), weights(by_object))
    assert not torch.equal(
        weights(by_name), torch.cat([p.detach().flatten() for p in policy_that_answers().parameters()])
    )
    card = (tmp_path / "object" / "README.md").read_text()
    assert "| method | entropy |" in card
    assert "| `q` | 0.25 |" in card

    kept = torch.load(tmp_path / "object" / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert kept.build_credit_method() == tc.method("entropy", q=0.25)

    class Resumed(CreditGRPOTrainer):
        def train(self, *_):
            return super().train(resume_from_checkpoint=str(tmp_path / "object" / "checkpoint-1"))

    assert torch.equal(weights(trained(Resumed, args)), weights(by_name))


@pytest.mark.parametrize(
    "credit",
    [
        {"credit_method": tc.method("atpo", floor=0.25)},
        {"credit_method": "atpo:floor=0.25"},
        {"credit_method": "atpo", "credit_params": {"floor": np.float32(0.25)}},
        {"credit_method": "atpo", "credit_params": '{"floor": 0.25}'},
    ],
)
def test_settings_are_written_in_plain_values_and_read_back(tmp_path, credit):
    args = CreditGRPOConfig(**arguments(tmp_path), **credit)
    assert args.build_credit_method() == tc.method("atpo", floor=0.25)
    written = json.loads(args.to_json_string())
    assert (written["credit_method"], written["credit_params"]) == ("atpo", {"floor": 0.25})
    again = {name: written[name] for name in ("credit_method", "credit_params")}
    assert CreditGRPOConfig(**arguments(tmp_path), **again).build_credit_method() == args.build_credit_method()
    assert args.to_sanitized_dict()["credit_method"] == "atpo"


def test_parameters_without_a_default_are_kept(tmp_path):
    method = tc.method("attnpo", heads=((1, 0),), delay=0)
    written = json.loads(CreditGRPOConfig(**arguments(tmp_path), credit_method=method).to_json_string())
    assert written["credit_params"] == {"heads": [[1, 0]], "delay": 0}
    assert tc.method("attnpo", **written["credit_params"]) == method


def test_a_name_with_parameters_on_a_command_line(tmp_path):
    (args,) = TrlParser(CreditGRPOConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--bf16", "false", "--credit_method", "rhythm:strategy=local,horizon=[1,4]"]
    )
    assert args.build_credit_method() == tc.method("rhythm", strategy="local", horizon=(1, 4))


def test_a_method_of_ones_own_trains_and_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    given = arguments(tmp_path, max_steps=1, steps_per_generation=1, log_completions=True)
    args = CreditGRPOConfig(**given | {"save_strategy": "steps", "save_steps": 1}, credit_method=FirstTokens(3))
    trainer = trained(CreditGRPOTrainer, args)
    assert trainer.credit_method == FirstTokens(3)
    written = json.loads(args.to_json_string())
    assert written["credit_method"].endswith(":FirstTokens")
    assert written["credit_params"] == {"count": 3}
    kept = torch.load(tmp_path / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert kept.build_credit_method() == FirstTokens(3)
    card = (tmp_path / "README.md").read_text()
    assert "| method | first_tokens |" in card
    assert ":FirstTokens |" in card
    assert "| `count` | 3 |" in card


TABLE, PLACES = torch.tensor([1.0, 2.0]), (np.arange(2),)


@dataclass(frozen=True)
class Tabled(FirstTokens):
    """A method of a user's own with parameters that JSON has no type for."""

    table: torch.Tensor = TABLE
    places: Any = PLACES


def test_parameters_that_json_lacks_are_described(tmp_path):
    def written(method):
        return json.loads(CreditGRPOConfig(**arguments(tmp_path), credit_method=method).to_json_string())

    assert written(Tabled())["credit_params"] == {}
    changed = written(Tabled(table=torch.tensor([3.0, 4.0]), places=(np.arange(3),)))
    assert changed["credit_params"] == {"table": "tensor([3., 4.])", "places": "[array([0, 1, 2])]"}


def test_parameters_with_the_name_and_beside_it_are_joined(tmp_path):
    given = {"credit_method": "atpo:floor=0.25", "credit_params": {"temperature": 3}}
    method = CreditGRPOConfig(**arguments(tmp_path), **given).build_credit_method()
    assert method == tc.method("atpo", floor=0.25, temperature=3)


class Local(FirstTokens):
    pass


Local.__qualname__ = "function.<locals>.Local"


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        (
            {"credit_method": tc.method("atpo"), "credit_params": {"floor": 0.5}},
            "credit_params: the method atpo is an obj",
        ),
        (
            {"credit_method": "atpo:floor=0.5", "credit_params": {"floor": 0.5}},
            "credit_params: 'atpo:floor=0.5' gives floor too: give each parameter in one place",
        ),
        ({"credit_method": "atpo:flor=0.1"}, "atpo has no parameter 'flor'"),
        ({"credit_method": "atpo:floor"}, "expected NAME:PARAMETER=VALUE"),
        ({"credit_method": ATPO}, r"ATPO is a class: call it, ATPO\(...\)"),
        ({"credit_method": None}, "a method is given by its name"),
        ({"credit_method": ["atpo"]}, "a method is given by its name"),
        ({"credit_method": Local()}, "cannot be saved in a checkpoint .* define its class .*Local at the top level"),
    ],
)
def test_what_is_no_method_is_refused_when_the_settings_are_made(tmp_path, credit, message):
    with pytest.raises(ValueError, match=message):
        CreditGRPOConfig(**arguments(tmp_path), **credit)
