"""Signals of a pretrained model on chat-formatted completions, against naive computations from full matrices."""

from __future__ import annotations

import pytest
import torch
from architectures import DISTANCES, naive_distances, naive_rows

import tokencredit as tc


@pytest.fixture(scope="module")
def signals(model, rollouts):
    layers = frozenset(range(30))
    return tc.collect(model, rollouts, tc.Needs(answer_attention=layers, distances=frozenset({DISTANCES}), logits=True))


def test_answer_attention_equals_that_of_the_full_matrices(model, rollouts, signals):
    assert rollouts.has_answer.all()
    for layer, expected in enumerate(naive_rows(model, rollouts)):
        torch.testing.assert_close(signals.answer_attention[layer], expected, atol=2e-5, rtol=1e-3)


def test_distances_equal_those_of_the_full_matrices(model, rollouts, signals):
    distances = signals.distances[DISTANCES]
    values = (distances.look_back, distances.waad, distances.fai)
    for value, expected in zip(values, naive_distances(model, rollouts), strict=True):
        torch.testing.assert_close(value.double(), expected, atol=2e-4, rtol=2e-3)


def test_log_probs_and_entropies_equal_those_of_each_completion_alone(model, rollouts, signals):
    for i, length in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]]
        completion = rollouts.completion_ids[i, :length]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].double()
        logprobs = logits.log_softmax(-1)
        expected = logprobs.gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(signals.logprob[i, :length].double(), expected, atol=1e-3, rtol=1e-3)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(signals.entropy[i, :length].double(), entropy, atol=1e-3, rtol=1e-3)
