"""What is done with a policy's adapter while it is switched off and on."""

from __future__ import annotations

import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy, tiny_policy
from peft import PromptTuningConfig, get_peft_model

import tokencredit as tc

ROLLOUTS = make_rollouts()
NEEDS = tc.method("arca").needs


def test_a_frozen_adapter_stays_frozen():
    policy = tiny_lora_policy()
    policy.requires_grad_(False)
    tc.collect(policy, ROLLOUTS, NEEDS)
    assert not any(p.requires_grad for p in policy.parameters())


def test_the_weights_are_untouched():
    policy = tiny_lora_policy()
    before = {name: p.clone() for name, p in policy.named_parameters()}
    trainable = [p.requires_grad for p in policy.parameters()]
    tc.collect(policy, ROLLOUTS, NEEDS | tc.method("divergence").needs)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert [p.requires_grad for p in policy.parameters()] == trainable


def test_a_merged_or_disabled_adapter_is_refused():
    merged = tiny_lora_policy()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        tc.collect(merged, ROLLOUTS, NEEDS)
    policy = tiny_lora_policy()
    with policy.disable_adapter(), pytest.raises(ValueError, match="switched off"):
        tc.collect(policy, ROLLOUTS, NEEDS)


def test_virtual_tokens_are_refused():
    policy = get_peft_model(tiny_policy(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="virtual tokens"):
        tc.assign(policy, ROLLOUTS, "atpo")


def test_one_pass_with_the_adapter_off_serves_residual_and_reference():
    policy, calls = tiny_lora_policy(), []
    policy.get_base_model().get_decoder().register_forward_hook(lambda *_: calls.append(1))
    tc.collect(policy, ROLLOUTS, NEEDS | tc.method("divergence").needs)
    assert len(calls) == 2


def test_a_small_adapter_is_still_read_truly():
    """Weights from a residual of 1e-3 of the state agree with float64."""
    policy = tiny_lora_policy(trained=False)
    torch.manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=1e-3)
    single = tc.assign(policy, ROLLOUTS, "arca").weights
    double = tc.assign(policy.double(), ROLLOUTS, "arca").weights
    torch.testing.assert_close(single, double, atol=5e-3, rtol=5e-3)
