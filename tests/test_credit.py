"""What every method's credit is made with: arguments that are not what is documented are refused."""

from __future__ import annotations

import pytest
import torch
from conftest import make_rollouts

from tokencredit.credit import BUILT_IN, additive, multiplicative, salience_weights
from tokencredit.diagnostics import concentration

ROLLOUTS = make_rollouts()
SHAPE = tuple(ROLLOUTS.completion_mask.shape)
OUTCOME = torch.tensor([1.0, -0.5, 0.0, 2.0])


def weights(**at):
    """Valid weights, with some of them changed: row_token=value."""
    values = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    for place, value in at.items():
        row, token = map(int, place.removeprefix("at_").split("_"))
        values[row, token] = value
    return values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": weights(at_1_2=-0.25)}, "weights must not be negative: completion 1, token 2 has -0.25"),
        ({"weights": weights(at_2_0=float("nan"))}, "not finite.* completion 2, token 0 has nan"),
        ({"weights": weights(at_2_0=float("inf"))}, "not finite.* completion 2, token 0 has nan"),  # A is 0 there
        ({"weights": torch.ones(4)}, r"weights must be \(4, 12\), .* got shape \(4,\)"),
        ({"weights": torch.ones(4, 1)}, r"weights must be \(4, 12\), .* got shape \(4, 1\)"),
        ({"weights": 1.0}, r"weights must be \(4, 12\), .* got float"),
        ({"advantages": torch.ones(4, 12)}, r"advantages must be \(4,\), one per completion; got shape \(4, 12\)"),
        ({"advantages": [1.0] * 4}, r"advantages must be \(4,\), one per completion; got list"),
        ({"own": torch.ones(3)}, r"diagnostic own must be \(4,\), one number per completion; got shape \(3,\)"),
        ({"own": 0.5}, r"diagnostic own must be \(4,\), one number per completion; got float"),
        ({"own": torch.tensor([0, 1, float("nan"), 0])}, "diagnostics must be finite; NaN or infinite: own"),
        ({"gini": torch.ones(4)}, "gini is a diagnostic of every method"),
        ({"no_answer": torch.ones(4)}, "no_answer is a diagnostic of every method"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    taken = {"advantages": OUTCOME, "weights": weights(), **arguments}
    with pytest.raises(ValueError, match=message):
        multiplicative(ROLLOUTS, **taken)


def test_a_bonus_may_be_negative_but_has_the_shape_of_the_tokens():
    bonus = weights() - 0.5
    credit = additive(ROLLOUTS, OUTCOME, bonus)
    assert torch.equal(credit.advantages, torch.where(ROLLOUTS.completion_mask, OUTCOME[:, None] + bonus, 0))
    with pytest.raises(ValueError, match=r"bonus must be \(4, 12\)"):
        additive(ROLLOUTS, OUTCOME, torch.ones(4, 1))
    with pytest.raises(ValueError, match="not finite"):
        additive(ROLLOUTS, OUTCOME, weights(at_0_0=float("nan")))


def test_what_stands_on_padding_is_ignored():
    padding = ~ROLLOUTS.completion_mask
    for junk in (-1.0, float("nan"), float("inf")):
        credit = multiplicative(ROLLOUTS, OUTCOME, weights().masked_fill(padding, junk), own=torch.ones(4))
        assert torch.equal(credit.weights, weights().masked_fill(padding, 0))
        assert torch.equal(credit.advantages, OUTCOME[:, None] * credit.weights)
        salience = weights().masked_fill(padding, junk)
        found = salience_weights(salience, ROLLOUTS.completion_mask, 1e-6)
        assert torch.equal(found, salience_weights(weights(), ROLLOUTS.completion_mask, 1e-6))


def test_valid_salience_gives_the_weights_of_the_formula_bit_for_bit():
    mask, eps = ROLLOUTS.completion_mask, 1e-6
    raised = (weights().double() + eps) * mask
    assert torch.equal(
        salience_weights(weights(), mask, eps),
        (mask.sum(1, keepdim=True) * raised / raised.sum(1, keepdim=True)).float(),
    )


@pytest.mark.parametrize(
    ("salience", "message"),
    [
        (weights(at_1_2=-0.25), "salience must be finite and not negative: completion 1, token 2 has -0.25"),
        (weights(at_0_3=float("nan")), "salience must be finite and not negative: completion 0, token 3 has nan"),
        (weights(at_0_3=float("inf")), "salience must be finite and not negative: completion 0, token 3 has inf"),
        (torch.ones(4, 1), r"salience must have the mask's shape, \(4, 12\); got \(4, 1\)"),
    ],
)
def test_salience_that_is_none_is_refused(salience, message):
    with pytest.raises(ValueError, match=message):
        salience_weights(salience, ROLLOUTS.completion_mask, 1e-6)


def test_the_names_that_methods_may_not_take_are_those_of_every_method():
    credit = multiplicative(ROLLOUTS, OUTCOME, weights())
    assert tuple(credit.diagnostics) == BUILT_IN
    assert set(concentration(weights(), ROLLOUTS.completion_mask)) < set(BUILT_IN)
