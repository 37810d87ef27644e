"""Replacement effects against a naive loop, and against what is known of a policy that forgets its prefix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy, tiny_policy

from tokencredit.audit import counterfactual
from tokencredit.audit.counterfactual import replacement_effect, runner_ups

EOS, PAD, MOST = 53, 0, 14
IDS = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": MOST}


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(3).double()


@pytest.fixture(scope="module")
def rollouts():
    return make_rollouts((6, 4, 0, 9, MOST), (5, 3, 4, 2, 6), (-1,) * 5)


def logits_after(policy, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def listed(rollouts):
    """(row, prompt, completion) token ids."""
    for i, n in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]].tolist()
        yield i, prompt, rollouts.completion_ids[i, :n].tolist()


def graded(row: int, completion: list[int]) -> float:
    return sum((row + i + 1) * token for i, token in enumerate(completion)) % 101 / 101


def test_it_equals_a_naive_loop_whatever_the_batch(policy, rollouts, monkeypatch):
    """Without batch, padding or cache."""
    expected = torch.zeros(rollouts.completion_ids.shape)
    for i, prompt, completion in listed(rollouts):
        for t, token in enumerate(completion):
            ranked = logits_after(policy, prompt + completion[:t]).argsort(descending=True).tolist()
            changed = [*completion[:t], next(v for v in ranked if v not in (token, EOS))]
            while len(changed) < MOST and EOS not in changed[t:]:
                changed.append(int(logits_after(policy, prompt + changed).argmax()))
            expected[i, t] = graded(i, completion) - graded(i, changed)
    assert (expected != 0).sum() > 20
    for batch_size, held in ((512, 1 << 24), (3, 1), (1, 1)):
        monkeypatch.setattr(counterfactual, "_MAX_LOGITS", held)
        found = replacement_effect(policy, rollouts, graded, batch_size=batch_size, **IDS)
        assert torch.allclose(found, expected, atol=1e-6)


def test_padding_changes_nothing(policy, rollouts):
    wider = replace(
        rollouts,
        **{name: torch.nn.functional.pad(getattr(rollouts, name), (3, 0)) for name in ("prompt_ids", "prompt_mask")},
        **{
            name: torch.nn.functional.pad(getattr(rollouts, name), (0, 2))
            for name in ("completion_ids", "completion_mask")
        },
        step_index=None,
    )
    found = replacement_effect(policy, wider, graded, **IDS)
    assert torch.equal(found[:, :-2], replacement_effect(policy, rollouts, graded, **IDS))
    assert not found[:, -2:].any()


@pytest.mark.parametrize("ends", [[EOS], [EOS, 7]])
def test_the_runner_up_is_what_argsort_says(policy, rollouts, ends):
    """The likeliest, but for the token that stands there and the end of sequence."""
    found = runner_ups(policy, rollouts, eos_token_id=ends)
    for i, prompt, completion in listed(rollouts):
        for t, token in enumerate(completion):
            ranked = logits_after(policy, prompt + completion[:t]).argsort(descending=True).tolist()
            assert found[i, t] == next(v for v in ranked if v not in (token, *ends))
    assert not found[~rollouts.completion_mask].any()


def test_the_end_of_sequence_is_no_runner_up(policy, rollouts):
    first = runner_ups(policy, rollouts, eos_token_id=EOS)
    likely = int(first[0, 0])
    assert runner_ups(policy, rollouts, eos_token_id=likely)[0, 0] != likely


def test_a_token_whose_replacement_always_ruins_has_effect_one(policy, rollouts):
    """Or always repairs. What stands behind it does not matter."""
    part = rollouts.rows(slice(3, 5))
    third = part.completion_ids[:, 2].tolist()
    for samples in (0, 3):
        ruined = replacement_effect(policy, part, lambda i, ids: ids[2] == third[i], samples=samples, **IDS)
        repaired = replacement_effect(policy, part, lambda i, ids: ids[2] != third[i], samples=samples, **IDS)
        assert ruined[:, 2].tolist() == [1, 1]
        assert repaired[:, 2].tolist() == [-1, -1]
        assert not ruined[:, 3:].any()


def forgetful(seed: int = 0, tokens: int = 6):
    """A policy that gives the same known distribution after every prefix: all tokens look alike to it."""
    policy = tiny_policy(seed, vocab_size=tokens, tie_word_embeddings=False).double()
    with torch.no_grad():
        table = policy.get_input_embeddings().weight
        table.copy_(table[:1].expand_as(table))
    return policy, logits_after(policy, [2]).softmax(-1)


def test_sampled_effects_are_those_of_the_distribution():
    """Success is to end in time: the chance that none of the tokens that are left is the end of sequence is known."""
    policy, chances = forgetful()
    rollouts = make_rollouts((5,) * 40, (3,) * 40, (-1,) * 40)
    rollouts = replace(rollouts, completion_ids=rollouts.completion_ids % 4 + 2, prompt_ids=rollouts.prompt_ids % 6)
    end, budget, samples = 1, 8, 50
    assert 0.02 < chances[end] < 0.5
    found = replacement_effect(
        policy,
        rollouts,
        lambda row, ids: ids[-1] == end,
        samples=samples,
        max_new_tokens=budget,
        eos_token_id=end,
        pad_token_id=0,
    )
    for t in range(5):
        ended = 1 - (1 - chances[end]) ** (budget - t - 1)
        error = (ended * (1 - ended) / (40 * samples)) ** 0.5
        assert abs(-found[:, t].mean() - ended) < 4 * error


def test_seeds_reproduce_and_nothing_is_left_behind(rollouts):
    policy = tiny_lora_policy()
    first = replacement_effect(policy, rollouts, graded, samples=2, **IDS)
    policy.train()
    policy.generation_config.update(repetition_penalty=9.0, top_k=1)
    state = torch.get_rng_state()
    assert torch.equal(replacement_effect(policy, rollouts, graded, samples=2, **IDS), first)
    assert not torch.equal(replacement_effect(policy, rollouts, graded, samples=2, seed=1, **IDS), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in policy.modules())


def test_bad_input(policy, rollouts):
    for options, message in (
        ({"samples": -1}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 5}, "longest completion"),
    ):
        with pytest.raises(ValueError, match=message):
            replacement_effect(policy, rollouts, graded, **{**IDS, **options})
    with pytest.raises(ValueError, match="success of a completion"):
        replacement_effect(policy, rollouts, lambda row, ids: float("nan"), **IDS)
    small = make_rollouts((3,), (2,), (-1,), completion_ids=torch.ones(1, 3).long(), prompt_ids=torch.ones(1, 2).long())
    with pytest.raises(ValueError, match="no token but"):
        replacement_effect(tiny_policy(vocab_size=2), small, graded, max_new_tokens=3, eos_token_id=0, pad_token_id=0)
