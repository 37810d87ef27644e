"""The credit of every method, on models of many architectures, is what it was when it was recorded.

The models are in float64 (but for one, see `cases.default_dtype`), so that what a CPU's instructions round differently
stays far below the tolerance. The tolerance is not zero, because the signals are float32 behind the model, and
logarithms, sums and the entropies' differences round differently on other CPUs and in other versions of torch. Models
in float32 give the same values within it, but for entropy_reduction on Llama 4, which divides by small differences. So
a difference beyond it is a change of the method, and not of the rounding.
After a change that is meant to change them, `python tests/golden/record.py` records them anew.
"""

from __future__ import annotations

from dataclasses import fields

import cases
import pytest
import torch
from golden_files import CREDIT, read
from tiny_models import LORA

import tokencredit as tc


@pytest.fixture(scope="module")
def golden():
    return read(CREDIT)


@pytest.mark.parametrize("model", cases.NAMES)
def test_credit_is_what_it_was(model, golden):
    found = dict(cases.recorded(model))
    expected = {key: value for key, value in golden.items() if key.startswith(f"{model} | ")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", tc.methods())
def test_every_option_of_every_method_is_among_the_cases(name):
    """Except the signature of AttnPO's model, which changes no credit: it only refuses other models."""
    recorded = [case for model in ("Qwen3", LORA) for case in cases.cases_of(model) if case.method == name]
    options = {option.name for option in fields(tc.method(name, **recorded[0].params))} - {"model"}
    assert set().union(*(case.params for case in recorded)) == options
