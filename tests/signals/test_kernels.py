"""Only what is asked: some heads, a band of keys; and the fused kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, DISTANCES, ROLLOUTS, LargestTensor, build, naive_distances, naive_rows
from conftest import make_rollouts, tiny_policy

import tokencredit as tc
from tokencredit.signals import DistanceNeed, observe
from tokencredit.signals import attention as attention_module
from tokencredit.signals import attention_statistics as statistics_module
from tokencredit.signals.attention_statistics import Attention, head_distances
from tokencredit.signals.row_sums import with_log_sum_exp, with_look_back

HEADS = ((2, 1), (0, 3), (-2, 0))
PLACES = [2 * 4 + 1, 3, 2 * 4]
FROZEN = DistanceNeed(window=3, horizon=(2, 5), heads=HEADS)
UNPADDED = make_rollouts((40, 40), (6, 6), (30, 20))
ON_SDPA = sorted(set(ARCHITECTURES) - {"Gemma2", "GptOss"})


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_some_heads_equal_those_of_the_full_matrix(name, implementation):
    if implementation == "sdpa" and name not in ON_SDPA:
        pytest.skip(f"no SDPA attention for {name}")
    model = build(name)
    model.set_attn_implementation(implementation)
    for rollouts in (ROLLOUTS, UNPADDED):
        asked = tc.Needs(distances=frozenset({FROZEN}), answer_heads=frozenset(HEADS))
        found = tc.collect(model, rollouts, asked)
        _, waad, fai = naive_distances(model, rollouts)
        close(found.distances[FROZEN].waad, waad[:, PLACES])
        close(found.distances[FROZEN].fai, fai[:, PLACES])
        assert found.distances[FROZEN].look_back.shape == (len(rollouts), 0)
        rows = naive_rows(model, rollouts)
        for layer, head in HEADS:
            close(found.answer_heads[layer, head], rows[layer][:, head])


@pytest.mark.parametrize("name", ON_SDPA)
def test_fused_equals_the_full_matrix(name):
    model = build(name)
    for rollouts in (ROLLOUTS, UNPADDED):
        found = tc.collect(model, rollouts, tc.Needs(distances=frozenset({DISTANCES})), kernels="fused")
        distances = found.distances[DISTANCES]
        expected = naive_distances(model, rollouts)
        for value, naive in zip((distances.look_back, distances.waad, distances.fai), expected, strict=True):
            close(value, naive)


def test_heads_come_out_of_their_whole_layer_where_it_is_read_too():
    policy = tiny_policy()
    both = tc.Needs(answer_attention=frozenset({2}), answer_heads=frozenset({(2, 3), (-2, -1), (0, 1)}))
    found = tc.collect(policy, ROLLOUTS, both)
    assert torch.equal(found.answer_heads[2, 3], found.answer_attention[2][:, 3])
    assert torch.equal(found.answer_heads[-2, -1], found.answer_attention[2][:, 3])
    alone = tc.collect(policy, ROLLOUTS, tc.Needs(answer_heads=frozenset({(0, 1)})))
    torch.testing.assert_close(alone.answer_heads[0, 1], found.answer_heads[0, 1])


def test_what_is_known_already_is_not_read_again():
    needs = tc.Needs(answer_heads=frozenset({(2, 3), (0, 1)}), distances=frozenset({FROZEN}))
    known = tc.collect(tiny_policy(), ROLLOUTS, tc.Needs(answer_heads=frozenset({(2, 3)})))
    beyond = needs.beyond(known)
    assert beyond.answer_heads == {(0, 1)}
    with pytest.raises(ValueError, match=r"answer_heads\[\(0, 1\)\]"):
        known.check(needs)
    whole = known | tc.collect(tiny_policy(), ROLLOUTS, beyond)
    whole.check(needs)


@pytest.fixture
def whole_rows(monkeypatch):
    """The number of times that whole rows of attention are computed."""
    calls = []
    original = Attention.probabilities

    def probabilities(self, *args):
        calls.append(self.query.shape)
        return original(self, *args)

    monkeypatch.setattr(Attention, "probabilities", probabilities)
    return calls


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_fixed_groups_take_no_full_pass(kernels, whole_rows):
    rhythm = tc.method("rhythm", horizon=(1, 4), local_heads=((1, 0), (2, 3)), global_heads=((3, 1),))
    tc.assign(tiny_policy(), ROLLOUTS, rhythm, torch.ones(len(ROLLOUTS)), kernels=kernels)
    assert whole_rows == []


def test_fused_takes_no_full_pass_and_torch_takes_one_a_layer(whole_rows):
    needs = tc.Needs(distances=frozenset({DistanceNeed((1, 2), 3, (2, 5))}))
    tc.collect(tiny_policy(), ROLLOUTS, needs, kernels="fused")
    assert whole_rows == []
    tc.collect(tiny_policy(), ROLLOUTS, needs)
    assert len(whole_rows) == 2


def test_a_band_is_read_in_memory_of_the_band():
    n, heads = 600, 4
    q = torch.randn(1, heads, n, 8)
    lse = torch.randn(1, heads, n)
    with LargestTensor() as largest:
        given = Attention(q, q, scaling=1.0, log_sum_exp=lse)
        head_distances(given, torch.ones(1, 500, dtype=torch.bool), 10, (10, 50), look_back=False)
    assert largest.elements <= heads * 64 * (64 + 50)


def test_a_band_of_all_keys_is_read_in_blocks_as_whole_rows_are(monkeypatch):
    monkeypatch.setattr(statistics_module, "_MAX_SCORES", 1)
    q = torch.randn(1, 4, 600, 8)
    with LargestTensor() as largest:
        given = Attention(q, q, scaling=1.0, log_sum_exp=torch.randn(1, 4, 600))
        head_distances(given, torch.ones(1, 500, dtype=torch.bool), 10, (1, 1 << 30), look_back=False)
    assert largest.elements <= 4 * 8 * 600


@pytest.mark.parametrize("name", ["Qwen3", "Mistral"])
def test_telling_the_log_sum_exp_leaves_logits_bitwise_equal(name):
    model = build(name)
    batch = {"input_ids": ROLLOUTS.input_ids, "attention_mask": ROLLOUTS.attention_mask.long()}
    asked = {1: {"told": lambda a: a.log_sum_exp}}
    with torch.no_grad():
        plain = model(**batch).logits
        with attention_module.probe_attention(model, asked, tell={1: with_log_sum_exp}) as probe:
            told = model(**batch, use_cache=False).logits
        with attention_module.probe_attention(model, asked, tell={1: with_look_back}):
            fused = model(**batch, use_cache=False).logits
    assert torch.equal(told, plain)
    assert probe.found[1, "told"].shape == (4, 4, ROLLOUTS.input_ids.shape[1])
    real = ROLLOUTS.attention_mask
    torch.testing.assert_close(fused[real], plain[real], atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_model_while_it_tells():
    needs = tc.Needs(distances=frozenset({FROZEN, DISTANCES}))

    def gradients(watched: bool):
        policy = tiny_policy()
        given = {"input_ids": ROLLOUTS.input_ids, "attention_mask": ROLLOUTS.attention_mask.long(), "use_cache": False}
        if watched:
            with observe(policy, ROLLOUTS, needs, kernels="fused"):
                policy(**given).logits.logsumexp(-1).sum().backward()
        else:
            policy(**given).logits.logsumexp(-1).sum().backward()
        return [p.grad for p in policy.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


@pytest.mark.parametrize("kernels", ["torch", "fused"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_sums_of_rounded_scores_are_not_believed(kind, kernels, whole_rows):
    """SDPA rounds queries and keys under autocast, and positions and exponentials in half precision."""
    policy = build("Qwen2")
    if kind != "autocast":
        policy = policy.to(getattr(torch, kind))
    every = DistanceNeed("all", FROZEN.window, FROZEN.horizon)
    needs = tc.Needs(distances=frozenset({FROZEN, every}))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = tc.collect(policy, ROLLOUTS, needs, kernels=kernels).distances
    assert len(whole_rows) == 4 + 2
    torch.testing.assert_close(found[FROZEN].waad, found[every].waad[:, PLACES], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[FROZEN].fai, found[every].fai[:, PLACES], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ON_SDPA)
def test_rows_and_the_log_sum_exp_that_is_told_are_of_the_same_scores(name):
    def mass(attention):
        return attention.band(0, attention.query.shape[2], 0).sum(-1)

    model = build(name)
    asked, tell = {layer: {"mass": mass} for layer in range(4)}, dict.fromkeys(range(4), with_log_sum_exp)
    with torch.no_grad(), attention_module.probe_attention(model, asked, tell=tell) as probe:
        model(ROLLOUTS.input_ids, attention_mask=ROLLOUTS.attention_mask.long(), use_cache=False)
    for found in probe.found.values():
        real = found.transpose(1, 2)[ROLLOUTS.attention_mask]
        torch.testing.assert_close(real, torch.ones_like(real), atol=1e-5, rtol=0)


def test_a_softcap_is_not_believed_to_be_in_what_sdpa_tells():
    attend = attention_module._probing(lambda *given, **kwargs: (given[3], None))
    q = torch.randn(1, 2, 5, 4)
    probe = attention_module.Probe({0: {"told": lambda a: a.log_sum_exp}}, tell={0: lambda *_, **__: 1 / 0})
    token = attention_module._ACTIVE.set(probe)
    try:
        module = torch.nn.Module()
        module.layer_idx = 0
        attend(module, q, q, q, None, softcap=2.0)
    finally:
        attention_module._ACTIVE.reset(token)
    assert probe.found == {(0, "told"): None}


def test_attention_with_dropout_tells_nothing_and_is_read_whole(whole_rows):
    policy = tiny_policy()
    for layer in policy.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    policy.train()
    with torch.no_grad(), observe(policy, ROLLOUTS, tc.Needs(distances=frozenset({FROZEN}))) as read:
        policy(ROLLOUTS.input_ids, attention_mask=ROLLOUTS.attention_mask.long(), use_cache=False)
        assert read().distances[FROZEN].waad.shape[1] == len(HEADS)
    assert len(whole_rows) == 2


def test_long_distances_keep_their_precision_when_fused():
    """One head looks at the first token only, one at the token before: their distances are known exactly."""
    n = 4096
    q, k = torch.zeros(1, 2, n, 8), torch.zeros(1, 2, n, 8)
    q[:, 0, :, 0], k[:, 0, 0, 0] = 100.0, 1.0
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def attend(module, query, key, value, mask, scaling):
        return sdpa(query, key, value, is_causal=True, scale=scaling).transpose(1, 2), None

    with torch.no_grad():
        (output, _), sums = with_look_back(attend, None, q, k, torch.randn(1, 2, n, 8), None, scaling=1.0)
    assert output.is_contiguous()  # as transformers' own output is, which some models view
    position = torch.arange(n, dtype=torch.float64)
    torch.testing.assert_close(sums.look_back[0, 0].double(), position, atol=2e-3, rtol=0)
    torch.testing.assert_close(sums.look_back[0, 1].double(), position / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_triton_through_a_model_in_its_interpreter(implementation):
    pytest.importorskip("triton")
    policy, rows = tiny_policy(), ROLLOUTS.rows(slice(0, 2))
    policy.set_attn_implementation(implementation)
    needs = tc.Needs(
        answer_attention=frozenset({2}), answer_heads=frozenset({(1, 2)}), distances=frozenset({DISTANCES, FROZEN})
    )
    with torch.compiler.set_stance("force_eager"):
        found, expected = (tc.collect(policy, rows, needs, kernels=name) for name in ("triton", "torch"))
    torch.testing.assert_close(found.answer_attention[2], expected.answer_attention[2])
    torch.testing.assert_close(found.answer_heads[1, 2], expected.answer_heads[1, 2])
    for need in needs.distances:
        for name in ("look_back", "waad", "fai"):
            close(getattr(found.distances[need], name), getattr(expected.distances[need], name))


def test_kernels_that_do_not_exist():
    with pytest.raises(ValueError, match="torch, fused, triton"):
        tc.collect(tiny_policy(), ROLLOUTS, tc.Needs(), kernels="cuda")


@pytest.mark.parametrize("heads", [(), ((1,),), ((1, "2"),)])
def test_heads_that_are_none(heads):
    with pytest.raises(ValueError, match="heads must be"):
        DistanceNeed(heads=heads)
