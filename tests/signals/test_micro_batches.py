"""A batch is read in passes of completions of similar length, and the signals are those of the whole batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy, tiny_policy, tiny_reward_model
from torch.nn.functional import pad

import tokencredit as tc
from tokencredit.signals import DistanceNeed, RewardNeed
from tokencredit.signals.micro_batches import trimmed

LENGTHS, PROMPTS = (20, 3, 0, 11, 4, 12), (2, 9, 5, 3, 2, 4)
ROLLOUTS = make_rollouts(LENGTHS, PROMPTS, (15, 2, -1, 8, -1, 0))
NEED, PAIRS = DistanceNeed("all", 3, (1, 4)), DistanceNeed(heads=((3, 1), (0, 2)), window=3, horizon=(1, 4))
REWARD = RewardNeed(null="zero", backward="per_step")
NEEDS = tc.Needs(
    answer_attention=frozenset({0, -1}),
    answer_heads=frozenset({(2, 1)}),
    distances=frozenset({NEED, PAIRS}),
    logits=True,
    reference_logprob=True,
    adapter_residual=True,
    reward=frozenset({REWARD}),
)


def values_of(signals):
    """Every tensor of some signals, by name."""
    found = {name: getattr(signals, name) for name in ("logprob", "entropy", "reference_logprob", "adapter_residual")}
    found |= {f"answer {layer}": values for layer, values in signals.answer_attention.items()}
    found |= {f"reach {layer}": values for layer, values in signals.answer_reach.items()}
    found |= {f"head {pair}": values for pair, values in signals.answer_heads.items()}
    for held in (signals.distances, signals.reward):
        found |= {f"{need} {name}": values for need, each in held.items() for name, values in vars(each).items()}
    return found


def shapes_of_passes(policy, rollouts, batch_size, needs=None):
    shapes = []
    hook = policy.get_input_embeddings().register_forward_hook(
        lambda m, given, out: shapes.append(tuple(out.shape[:2]))
    )
    tc.collect(policy, rollouts, needs or tc.Needs(logits=True), batch_size=batch_size)
    hook.remove()
    return shapes


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_all_signals_are_those_of_one_pass_in_the_order_and_on_the_grid_of_the_batch(batch_size, process):
    policy, scorer = tiny_lora_policy(), tiny_reward_model(process=process)
    whole = values_of(tc.collect(policy, ROLLOUTS, NEEDS, scorer))
    parts = values_of(tc.collect(policy, ROLLOUTS, NEEDS, scorer, batch_size=batch_size))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_a_pass_is_as_wide_as_its_own_longest_prompt_and_completion():
    policy = tiny_policy()
    assert shapes_of_passes(policy, ROLLOUTS, None) == [(6, 9 + 20)]
    # Completions of 0 and 3 tokens behind prompts of 5 and 9, of 4 and 11 behind 2 and 3, of 12 and 20 behind 4 and 2.
    assert shapes_of_passes(policy, ROLLOUTS, 2) == [(2, 9 + 3), (2, 3 + 11), (2, 4 + 20)]
    assert shapes_of_passes(policy, ROLLOUTS, 4) == [(4, 9 + 11), (2, 4 + 20)]
    assert sorted(shapes_of_passes(policy, ROLLOUTS, 1)) == [(1, 6), (1, 6), (1, 12), (1, 14), (1, 16), (1, 22)]


def test_columns_that_nobody_uses_are_not_computed():
    """As after the longest completions of a batch have been left out; the signals stay on the grid that was given."""
    wide = replace(
        ROLLOUTS,
        prompt_ids=pad(ROLLOUTS.prompt_ids, (30, 0), value=7),
        prompt_mask=pad(ROLLOUTS.prompt_mask, (30, 0)),
        completion_ids=pad(ROLLOUTS.completion_ids, (0, 50), value=7),
        completion_mask=pad(ROLLOUTS.completion_mask, (0, 50)),
        step_index=pad(ROLLOUTS.step_index, (0, 50), value=-1),
    )
    policy, scorer = tiny_lora_policy(), tiny_reward_model()
    assert shapes_of_passes(policy, wide, None) == [(6, 29)]
    narrow, found = (values_of(tc.collect(policy, rollouts, NEEDS, scorer)) for rollouts in (ROLLOUTS, wide))
    for name, values in narrow.items():
        if name.endswith("look_back"):
            assert torch.equal(found[name], values)
            continue
        assert found[name].shape[-1] == 70
        assert torch.equal(found[name][..., :20], values)
        assert (found[name][..., 20:] == (-1 if name.endswith("segment") else 0)).all()


def test_completions_of_equal_length_are_read_as_they_come():
    """Nothing is sorted or cut, so that even rounding is that of the slices of the batch."""
    r = make_rollouts((8,) * 5, (3,) * 5, (6,) * 5)
    policy, needs = tiny_policy(), tc.Needs(answer_attention=frozenset({3}), logits=True)
    parts = tc.collect(policy, r, needs, batch_size=2)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        alone = tc.collect(policy, r.rows(rows), needs)
        assert torch.equal(parts.logprob[rows], alone.logprob)
        assert torch.equal(parts.answer_attention[3][rows], alone.answer_attention[3])


@pytest.mark.parametrize("prompts", [(1, 1), (3, 2)])
def test_trimming_keeps_a_column_and_every_field(prompts):
    r = make_rollouts((0, 0), prompts, (-1, -1))
    assert trimmed(r).completion_ids.shape == (2, 1)
    # Prompt and completion of one width: a field is cut on the side that it belongs to.
    r = make_rollouts((4, 2), (4, 2), (3, 1)).rows(torch.tensor([1]))
    cut = trimmed(r)
    assert cut.prompt_ids.tolist() == [r.prompt_ids[0, 2:].tolist()]
    assert cut.completion_ids.tolist() == [r.completion_ids[0, :2].tolist()]
    assert cut.step_index.tolist() == [r.step_index[0, :2].tolist()]
    assert cut.rewards is not None
    assert torch.equal(cut.answer_mask[0], r.answer_mask[0, :2])
