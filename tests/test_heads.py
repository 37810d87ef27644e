import pytest
import torch
from conftest import make_rollouts, tiny_policy

import tokencredit as tc

ROLLOUTS = make_rollouts((14, 14, 11, 6), (6, 3, 5, 4), (9, 12, 8, -1))
ESSENTIAL = torch.tensor(
    [[True, False, True, False], [False, True, False, True], [True, True, False, False], [True, False, True, False]]
)


def test_it_equals_counting_pairs():
    policy = tiny_policy()
    attention = tc.collect(policy, ROLLOUTS, tc.Needs(answer_attention=frozenset(range(4)))).answer_attention
    expected = {}
    for layer in range(4):
        for head in range(4):
            outcomes = []
            for i in range(3):  # the fourth has no answer
                steps = ROLLOUTS.step_index[i]
                score = {k: attention[layer][i, head][steps == k].mean().item() for k in set(steps.tolist()) - {-1}}
                for a in score:
                    for b in score:
                        if ESSENTIAL[i, a] and not ESSENTIAL[i, b]:
                            outcomes.append(1.0 if score[a] > score[b] else 0.5 if score[a] == score[b] else 0.0)
            expected[layer, head] = (sum(outcomes) / len(outcomes), len(outcomes))
    ranks = tc.rank_heads(policy, ROLLOUTS, ESSENTIAL)
    assert {(r.layer, r.head): (pytest.approx(r.sra), r.pairs) for r in ranks} == expected
    assert [r.sra for r in ranks] == sorted((r.sra for r in ranks), reverse=True)


def test_a_head_that_knows_scores_one_and_its_opposite_zero():
    """Labels made from a head's own attention."""
    policy = tiny_policy()
    attention = tc.collect(policy, ROLLOUTS, tc.Needs(answer_attention=frozenset({2}))).answer_attention[2][:, 1]
    made = torch.zeros_like(ESSENTIAL)
    for i in range(3):
        steps = ROLLOUTS.step_index[i]
        score = {k: attention[i][steps == k].mean().item() for k in set(steps.tolist()) - {-1}}
        made[i, max(score, key=score.get)] = True
    by_head = {(r.layer, r.head): r.sra for r in tc.rank_heads(policy, ROLLOUTS, made)}
    assert by_head[2, 1] == 1.0
    assert {(r.layer, r.head): r.sra for r in tc.rank_heads(policy, ROLLOUTS, ~made)}[2, 1] == 0.0


def test_masked_steps_do_not_count():
    mask = torch.ones_like(ESSENTIAL)
    mask[0] = False
    masked = tc.rank_heads(tiny_policy(), ROLLOUTS, ESSENTIAL, mask)
    assert masked[0].pairs < tc.rank_heads(tiny_policy(), ROLLOUTS, ESSENTIAL)[0].pairs


def test_bad_input():
    policy = tiny_policy()
    with pytest.raises(ValueError, match="mark_spans"):
        tc.rank_heads(policy, make_rollouts(step_index=None), ESSENTIAL)
    with pytest.raises(ValueError, match="K >= 4"):
        tc.rank_heads(policy, ROLLOUTS, ESSENTIAL[:, :2])
    with pytest.raises(ValueError, match="both an essential and a redundant"):
        tc.rank_heads(policy, ROLLOUTS, torch.ones_like(ESSENTIAL))
