"""A trace row is the credit of its own completion, and the labels of its own text."""

from random import Random

import pytest
import torch

import tokencredit as tc
from tokencredit.testbed import heads as testbed_heads
from tokencredit.testbed import traces
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.tasks import label_tokens, task
from tokencredit.testbed.training import Budget, train


@pytest.fixture
def problems():
    return [task("gather").parse({"prompt": f"Q:a={i}+1,b=2*{i}?b,a"}) for i in range(2, 5)]


def spaced_policy():
    """A random policy that closes its reasoning now and then."""
    policy, tokenizer = build_policy(PolicySize(width=32, layers=2, heads=2, feed_forward=32)), build_tokenizer()
    with torch.no_grad():
        policy.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("</think>")] *= 4
    return policy, tokenizer


def test_rows_match_assign_and_label(problems, monkeypatch):
    policy, tokenizer = spaced_policy()
    gather, m, rng = task("gather"), tc.method("random", q=0.3), Random(0)
    asked = [p for p in problems for _ in range(4)]
    written = [gather.teach(p, rng) for p in asked]  # a random policy writes nothing that has labels
    ids = tokenizer([text + "<eos>" for text in written], padding=True, padding_side="right", return_tensors="pt")
    prompts = tokenizer([p.prompt for p in asked], padding=True, return_tensors="pt")
    rollouts = tc.Rollouts(prompts.input_ids, prompts.attention_mask, ids.input_ids, ids.attention_mask)
    monkeypatch.setattr(traces, "sample", lambda *args, **kwargs: rollouts)

    rows = traces.collect_traces(policy, tokenizer, gather, {"drawn": m}, problems, group_size=4)
    correct = torch.tensor([float(gather.verify(p, text)) for p, text in zip(asked, written, strict=True)])
    group = torch.arange(len(asked)) // 4
    credit = tc.assign(policy, rollouts, m, tc.outcome.grpo(correct, group))
    assert [row["prompt"] for row in rows] == [p.prompt for p in asked]
    assert [row["group"] for row in rows] == group.tolist()
    assert [row["reward"] for row in rows] == correct.tolist()
    for i, row in enumerate(rows):
        n = int(rollouts.lengths[i])
        assert row["credit"]["drawn"]["weights"] == pytest.approx(credit.weights[i, :n].tolist(), rel=1e-3)
        assert row["credit"]["drawn"]["advantages"] == pytest.approx(credit.advantages[i, :n].tolist(), rel=1e-3)
        assert "".join(row["tokens"]) == written[i] + "<eos>"
        expected = label_tokens(gather.label(asked[i], written[i] + "<eos>"), row["tokens"])
        for name in ("step_index", "essential", "first_error", "answer_start"):
            assert row[name] == getattr(expected, name)
    assert len({row["first_error"] for row in rows}) > 1


def test_key_focus_heads_come_from_correct_completions(problems, monkeypatch):
    policy, tokenizer = spaced_policy()
    gather, rng = task("gather"), Random(1)
    asked = [gather.problem(rng) for _ in range(60)]
    written = [gather.teach(p, rng) for p in asked]
    ids = tokenizer([text + "<eos>" for text in written], padding=True, padding_side="right", return_tensors="pt")
    prompts = tokenizer([p.prompt for p in asked], padding=True, return_tensors="pt")
    rollouts = tc.Rollouts(prompts.input_ids, prompts.attention_mask, ids.input_ids, ids.attention_mask)
    monkeypatch.setattr(testbed_heads, "sample", lambda *args, **kwargs: rollouts)
    labelled = testbed_heads.labelled_completions(policy, tokenizer, gather, asked)
    labels = [gather.label(p, text) for p, text in zip(asked, written, strict=True)]
    assert (labelled.rollouts.answer_start >= 0).tolist() == [found.correct for found in labels]
    repeated = 0
    for i, found in enumerate(labels):
        steps = [written[i][s.start : s.end].replace("wait", "") for s in found.steps]
        once = [steps.count(step) == 1 for step in steps]
        repeated += once.count(False)
        assert labelled.mask[i, : len(steps)].tolist() == once
        assert labelled.essential[i, : len(steps)].tolist() == [s.essential for s in found.steps]
        assert not labelled.mask[i, len(steps) :].any()
    assert repeated
    assert len(tc.rank_heads(policy, *labelled)) == 4


def test_training_moves_a_copy_by_the_method_asked_for(problems, tmp_path):
    policy, tokenizer = spaced_policy()
    start = [p.clone() for p in policy.parameters()]

    class Lenient(type(task("gather"))):
        def verify(self, problem, completion):
            return len(completion) % 2 == 0

    budget = Budget(steps=1, prompts=2, group_size=4, updates_per_step=2, learning_rate=1e-2)
    trained = train(policy, tokenizer, Lenient(), tc.method("position"), problems, problems, budget, tmp_path)
    assert trained.method == "position"
    assert all(torch.equal(a, b) for a, b in zip(start, policy.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(start, trained.policy.parameters(), strict=True)]
    assert any(moved)
