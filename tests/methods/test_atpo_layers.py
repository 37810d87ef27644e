"""Which layers ATPO reads in models with sliding windows, and what it says of tokens outside of them."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import make_rollouts, tiny_policy

import tokencredit as tc
from tokencredit.signals import FullAttentionLayer

ROLLOUTS = make_rollouts((14, 9, 11, 6), (6, 3, 5, 1), (9, 5, -1, 0))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "sliding_window": 4,
}
KINDS = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]


def gemma3():
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**SIZES, layer_types=KINDS, query_pre_attn_scalar=8)
    return transformers.Gemma3ForCausalLM(config).eval()


def mistral():
    torch.manual_seed(0)
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES)).eval()


def weights_of_layers(model, layers, m):
    """What the method makes of the attention of these layers, read by the model's own numbers."""
    read = tc.collect(model, ROLLOUTS, tc.Needs(answer_attention=frozenset(layers))).answer_attention
    named = {FullAttentionLayer(i): read[layer] for i, layer in zip(range(-len(layers), 0), layers, strict=True)}
    return m(ROLLOUTS, torch.ones(4), tc.Signals(answer_attention=named)).weights


@pytest.mark.parametrize(("count", "layers"), [(1, [1]), (2, [0, 1])])
def test_the_last_layers_are_those_with_full_attention(count, layers):
    model, m = gemma3(), tc.method("atpo", layers=count)
    credit = tc.assign(model, ROLLOUTS, m, torch.ones(4))
    assert torch.equal(credit.weights, weights_of_layers(model, layers, m))
    assert (credit.diagnostics["outside_window"] == 0).all()


def test_there_are_no_more_than_the_model_has():
    with pytest.raises(ValueError, match=r"layer -3 of the layers with full attention.* has 2 of them: 0, 1"):
        tc.assign(gemma3(), ROLLOUTS, tc.method("atpo", layers=3))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_where_all_layers_have_windows_what_lies_outside_is_counted(implementation, batch_size):
    """A window of 4 lets the answer from token 9 on see the tokens from 6 on, so that 6 of 9 are out of reach."""
    model, m = mistral(), tc.method("atpo")
    model.set_attn_implementation(implementation)
    credit = tc.assign(model, ROLLOUTS, m, torch.ones(4), batch_size=batch_size)
    torch.testing.assert_close(credit.weights, weights_of_layers(model, [3], m))
    torch.testing.assert_close(credit.diagnostics["outside_window"], torch.tensor([6 / 9, 2 / 5, 0, 0]))
    assert credit.weights[0, :6].tolist() == [m.floor] * 6


def test_full_attention_reaches_every_token():
    assert (tc.assign(tiny_policy(), ROLLOUTS, "atpo").diagnostics["outside_window"] == 0).all()


def test_signals_that_do_not_say_what_is_in_reach_leave_the_diagnostic_out():
    attention = {FullAttentionLayer(-1): torch.ones(4, 2, 14)}
    credit = tc.method("atpo")(ROLLOUTS, torch.ones(4), tc.Signals(answer_attention=attention))
    assert "outside_window" not in credit.diagnostics
