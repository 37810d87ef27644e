"""Answer rows against the full eager matrix, on the attention variants of ten architectures."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import (
    ALL_LAYERS,
    ARCHITECTURES,
    DISTANCES,
    ROLLOUTS,
    LargestTensor,
    build,
    naive_distances,
    naive_rows,
)
from conftest import make_rollouts, tiny_lora_policy, tiny_policy

import tokencredit as tc
from tokencredit.signals import attention as attention_module
from tokencredit.signals import attention_statistics as statistics_module
from tokencredit.signals.attention_statistics import Attention


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_statistics_equal_those_of_the_full_matrix(name, implementation):
    model = build(name)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{name} has no SDPA attention")
    if implementation == "sdpa" and name == "Gemma2":
        pytest.skip("transformers refuses softcap under SDPA")
    model.set_attn_implementation(implementation)
    found = tc.collect(model, ROLLOUTS, ALL_LAYERS | tc.Needs(distances=frozenset({DISTANCES})))
    expected = naive_rows(model, ROLLOUTS)
    for layer in range(4):
        torch.testing.assert_close(found.answer_attention[layer], expected[layer], atol=2e-5, rtol=1e-4)
    distances = found.distances[DISTANCES]
    for value, naive in zip(
        (distances.look_back, distances.waad, distances.fai), naive_distances(model, ROLLOUTS), strict=True
    ):
        torch.testing.assert_close(value.double(), naive, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Qwen3", "Mistral", "Gemma2"])
def test_flex_attention_is_read_through_its_block_mask(name):
    """Without compilation, which takes half a minute and changes nothing but the speed."""
    model = build(name)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        found = tc.collect(model, ROLLOUTS, ALL_LAYERS | tc.Needs(distances=frozenset({DISTANCES})))
    expected = naive_rows(model, ROLLOUTS)
    for layer in range(4):
        torch.testing.assert_close(found.answer_attention[layer], expected[layer], atol=2e-5, rtol=1e-4)
    expected = naive_distances(model, ROLLOUTS)
    for name, naive in zip(("look_back", "waad", "fai"), expected, strict=True):
        value = getattr(found.distances[DISTANCES], name)
        torch.testing.assert_close(value.double(), naive, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["FA2", "FA3"])
@pytest.mark.parametrize("padded", [True, False])
def test_flash_attention_is_read_through_its_arguments(monkeypatch, name, padded):
    """FlashAttention needs a GPU: in its place stands SDPA, called as transformers calls FlashAttention, with a mask of
    padding at most and the window as a number."""
    model = build("Mistral")
    rollouts = ROLLOUTS if padded else make_rollouts((14, 14), (6, 6), (9, 5))
    expected_rows, expected = naive_rows(model, rollouts), naive_distances(model, rollouts)
    kinds = []

    def in_place_of_flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
        kinds.append(None if attention_mask is None else attention_mask.ndim)
        given = Attention(query, key, scaling=scaling, mask=attention_mask, window=sliding_window)
        seen = given.seen_by_block(0, query.shape[2])[:, None]
        repeated = [x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=seen, scale=scaling)
        return out.nan_to_num().transpose(1, 2), None

    implementation = {"FA2": "flash_attention_2", "FA3": "flash_attention_3"}[name]
    monkeypatch.setitem(attention_module.ALL_ATTENTION_FUNCTIONS._global_mapping, implementation, in_place_of_flash)
    monkeypatch.setattr(model.config, "_attn_implementation", implementation)
    found = tc.collect(model, rollouts, ALL_LAYERS | tc.Needs(distances=frozenset({DISTANCES})))
    monkeypatch.undo()
    assert set(kinds) == {2 if padded else None}
    for layer in range(4):
        torch.testing.assert_close(found.answer_attention[layer], expected_rows[layer], atol=2e-5, rtol=1e-4)
    for field, naive in zip(("look_back", "waad", "fai"), expected, strict=True):
        value = getattr(found.distances[DISTANCES], field)
        torch.testing.assert_close(value.double(), naive, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Mistral", "Qwen3"])
def test_distances_in_blocks_and_without_padding(monkeypatch, name):
    """No mask reaches the kernel where nothing is padded; blocks of rows meet without a seam."""
    model, rollouts = build(name), make_rollouts((40, 40), (6, 6), (30, 20))
    needs = tc.Needs(distances=frozenset({DISTANCES}))
    expected = naive_distances(model, rollouts)
    for limit in (1, 1 << 30):
        monkeypatch.setattr(statistics_module, "_MAX_SCORES", limit)
        found = tc.collect(model, rollouts, needs).distances[DISTANCES]
        for value, naive in zip((found.look_back, found.waad, found.fai), expected, strict=True):
            torch.testing.assert_close(value.double(), naive, atol=1e-4, rtol=1e-4)


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
        with attention_module.probe_attention(model, {0: {"shape": lambda a: a.query.shape}}) as probe:
            probed = model(**batch, use_cache=False).logits
    assert torch.equal(probed, plain)
    assert probe.found == {(0, "shape"): (4, 4, ROLLOUTS.input_ids.shape[1], 8)}


def test_negative_layers_count_from_the_last():
    needs = tc.Needs(answer_attention=frozenset({-1, 3, -4}))
    found = tc.collect(tiny_policy(), ROLLOUTS, needs).answer_attention
    assert torch.equal(found[-1], found[3])
    assert torch.equal(found[-4], tc.collect(tiny_policy(), ROLLOUTS, ALL_LAYERS).answer_attention[0])


def test_rows_are_read_in_blocks_with_the_same_result(monkeypatch):
    policy = tiny_policy()
    whole = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
    monkeypatch.setattr(statistics_module, "_MAX_SCORES", 1)
    for layer, values in tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention.items():
        torch.testing.assert_close(values, whole[layer], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("statistic", ["rows", "distances"])
def test_no_matrix_of_positions_by_positions_is_made(statistic, monkeypatch):
    monkeypatch.setattr(statistics_module, "_MAX_SCORES", 1)
    n, heads, width = 400, 4, 8
    q = torch.randn(1, heads, n, width)
    given = Attention(q, q, scaling=1.0)
    with LargestTensor() as largest:
        if statistic == "rows":
            statistics_module.answer_row_mean(given, torch.arange(n)[None] >= 395)
        else:
            statistics_module.head_distances(given, torch.ones(1, 300, dtype=torch.bool), 10, (10, 100))
    assert largest.elements <= n * heads * width


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
    plain = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
    with attention_module.probe_attention(policy, {0: {"calls": lambda a: "outer"}}) as outer:
        inner = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
        assert outer.found == {}
        with torch.no_grad():
            policy(input_ids=ROLLOUTS.input_ids)
    assert outer.found == {(0, "calls"): "outer"}
    assert torch.equal(inner[2], plain[2])
    assert dict(table) == before


def masked(mask):
    q = torch.randn(1, 2, 3, 4)
    return Attention(q, q, scaling=1.0, mask=mask)


def test_masks_that_cannot_be_read_are_refused():
    rows = torch.ones(1, 3, dtype=torch.bool)
    bias = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min).triu(1)
    bias[0, 0, 1, 0] = -2.5
    with pytest.raises(ValueError, match="bias"):
        statistics_module.answer_row_mean(masked(bias), rows)
    both_ways = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="what comes after"):
        statistics_module.head_distances(masked(both_ways), rows, 2, (1, 2))
    with pytest.raises(ValueError, match="one for all heads"):
        statistics_module.check_mask(torch.ones(1, 2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be read"):
        statistics_module.check_mask("block mask")


def layers_run(policy, needs) -> list[int]:
    """Which layers a collection runs to their end."""
    run = []
    for i, layer in enumerate(policy.get_decoder().layers):

        def forward(*args, original=layer.forward, i=i, **kwargs):
            out = original(*args, **kwargs)
            run.append(i)
            return out

        layer.forward = forward
    tc.collect(policy, ROLLOUTS, needs)
    return run


def test_the_pass_ends_at_the_last_layer_that_is_needed():
    early = tc.Needs(answer_attention=frozenset({1}), distances=frozenset({tc.signals.DistanceNeed((0,))}))
    assert layers_run(tiny_policy(), early) == [0]
    assert layers_run(tiny_policy(), early | tc.Needs(logits=True)) == [0, 1, 2, 3]
    policy = tiny_policy()
    policy.get_decoder().layers[3].register_forward_pre_hook(lambda *_: None)
    assert layers_run(policy, early) == [0, 1, 2, 3]
    leaf = tiny_policy()
    leaf.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert layers_run(leaf, early) == [0]


def test_a_pass_that_was_broken_off_leaves_no_trace():
    policy = tiny_policy()
    needs = tc.Needs(answer_attention=frozenset({1}))
    with torch.no_grad():
        before = policy(ROLLOUTS.input_ids).logits
    stopped = tc.collect(policy, ROLLOUTS, needs)
    whole = tc.collect(policy, ROLLOUTS, needs | tc.Needs(logits=True))
    assert torch.equal(stopped.answer_attention[1], whole.answer_attention[1])
    with torch.no_grad():
        assert torch.equal(policy(ROLLOUTS.input_ids).logits, before)


def test_gradient_checkpointing_does_not_count_twice():
    """The backward pass runs each layer again, while the probe is still open."""
    policy, calls = tiny_policy().train(), []
    policy.gradient_checkpointing_enable({"use_reentrant": False})

    def statistic(attention):
        calls.append(attention.query.requires_grad)
        return len(calls)

    with attention_module.probe_attention(policy, {1: {"calls": statistic}}) as probe:
        policy(input_ids=ROLLOUTS.input_ids, use_cache=False).logits.sum().backward()
    assert calls == [False]
    assert probe.found == {(1, "calls"): 1}
    assert all(p.grad is not None for p in policy.parameters())
    plain = tc.collect(tiny_policy(), ROLLOUTS, ALL_LAYERS).answer_attention
    checkpointed = tc.collect(policy, ROLLOUTS, ALL_LAYERS).answer_attention
    assert torch.equal(checkpointed[3], plain[3])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(implementation):
    """Two sequences in one row, told apart by positions that start again, as padding-free training has them."""
    policy = tiny_policy()
    policy.set_attn_implementation(implementation)
    first, second = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 7))
    ids = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]
    rows = torch.zeros(1, 16, dtype=torch.bool)
    rows[0, 13:] = True
    asked = {2: {"rows": lambda a: statistics_module.answer_row_mean(a, rows)}}
    with torch.no_grad(), attention_module.probe_attention(policy, asked) as probe:
        policy(input_ids=ids, position_ids=positions, use_cache=False)
    packed = probe.found[2, "rows"]
    assert (packed[..., :9] == 0).all()
    alone = {2: {"rows": lambda a: statistics_module.answer_row_mean(a, rows[:, 9:])}}
    with torch.no_grad(), attention_module.probe_attention(policy, alone) as probe:
        policy(input_ids=second, use_cache=False)
    torch.testing.assert_close(packed[..., 9:], probe.found[2, "rows"], atol=1e-5, rtol=1e-4)


def test_a_cache_prefix_is_refused():
    policy = tiny_policy()
    with torch.no_grad():
        cache = policy(input_ids=ROLLOUTS.input_ids[:, :4], use_cache=True).past_key_values
        with (
            pytest.raises(ValueError, match="KV-cache prefix"),
            attention_module.probe_attention(policy, {0: {"x": lambda a: None}}),
        ):
            policy(input_ids=ROLLOUTS.input_ids[:, 4:], past_key_values=cache)
