"""Signals out of passes in verl's two layouts are those of a pass on the rollouts' own grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_rollouts, tiny_policy

import tokencredit as tc
from tokencredit.signals import DistanceNeed, Needs, causal_lm, observe
from tokencredit.signals.final_states import predicting, watch_final_states
from tokencredit.signals.logits import logprob_and_entropy_of
from tokencredit.trainers.verl.layout import Layout, from_nested, rollouts_of, to_nested

NEEDS = Needs(
    answer_attention=frozenset({-1, 1}),
    answer_heads=frozenset({(2, 1)}),
    distances=frozenset(
        {DistanceNeed("all", 3, (1, 4)), DistanceNeed(window=3, horizon=(1, 4), heads=((3, 1), (0, 2)))}
    ),
)
POLICIES = {
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
}


def sequences(rollouts):
    """Token ids of each sequence, without padding."""
    return [ids[real] for ids, real in zip(rollouts.input_ids, rollouts.attention_mask, strict=True)]


def packed_pass(rollouts, extra=0):
    """A model's inputs with all sequences in one row, `extra` tokens of padding behind; and their layout."""
    rows = [*sequences(rollouts), *([torch.zeros(extra, dtype=torch.long)] if extra else [])]
    ids, positions = torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]
    return {"input_ids": ids, "position_ids": positions}, Layout.packed(rollouts)


def padded_pass(rollouts):
    """A model's inputs with each sequence at the start of a row; and their layout."""
    rows = sequences(rollouts)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    positions = torch.arange(ids.shape[1]).expand_as(ids) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}, Layout.padded(rollouts)


PASSES = {"packed": packed_pass, "packed, padded": lambda rollouts: packed_pass(rollouts, 7), "padded": padded_pass}


@pytest.fixture(params=POLICIES)
def policy(request):
    return tiny_policy(**POLICIES[request.param])


@pytest.fixture(params=PASSES)
def inputs_and_layout(request, rollouts):
    return PASSES[request.param](rollouts)


def expect_same(found, expected):
    for layer in NEEDS.answer_attention:
        torch.testing.assert_close(
            found.answer_attention[layer], expected.answer_attention[layer], atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(found.answer_heads[2, 1], expected.answer_heads[2, 1], atol=1e-5, rtol=1e-4)
    for need in NEEDS.distances:
        for name in ("look_back", "waad", "fai"):
            a, b = getattr(found.distances[need], name), getattr(expected.distances[need], name)
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_attention_is_that_of_the_grid(policy, rollouts, inputs_and_layout, kernels):
    inputs, layout = inputs_and_layout
    expected = tc.collect(policy, rollouts, NEEDS)
    with torch.no_grad(), observe(policy, rollouts, NEEDS, on_grid=layout.attention, kernels=kernels) as read:
        policy(**inputs, use_cache=False)
    expect_same(read(), expected)


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("name", ["sdpa", "windows"])
def test_masks_that_leave_it_to_the_kernel(rollouts, name, mask):
    """FlashAttention is given no mask, or one of (R, C), and the window as a number."""
    policy = tiny_policy(**POLICIES[name])
    inputs, layout = padded_pass(rollouts)
    left = None if mask == "none" else inputs["attention_mask"]
    expected = tc.collect(policy, rollouts, NEEDS)

    def on_grid(attention):
        return layout.attention(replace(attention, mask=left))

    with torch.no_grad(), observe(policy, rollouts, NEEDS, on_grid=on_grid) as read:
        policy(**inputs, use_cache=False)
    expect_same(read(), expected)


def test_states_and_logits_are_those_of_the_grid(policy, rollouts, inputs_and_layout):
    inputs, layout = inputs_and_layout
    model, mask = causal_lm(policy), rollouts.completion_mask
    with torch.no_grad(), watch_final_states(model) as grid:
        model(rollouts.input_ids, attention_mask=rollouts.attention_mask.long(), position_ids=rollouts.position_ids)
    with torch.no_grad(), watch_final_states(model) as states:
        logits = model(**inputs, use_cache=False).logits
    found = predicting(layout.on_grid(states[0]), rollouts)
    torch.testing.assert_close(found[mask], predicting(grid[0], rollouts)[mask], atol=1e-5, rtol=1e-4)
    expected = tc.collect(policy, rollouts, Needs(logits=True))
    places = layout.index[:, rollouts.prompt_ids.shape[1] - 1 : -1]
    logprob, entropy = logprob_and_entropy_of(logits.flatten(0, 1), places, rollouts)
    torch.testing.assert_close(logprob, expected.logprob, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropy, expected.entropy, atol=1e-5, rtol=1e-4)


def test_nested_tokens_and_back():
    rollouts = make_rollouts(lengths=(5, 0, 3), prompts=(2, 4, 1), answers=(3, -1, -1))
    nested = {
        name: torch.nested.as_nested_tensor(
            [
                row[real]
                for row, real in zip(getattr(rollouts, f"{name}_ids"), getattr(rollouts, f"{name}_mask"), strict=True)
            ],
            layout=torch.jagged,
        )
        for name in ("prompt", "completion")
    }
    again = rollouts_of(nested["prompt"], nested["completion"])
    for name in ("prompt", "completion"):
        mask = getattr(rollouts, f"{name}_mask")
        assert torch.equal(getattr(again, f"{name}_mask"), mask)
        assert torch.equal(getattr(again, f"{name}_ids")[mask], getattr(rollouts, f"{name}_ids")[mask])
    values = torch.where(rollouts.completion_mask, torch.randn(3, 5), 0.0)
    assert torch.equal(from_nested(to_nested(values, rollouts.completion_mask), rollouts.completion_mask), values)
