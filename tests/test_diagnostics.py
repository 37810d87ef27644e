import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokencredit import diagnostics as diag

WEIGHTS = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3)


def row(weights, padding=3):
    mask = torch.tensor([[True] * len(weights) + [False] * padding])
    return torch.tensor([[*weights, *([7.0] * padding)]]), mask


@given(WEIGHTS)
def test_gini_is_the_mean_difference(weights):
    n, mean = len(weights), sum(weights) / len(weights)
    naive = sum(abs(a - b) for a in weights for b in weights) / (2 * n * n * mean)
    assert diag.gini(*row(weights)).item() == pytest.approx(naive, abs=1e-5)


@given(WEIGHTS)
def test_effective_ratio_is_the_formula(weights):
    naive = 1 / (len(weights) * sum((w / sum(weights)) ** 2 for w in weights))
    assert diag.effective_ratio(*row(weights)).item() == pytest.approx(naive, rel=1e-5)


def test_the_extremes():
    assert diag.gini(*row([2.0] * 5)).item() == pytest.approx(0)
    assert diag.effective_ratio(*row([2.0] * 5)).item() == pytest.approx(1)
    assert diag.gini(*row([0.0, 0, 0, 4])).item() == pytest.approx(3 / 4)
    assert diag.effective_ratio(*row([0.0, 0, 0, 4])).item() == pytest.approx(1 / 4)


def test_nothing_to_share_counts_as_uniform():
    zero, none = row([0.0, 0.0]), (torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    for weights, mask in (zero, none):
        assert diag.gini(weights, mask).item() == 0
        assert diag.effective_ratio(weights, mask).item() == 1


def test_flags():
    flags = diag.concentration(*row([1.0] * 30))
    assert (flags["broadcast"].item(), flags["sparse"].item()) == (1, 0)
    flags = diag.concentration(*row([1.0] + [0.0] * 30))
    assert (flags["broadcast"].item(), flags["sparse"].item()) == (0, 1)


def test_sign_flip_counts_opposite_tokens_only():
    advantages = torch.tensor([[1.0, -1.0, 0.0, -5.0], [-1.0, -1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert diag.sign_flip(advantages, torch.tensor([2.0, -1.0]), mask).tolist() == pytest.approx([1 / 3, 1 / 2])
