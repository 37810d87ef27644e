"""Credit of two completions under every method, as it was when these numbers were kept.

They are computed in float64, so that they are the same on every CPU. After a change that is meant to change them,
`REGENERATE_GOLDEN=1 pytest tests/real/test_golden.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from functools import reduce
from operator import or_
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tokencredit as tc
from tokencredit.cli.models import load_policy

GOLDEN = Path(__file__).parent / "data" / "golden.json"


@pytest.fixture(scope="module")
def policy(folder):
    """With a LoRA adapter that changes something, for the methods that compare with and without it."""
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(load_policy(str(folder))[0], adapter).double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(0.05 * values)
    return policy


@pytest.fixture(scope="module")
def two(rollouts):
    """A right and a wrong completion of one problem."""
    return rollouts.rows(slice(2))


@pytest.fixture(scope="module")
def methods(parameters):
    return {name: tc.method(name, **values) for name, values in parameters.items()}


@pytest.fixture(scope="module")
def signals(policy, two, methods, reward_model):
    """What all methods read, in one go."""
    needs = reduce(or_, (method.needs for method in methods.values()))
    return tc.collect(policy, two, needs, reward_model)


@pytest.fixture(scope="module")
def kept():
    return json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.is_file() else {}


@pytest.mark.parametrize("name", tc.methods())
def test_credit_is_what_it_was(name, two, methods, signals, kept):
    credit = methods[name](two, torch.tensor([1.0, -1.0]), signals)
    advantages = [row[:n].tolist() for row, n in zip(credit.advantages, two.lengths.tolist(), strict=True)]
    if os.environ.get("REGENERATE_GOLDEN"):
        kept[name] = [[round(value, 5) for value in row] for row in advantages]
        lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in sorted(kept.items()))
        GOLDEN.write_text(f"{{\n{lines}\n}}\n", "utf-8")
    assert len(advantages) == len(kept[name]) == 2
    for row, expected in zip(advantages, kept[name], strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
