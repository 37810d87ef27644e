import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokencredit as tc

BATCHES = st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(0, 3)), min_size=1, max_size=12)


def naive(rewards, group, formula):
    out = []
    for r, g in zip(rewards, group, strict=True):
        mates = [x for x, h in zip(rewards, group, strict=True) if h == g]
        out.append(formula(r, mates))
    return torch.tensor(out)


def naive_grpo(r, mates):
    return 0.0 if len(mates) == 1 else (r - statistics.fmean(mates)) / (statistics.stdev(mates) + 1e-4)


def naive_rloo(r, mates):
    return r if len(mates) == 1 else r - (sum(mates) - r) / (len(mates) - 1)


@given(BATCHES)
@pytest.mark.filterwarnings("ignore:rloo")
def test_they_equal_the_formulas(batch):
    rewards, group = (list(x) for x in zip(*batch, strict=True))
    args = torch.tensor(rewards), torch.tensor(group)
    assert torch.allclose(tc.outcome.grpo(*args), naive(rewards, group, naive_grpo), atol=1e-4)
    mean = naive(rewards, group, lambda r, mates: r - statistics.fmean(mates))
    assert torch.allclose(tc.outcome.dr_grpo(*args), mean, atol=1e-5)
    assert torch.allclose(tc.outcome.rloo(*args), naive(rewards, group, naive_rloo), atol=1e-5)


def test_grpo_equals_trl():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.3, 0.2])
    grouped = rewards.view(2, 4)
    expected = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(tc.outcome.grpo(rewards, torch.arange(8) // 4), expected.flatten(), atol=1e-6)


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((7,), 0.1)
    assert tc.outcome.grpo(rewards, torch.zeros(7).long()).tolist() == [0.0] * 7


def test_a_group_of_one():
    rewards, group = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5, 9, 9])
    assert tc.outcome.grpo(rewards, group)[0] == 0
    assert tc.outcome.dr_grpo(rewards, group)[0] == 0
    with pytest.warns(UserWarning, match="alone in their group"):
        assert tc.outcome.rloo(rewards, group)[0] == 3


@pytest.mark.parametrize("f", [tc.outcome.grpo, tc.outcome.dr_grpo, tc.outcome.rloo])
def test_bad_input(f):
    with pytest.raises(ValueError, match="finite"):
        f(torch.tensor([1.0, float("nan")]), torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"\(B,\)"):
        f(torch.ones(2), torch.zeros(3).long())
