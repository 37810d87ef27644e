"""Log-probs and entropies against the model's own logits."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import make_rollouts, tiny_policy

import tokencredit as tc
from tokencredit.signals import logits as logits_module

ROLLOUTS = make_rollouts((14, 9, 11, 1), (6, 3, 5, 1), (9, 5, -1, 0))
NEEDS = tc.Needs(logits=True)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
HEADS = {
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 0.7},
    "Cohere": {"logit_scale": 0.25, "bos_token_id": 1, "eos_token_id": 2},
    "Granite": {"logits_scaling": 4.0},
}


def own_logits(model):
    with torch.no_grad():
        out = model(
            input_ids=ROLLOUTS.input_ids,
            attention_mask=ROLLOUTS.attention_mask.long(),
            position_ids=ROLLOUTS.position_ids,
        )
    return out.logits[:, ROLLOUTS.prompt_ids.shape[1] - 1 : -1].double().log_softmax(-1)


def expect_equal(signals, log_p):
    mask = ROLLOUTS.completion_mask
    logprob = log_p.gather(2, ROLLOUTS.completion_ids[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    for found, expected in ((signals.logprob, logprob), (signals.entropy, entropy)):
        torch.testing.assert_close(found[mask].double(), expected[mask], atol=1e-5, rtol=1e-4)
        assert (found[~mask] == 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_what_a_model_does_to_its_logits_is_done(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **HEADS[name]})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    expect_equal(tc.collect(model, ROLLOUTS, NEEDS), own_logits(model))


def test_chunks_change_nothing(monkeypatch):
    policy = tiny_policy()
    monkeypatch.setattr(logits_module, "_MAX_LOGITS", 64 * 3)
    expect_equal(tc.collect(policy, ROLLOUTS, NEEDS), own_logits(policy))


def test_a_head_that_does_something_else_is_refused():
    class Shifted(type(tiny_policy())):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return type(out)(logits=2 * out.logits + 1)

    policy = tiny_policy()
    policy.__class__ = Shifted
    with pytest.raises(ValueError, match="Shifted does more to its logits"):
        tc.collect(policy, ROLLOUTS, NEEDS)
    assert not policy.get_decoder()._forward_hooks


def test_a_token_of_no_probability_has_finite_entropy():
    policy = tiny_policy(tie_word_embeddings=False)
    policy.lm_head.weight.data *= 1e4
    assert torch.isfinite(tc.collect(policy, ROLLOUTS, NEEDS).entropy).all()


def test_one_forward_pass_serves_all_methods_of_the_live_policy():
    policy, calls = tiny_policy(), []
    policy.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    needs = tc.Needs()
    for name in ("atpo", "entropy", "entropy_selection", "surprisal", "entropy_reduction"):
        needs |= tc.method(name).needs
    tc.collect(policy, ROLLOUTS, needs)
    assert len(calls) == 1
