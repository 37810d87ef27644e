"""Models whose layers are not all alike, or whose decoder is hard to find."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_policy
from hybrids import HYBRIDS, OTHERS, ROLLOUTS, UNPADDED, alone, attending, build, naive_rows

import tokencredit as tc
from tokencredit.analysis.rhythm import rhythm_curves
from tokencredit.analysis.traces import attention_pictures
from tokencredit.signals import DistanceNeed, FullAttentionLayer, ModelLayers
from tokencredit.signals.attention import probe_attention
from tokencredit.signals.attention_statistics import answer_row_mean
from tokencredit.signals.layers import refuse_packed

LOGITS = tc.Needs(logits=True)


def close(found, expected):
    torch.testing.assert_close(found.float(), expected.float(), atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in (*HYBRIDS, *OTHERS)}


@pytest.mark.parametrize("name", [*HYBRIDS, *OTHERS])
def test_answer_rows_are_those_of_eager_attention_over_one_completion_without_padding(models, name):
    """Padding, micro-batches and batch mates change nothing, whatever the layers without attention do with padding."""
    model = models[name]
    expected = naive_rows(model, ROLLOUTS)
    needs = tc.Needs(answer_attention=frozenset(expected))
    for batch_size in (None, 2, 1):
        found = tc.collect(model, ROLLOUTS, needs, batch_size=batch_size).answer_attention
        for layer, values in expected.items():
            close(found[layer], values)


@pytest.mark.parametrize("name", [*HYBRIDS, *OTHERS])
def test_log_probs_are_those_of_the_completion_alone(models, name):
    model = models[name]
    found = tc.collect(model, ROLLOUTS, LOGITS).logprob
    for i, length in enumerate(ROLLOUTS.lengths.tolist()):
        one = alone(ROLLOUTS, i)
        with torch.no_grad():
            log_p = model(input_ids=one.input_ids, use_cache=False).logits[0].log_softmax(-1)
        expected = log_p[one.prompt_ids.shape[1] - 1 : -1].gather(1, one.completion_ids[0, :, None])[:, 0]
        close(found[i, :length], expected)


@pytest.mark.parametrize("name", HYBRIDS)
def test_choices_range_over_the_layers_with_attention(models, name):
    model = models[name]
    assert attending(model) == [1, 3]
    layers = ModelLayers.of(model)
    assert layers.attending == layers.full == (1, 3)
    assert [layers.index(layer) for layer in (1, 3, -1, -2, FullAttentionLayer(-1))] == [1, 3, 3, 1, 3]
    assert layers.sample(DistanceNeed("all")) == [1, 3]
    assert layers.sample(DistanceNeed("bottom")) == [1]
    assert layers.sample(DistanceNeed((3, -2))) == [3, 1]


@pytest.mark.parametrize("name", HYBRIDS)
def test_methods_and_rankings_work_and_name_the_models_own_layers(models, name):
    model = models[name]
    last = tc.collect(model, ROLLOUTS, tc.Needs(answer_attention=frozenset({3, -1}))).answer_attention
    assert torch.equal(last[-1], last[3])
    for method in ("atpo", "rhythm"):
        assert torch.isfinite(tc.assign(model, ROLLOUTS, method).advantages).all()
    essential = torch.arange(6).expand(len(ROLLOUTS), 6) % 2 == 0
    ranks = tc.rank_heads(model, ROLLOUTS, essential)
    assert {(rank.layer, rank.head) for rank in ranks} == {(layer, head) for layer in (1, 3) for head in range(4)}
    assert {s.layer for s in tc.head_stability(model, model, ROLLOUTS)} == {1, 3}
    local, remote = tc.group_heads(model, ROLLOUTS, "all")
    assert {layer for layer, _ in (*local, *remote)} <= {1, 3}
    fixed = tc.method("rhythm", local_heads=local, global_heads=remote)
    assert torch.isfinite(rhythm_curves(model, ROLLOUTS, fixed).receiver_fai).all()
    assert attention_pictures(model, ROLLOUTS)[0]["layer"] == 3


def test_samples_of_a_deep_hybrid_are_spread_over_its_layers_with_attention():
    """48 layers of which every fourth has attention, as Qwen3-Next has them."""
    layers = ModelLayers(("linear_attention", "linear_attention", "linear_attention", "full_attention") * 12)
    assert layers.sample(DistanceNeed("middle")) == [19, 23, 27, 31, 35]
    assert layers.sample(DistanceNeed("top")) == [35, 39, 43, 47]


def test_a_layer_without_attention_is_refused_before_any_pass(models):
    model, calls = models["Lfm2"], []
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    for method in (
        tc.method("attnpo", heads=((2, 1), (3, 0))),
        tc.method("rhythm", local_heads=((2, 0),), global_heads=((3, 1),)),
    ):
        with pytest.raises(ValueError, match=r"layer 2 has no attention \(its kind is conv\).* 1, 3"):
            tc.assign(model, ROLLOUTS, method)
    with pytest.raises(ValueError, match="layer 2 has no attention"):
        tc.group_heads(model, ROLLOUTS, (2,))
    with pytest.raises(ValueError, match=r"layer -3 of the layers with attention.* has 2 of them: 1, 3"):
        tc.collect(model, ROLLOUTS, tc.Needs(answer_attention=frozenset({-3})))
    with pytest.raises(ValueError, match="layers with full attention"):
        tc.assign(model, ROLLOUTS, tc.method("atpo", layers=3))
    hook.remove()
    assert calls == []


@pytest.mark.parametrize("name", ["Llama4", "RecurrentGemma"])
def test_a_pass_of_others_that_depends_on_its_padding_is_not_watched(models, name):
    needs = tc.Needs(answer_attention=frozenset({2}))
    with pytest.raises(ValueError, match="padded on the left"), tc.signals.observe(models[name], ROLLOUTS, needs):
        pass
    with tc.signals.observe(models[name], UNPADDED, needs) as read, torch.no_grad():
        models[name](input_ids=UNPADDED.input_ids, use_cache=False)
    close(read().answer_attention[2], tc.collect(models[name], UNPADDED, needs).answer_attention[2])


def test_packed_sequences_of_a_hybrid_run_into_each_other_and_are_refused(models):
    """Behind another sequence in one row, its attention is not that of the sequence alone, though positions restart."""
    model, layer = models["Lfm2"], 3
    first, second = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 7))
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]

    def last_row(ids, position_ids):
        rows = torch.zeros(ids.shape, dtype=torch.bool)
        rows[0, -1] = True
        asked = {layer: {"row": lambda attention: answer_row_mean(attention, rows)}}
        with torch.no_grad(), probe_attention(model, asked) as probe:
            model(input_ids=ids, position_ids=position_ids, use_cache=False)
        return probe.found[layer, "row"][..., -7:]

    packed = last_row(torch.cat([first, second], 1), positions)
    assert not torch.allclose(packed, last_row(second, positions[:, 9:]), atol=1e-3)
    with pytest.raises(ValueError, match=r"layers without attention \(conv\).*use_remove_padding=False"):
        refuse_packed(model)
    refuse_packed(tiny_policy())


def test_final_states_are_watched_where_get_decoder_misleads(models):
    from tokencredit.signals.final_states import predicting, watch_final_states

    for name in ("Llama4", "ModernBertDecoder"):
        model = models[name]
        for kept in (0, 1 + UNPADDED.completion_ids.shape[1]):
            with torch.no_grad(), watch_final_states(model) as states:
                logits = model(input_ids=UNPADDED.input_ids, use_cache=False, logits_to_keep=kept).logits
            made = model.get_output_embeddings()(predicting(states[0], UNPADDED))
            assert len(states) == 1
            torch.testing.assert_close(made, logits[:, -13:-1])
