"""Answer rows against the full eager matrix, on the attention variants of ten architectures."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import make_rollouts, tiny_lora_policy, tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode

import tokencredit as tc
from tokencredit.signals import attention as attention_module

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
HEAD = {"head_dim": 8}
ARCHITECTURES = {
    "Qwen3": HEAD,
    "Qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "Llama": HEAD,
    "Mistral": {**HEAD, "sliding_window": 6},
    "Gemma2": {**HEAD, "sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3": {**HEAD, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "Phi3": {},
    "Olmo2": {},
    "Qwen3Moe": {**HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "GptOss": {**HEAD, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
}
ROLLOUTS = make_rollouts((14, 9, 11, 6), (6, 3, 5, 1), (9, 5, -1, 0))
ALL_LAYERS = tc.Needs(answer_attention=frozenset(range(4)))


def build(name: str):
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**SIZES, **ARCHITECTURES[name]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(p)
    return model


def full_matrices(model, rollouts):
    """(L, B, H, N, N) from eager attention."""
    original = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=rollouts.input_ids,
            attention_mask=rollouts.attention_mask.long(),
            position_ids=rollouts.position_ids,
            use_cache=False,
            output_attentions=True,
        )
    model.set_attn_implementation(original)
    return torch.stack(out.attentions)


def naive_rows(model, rollouts):
    matrices = full_matrices(model, rollouts)
    prompt = rollouts.prompt_ids.shape[1]
    expected = torch.zeros(*matrices.shape[:3], rollouts.completion_ids.shape[1])
    for i in range(len(rollouts)):
        rows = rollouts.answer_mask[i].nonzero().flatten()
        if len(rows):
            expected[:, i] = matrices[:, i, :, prompt + rows, prompt:].mean(-2)
    return expected


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answer_rows_equal_the_full_matrix(name, implementation):
    model = build(name)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{name} has no SDPA attention")
    if implementation == "sdpa" and name == "Gemma2":
        pytest.skip("transformers refuses softcap under SDPA")
    model.set_attn_implementation(implementation)
    found = tc.collect(model, ROLLOUTS, ALL_LAYERS).answer_attention
    expected = naive_rows(model, ROLLOUTS)
    for layer in range(4):
        torch.testing.assert_close(found[layer], expected[layer], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Qwen3", "Mistral"])
def test_logits_are_bitwise_those_of_the_unprobed_model(name):
    model = build(name)
    batch = {
        "input_ids": ROLLOUTS.input_ids,
        "attention_mask": ROLLOUTS.attention_mask.long(),
        "position_ids": ROLLOUTS.position_ids,
    }
    with torch.no_grad():
        plain = model(**batch).logits
        rows = torch.zeros_like(ROLLOUTS.input_ids, dtype=torch.bool)
        with attention_module.probe_answer_rows(model, frozenset({0, -1}), rows) as found:
            probed = model(**batch, use_cache=False).logits
    assert torch.equal(probed, plain)
    assert found.keys() == {0, -1}


def test_negative_layers_count_from_the_last():
    needs = tc.Needs(answer_attention=frozenset({-1, 3, -4}))
    found = tc.collect(tiny_policy(), ROLLOUTS, needs).answer_attention
    assert torch.equal(found[-1], found[3])
    assert torch.equal(found[-4], tc.collect(tiny_policy(), ROLLOUTS, ALL_LAYERS).answer_attention[0])


def test_rows_are_read_in_blocks_with_the_same_result(monkeypatch):
    policy = tiny_policy()
    whole = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
    monkeypatch.setattr(attention_module, "_MAX_SCORES", 1)
    for layer, values in tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention.items():
        torch.testing.assert_close(values, whole[layer], atol=1e-6, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_matrix_of_positions_by_positions_is_made():
    width, heads = 8, 4
    q = torch.randn(1, heads, 400, width)
    rows = torch.arange(400)[None] >= 395
    with LargestTensor() as largest:
        found = attention_module.answer_row_mean(
            q, q, rows, lambda index: attention_module._visible(index, None, 400, None), scaling=1.0
        )
    assert found.shape == (1, heads, 400)
    assert largest.elements <= 400 * heads * width


def test_autocast_does_not_round_the_statistics():
    policy = tiny_policy()
    exact = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention[0]
    # Layer 0 sees bfloat16 projections, so it is near, not equal; rows still sum as float32 rows do.
    torch.testing.assert_close(cast, exact, atol=0.05, rtol=0.1)
    whole_row = make_rollouts((4,), (1,), (0,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        row = tc.collect(policy, whole_row, ALL_LAYERS).answer_attention[0]
    assert (row.sum(-1) < 1).all()


def test_lora_layers_are_active_while_attention_is_read():
    trained, fresh = tiny_lora_policy(), tiny_lora_policy(trained=False)
    a, b = (tc.collect(p, ROLLOUTS, ALL_LAYERS).answer_attention[3] for p in (trained, fresh))
    assert not torch.allclose(a, b, atol=1e-3)


def test_needs_unite_and_one_collection_serves_both():
    atpo, arca = tc.method("atpo"), tc.method("arca")
    policy = tiny_lora_policy()
    signals = tc.collect(policy, ROLLOUTS, atpo.needs | arca.needs)
    advantages = torch.ones(len(ROLLOUTS))
    for m in (atpo, arca):
        alone = m(ROLLOUTS, advantages, tc.collect(policy, ROLLOUTS, m.needs))
        assert torch.equal(m(ROLLOUTS, advantages, signals).weights, alone.weights)


def count_forwards(policy, needs) -> int:
    calls = []
    handle = policy.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    tc.collect(policy, ROLLOUTS, needs)
    handle.remove()
    return len(calls)


def test_forward_passes_are_as_few_as_promised():
    assert count_forwards(tiny_policy(), tc.Needs()) == 0
    assert count_forwards(tiny_policy(), ALL_LAYERS) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "transformers causal LM"),
        (lambda: torch.nn.parallel.DataParallel(tiny_policy()), "unwrap_model"),
        (
            lambda: transformers.BloomForCausalLM(
                transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=4, n_head=2)
            ),
            "does not route it through",
        ),
    ],
)
def test_policies_that_cannot_be_read(make, message):
    with pytest.raises(ValueError, match=message):
        tc.collect(make(), ROLLOUTS, ALL_LAYERS)


def test_no_gradient_is_recorded():
    policy, enabled = tiny_policy(), []
    policy.get_decoder().register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    tc.collect(policy, ROLLOUTS, ALL_LAYERS | tc.Needs(logits=True))
    assert enabled == [False]


def test_padding_does_not_shift_absolute_positions():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    together = tc.collect(model, ROLLOUTS, tc.Needs(logits=True)).logprob
    alone = tc.collect(model, ROLLOUTS.rows(slice(1, 2)), tc.Needs(logits=True)).logprob
    ids = ROLLOUTS.input_ids[1][ROLLOUTS.attention_mask[1]][None]
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    prompt = int(ROLLOUTS.prompt_mask[1].sum())
    expected = log_p[prompt - 1 : -1].gather(1, ids[0, prompt:, None])[:, 0]
    for found in (together[1, : len(expected)], alone[0, : len(expected)]):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_probes_nest_and_the_table_of_implementations_is_left_clean():
    table = attention_module.ALL_ATTENTION_FUNCTIONS
    before, policy = dict(table), tiny_policy()
    rows = torch.cat([torch.zeros_like(ROLLOUTS.prompt_mask), ROLLOUTS.answer_mask], 1)
    plain = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
    with attention_module.probe_answer_rows(policy, frozenset({0}), rows) as outer:
        inner = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
        with torch.no_grad():
            policy(
                input_ids=ROLLOUTS.input_ids,
                attention_mask=ROLLOUTS.attention_mask.long(),
                position_ids=ROLLOUTS.position_ids,
            )
    assert torch.equal(inner[2], plain[2])
    assert torch.equal(outer[0][..., ROLLOUTS.prompt_ids.shape[1] :], plain[0])
    assert dict(table) == before


def test_a_bias_in_the_mask_is_refused():
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 1, 0] = -2.5
    with pytest.raises(ValueError, match="bias"):
        attention_module._visible(torch.tensor([[1]]), mask, 3, None)


def test_masks_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="one for all heads"):
        attention_module._visible(torch.tensor([[1]]), torch.ones(1, 2, 3, 3, dtype=torch.bool), 3, None)
    with pytest.raises(ValueError, match="cannot be read"):
        attention_module._visible(torch.tensor([[1]]), "block mask", 3, None)
