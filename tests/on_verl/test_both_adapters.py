"""One batch goes through both adapters, and gets the same credit. Each has an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from engines import batch_of, engine, log_prob_pass
from run_verl import policy_that_answers, write_assets

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.verl.fields import marked, unpack
from tokencredit.trainers.verl.layout import from_nested, rollouts_of

HERE = Path(__file__).parent
TRL_PYTHON = os.environ.get("TRL_PYTHON", "")
METHODS = {
    "random": {},
    "position": {},
    "atpo": {},
    "rhythm": {"horizon": [1, 4]},
    "entropy": {},
    "entropy_selection": {},
    "surprisal": {},
    "entropy_reduction": {},
}


@pytest.fixture(scope="module")
def from_trl(tmp_path_factory):
    """What TRL's trainer has trained on, and its policy."""
    if not TRL_PYTHON:
        pytest.skip("needs TRL's environment: TRL_PYTHON=.venv/bin/python, which make test-verl sets")
    file = tmp_path_factory.mktemp("trl") / "batches.pt"
    command = [str(Path(TRL_PYTHON).absolute()), HERE / "trl_batches.py", file, json.dumps(METHODS)]
    paths = os.pathsep.join(map(str, (HERE.parent / "trainers", HERE.parents[1] / "src")))
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def own_engine(from_trl, tmp_path_factory):
    """verl's, with the policy of TRL's tests."""
    policy = policy_that_answers()
    policy.load_state_dict(from_trl["policy"])
    return engine(write_assets(tmp_path_factory.mktemp("assets"), policy) / "model")


@pytest.fixture(scope="module")
def exact_policy(from_trl):
    """The same policy in float64."""
    policy = policy_that_answers()
    policy.load_state_dict(from_trl["policy"])
    return policy.double().eval()


def expect_same_reduction(found, expected, entropy, exact, uniform, mask):
    """Entropy reduction divides by the sum of the falls of entropy, which magnifies the rounding of the entropies.

    Where the entropies of both adapters are off by at most r, an advantage is off by up to |A_i| * (1 + w) * 4 r / f,
    f being the mean fall of the completion's entropies. Completions are compared up to that where f is at least 400 r;
    at least half of them must be such.

    Args:
        found, expected: (B, T), advantages. entropy: (B, T), from verl's pass. exact: (B, T), the same in float64.
        uniform: (B, T), the outcome advantages.
    """
    rounding = (entropy - exact)[mask].abs().max()
    falls = torch.where(mask[:, 1:], (exact[:, :-1] - exact[:, 1:]).clamp(min=0), 0.0)
    error = 4 * rounding / (falls.sum(1) / mask.sum(1))
    conditioned = error <= 0.01
    assert conditioned.sum() >= len(error) / 2
    allowed = error[:, None] * (uniform.abs() + expected.abs()) + 2e-5
    assert ((found - expected).abs() <= allowed)[mask & conditioned[:, None]].all()


@pytest.mark.parametrize("name", METHODS)
def test_one_batch_gets_the_same_credit(from_trl, own_engine, exact_policy, name):
    method = tc.method(name, **METHODS[name])
    for inputs, plain in zip(from_trl["batches"][name], from_trl["batches"]["uniform"], strict=True):
        assert torch.equal(inputs["completion_ids"], plain["completion_ids"])
        grid = [inputs[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
        data = batch_of(tc.Rollouts(*grid), remove_padding=True, token_budget=80)
        rollouts = rollouts_of(data["prompts"], data["responses"])
        fields = log_prob_pass(own_engine, data, method) if method.needs.policy else {}
        rollouts = marked(rollouts, fields) if fields else tc.mark_spans(rollouts, build_tokenizer())
        mask = rollouts.completion_mask
        uniform, expected = (batch["advantages"][:, : mask.shape[1]] for batch in (plain, inputs))
        found = unpack(method, rollouts, uniform[:, 0], fields, 0).advantages
        assert (expected[mask] != uniform[mask]).any()
        if name == "entropy_reduction":
            entropy = from_nested(fields["credit_entropy"], mask).double()
            exact = tc.collect(exact_policy, rollouts, method.needs).entropy.double()
            expect_same_reduction(found, expected, entropy, exact, uniform, mask)
            continue
        torch.testing.assert_close(found[mask], expected[mask], atol=2e-5, rtol=1e-4)
