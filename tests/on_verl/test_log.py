"""What is logged of credit is that of the completions that carry loss."""

from __future__ import annotations

import pytest
import torch
from conftest import make_rollouts

import tokencredit as tc
from tokencredit.trainers.verl.log import carrying_loss, diagnostic_means, new_notices

ROLLOUTS = make_rollouts((8, 8, 8, 8, 0, 8), (3,) * 6, (5, -1, 5, 5, -1, 4))
OUTCOME = torch.tensor([1.0, -1.0, 0.0, 2.0, 1.0, -1.0])
COUNTED = ROLLOUTS.completion_mask & (torch.arange(6) != 3)[:, None]
"""verl has masked out all tokens of completion 3."""
REAL = torch.arange(6) != 5
CREDIT = tc.method("position")(ROLLOUTS, OUTCOME, tc.Signals())


def test_completions_without_loss_do_not_dilute():
    carrying = carrying_loss(CREDIT, OUTCOME, COUNTED)
    assert carrying.tolist() == [True, True, False, False, False, True]
    means = diagnostic_means(CREDIT, carrying, REAL)
    assert means["with_loss"] == pytest.approx(2 / 5)
    for name, values in CREDIT.diagnostics.items():
        assert means[name] == pytest.approx(values[:2].mean().item())
    assert means["gini"] != pytest.approx(CREDIT.diagnostics["gini"].mean().item())


def test_an_advantage_of_a_token_is_loss_too():
    """Additive credit has some where the outcome advantage is 0."""
    rollouts = make_rollouts((3, 3), (2, 2), (-1, -1))
    credit = tc.credit.additive(rollouts, torch.zeros(2), torch.tensor([[0.0, 0, 1], [0, 0, 0]]))
    assert carrying_loss(credit, torch.zeros(2), rollouts.completion_mask).tolist() == [True, False]


def test_without_any_loss_there_is_the_share_alone():
    nobody = torch.zeros(6, dtype=torch.bool)
    assert diagnostic_means(CREDIT, nobody, REAL) == {"with_loss": 0.0}
    assert diagnostic_means(CREDIT, nobody, nobody) == {"with_loss": 0.0}


def test_a_reason_is_told_once():
    method, known = tc.method("position"), set()
    rows = torch.tensor([True, True, False, False, False, False])
    (sentence,) = new_notices(method, CREDIT, rows, known)
    assert sentence.startswith("position leaves 1 of 2 completions uniform: no answer span was found")
    assert new_notices(method, CREDIT, rows | REAL, known) == []
