"""Tokens drawn with random numbers of each completion's own."""

from __future__ import annotations

import math

import pytest
import torch

from tokencredit.sampling import drawing_with, random_numbers, taking_likeliest


def test_tokens_are_drawn_as_often_as_their_probability_says():
    """With evenly spaced numbers the counts are exact, except for one at each boundary."""
    count = 4000
    logits = torch.tensor([1.0, -float("inf"), 0.3, 2.0, -1.5])
    numbers = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    ids = torch.zeros(count, 1, dtype=torch.long)
    for temperature, top_p, kept in ((1.0, 1.0, 5), (0.5, 1.0, 5), (1.0, 0.8, 2)):
        scores = drawing_with(numbers, temperature, top_p)(ids, logits.expand(count, -1).clone())
        expected = (logits / temperature).softmax(-1)
        expected = expected * (expected >= expected.sort(descending=True).values[kept - 1])
        drawn = scores.argmax(-1).bincount(minlength=5) / count
        assert (drawn - expected / expected.sum()).abs().max() <= 1.5 / count
        assert (scores.isfinite().sum(-1) == 1).all()


def test_the_largest_number_draws_a_token_that_is_possible():
    numbers = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    scores = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]]).repeat(2, 1)
    drawn = drawing_with(numbers, 1.0, 1.0)(torch.zeros(2, 1, dtype=torch.long), scores)
    assert drawn.argmax(-1).tolist() == [2, 1]


def test_the_numbers_are_those_of_seed_problem_and_sample():
    numbers = random_numbers([0, 0, 1, 1], 2, seed=3, length=6)
    assert torch.equal(numbers[2:], random_numbers([1, 1], 2, seed=3, length=6))
    assert torch.equal(numbers[:, :4], random_numbers([0, 0, 1, 1], 2, seed=3, length=4))
    rows = [*numbers, *random_numbers([0], 1, seed=4, length=6)]
    assert len({tuple(row.tolist()) for row in rows}) == 5
    assert ((numbers >= 0) & (numbers < 1)).all()


@pytest.mark.parametrize("bad", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_without_a_distribution_are_refused(bad):
    scores = torch.tensor([[0.0, 1.0, -math.inf], bad])
    ids, numbers = torch.zeros(2, 1, dtype=torch.long), torch.full((2, 1), 0.5, dtype=torch.float64)
    for processors in (drawing_with(numbers, 1.0, 1.0), taking_likeliest()):
        with pytest.raises(ValueError, match="logits are NaN or infinite"):
            processors(ids, scores)
    assert torch.equal(taking_likeliest()(ids[:1], scores[:1]), scores[:1])
