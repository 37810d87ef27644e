"""What an audit of the testbed judges by is what the task says, token for token."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from tokencredit import Rollouts
from tokencredit.audit import audit, signs
from tokencredit.audit.controls import oracle
from tokencredit.labelled import padded_right
from tokencredit.padding import padded_left
from tokencredit.testbed import audited as module
from tokencredit.testbed.audit import _counterfactual
from tokencredit.testbed.audited import estimated, result_tokens, sample_audited
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import task
from tokencredit.testbed.tasks.base import EOS

TOKENIZER = build_tokenizer()
GATHER = task("gather")


@pytest.fixture
def taught(monkeypatch):
    """The teacher's completions, two a problem, in place of a policy's."""
    problems = generate_problems(GATHER, 40, held_out=True, seed=0)
    texts = [GATHER.teach(p, Random(f"{p.prompt}{i}")) + EOS for p in problems for i in range(2)]

    def sample(policy, tokenizer, prompts, **_):
        prompt_ids, prompt_mask = padded_left([tokenizer(p).input_ids for p in prompts], 0)
        ids = [tokenizer(text).input_ids for text in texts]
        mask = padded_right([[True] * len(row) for row in ids], False)
        return Rollouts(prompt_ids, prompt_mask, padded_right(ids, 0), mask)

    monkeypatch.setattr(module, "sample", sample)
    return texts, sample_audited(torch.nn.Linear(1, 1), TOKENIZER, GATHER, problems, group_size=2)


def test_truth_is_what_the_task_says(taught):
    texts, audited = taught
    truth, rollouts = audited.truth, audited.rollouts
    assert 0 < truth.correct.sum() < len(texts)
    for i, (problem, text) in enumerate(zip(audited.problems, texts, strict=True)):
        labels = GATHER.label(problem, text)
        assert bool(truth.correct[i]) == labels.correct == GATHER.verify(problem, text.removesuffix(EOS))
        assert truth.essential[i, : len(labels.steps)].tolist() == [s.essential for s in labels.steps]
        for k, step in enumerate(labels.steps):
            inside = rollouts.completion_ids[i][truth.step_index[i] == k]
            assert TOKENIZER.decode(inside) == text[step.start : step.end]
        assert truth.error[i].sum() == (not labels.correct)
        if not labels.correct:
            at = int(truth.error[i].nonzero())
            assert len(TOKENIZER.decode(rollouts.completion_ids[i, :at])) <= labels.first_error
    assert rollouts.group.tolist() == [i // 2 for i in range(len(texts))]


def test_credit_by_the_truth_is_perfect(taught):
    _, audited = taught
    credit = signs(audited.truth)[:, None] * oracle(audited.rollouts.completion_mask, audited.truth)
    scores = audit({"c": credit}, audited.rollouts, audited.truth).row("c").scores
    for measure in ("essential_auroc", "step_ranking", "error_auroc", "error_auroc_results", "error_hit_1"):
        assert scores[measure].estimate.value == pytest.approx(1)
        assert scores[measure].completions >= 10


def test_result_tokens():
    pieces = ["<think>", "b=", "6", "-", "9", "=", "3", ";", "wait", "a=", "0", ":", "1", "+", "0", "=", "1", ";", "c="]
    index = [-1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert [t for t, is_result in enumerate(result_tokens(pieces, index)) if is_result] == [6, 16]


def test_only_some_completions_are_estimated(taught):
    _, audited = taught
    policy = build_policy(PolicySize(width=32, layers=1, heads=2, kv_heads=1, feed_forward=48))
    found, (chosen, estimate) = estimated(audited, policy, TOKENIZER, GATHER, completions=2, samples=2)
    assert len(estimate.mask) == len(chosen) == 4
    assert not found.truth.effect[[i for i in range(len(audited.problems)) if i not in chosen.tolist()]].any()
    with_values = (found.truth.advantage != 0).any(1)
    # An untrained policy goes wrong from any prefix: only what a correct completion ends with is worth anything.
    assert with_values.sum() == 2
    assert found.truth.correct[with_values].all()
    rows = with_values.nonzero().flatten()
    torch.testing.assert_close(found.truth.advantage[rows].sum(1), torch.ones(2))
    assert (found.truth.effect[rows] == 1).any()


def test_hops_are_told_apart(monkeypatch):
    """A step that only another step rests on is essential, and the answer does not read it."""
    two_hop = task("two_hop")
    problem = two_hop.parse({"prompt": "Q:a=3+4,b=a+2,c=5*1,d=c+1?b"})
    text = "<think>c=5*1=5;a=3+4=7;d=c+1:5+1=6;b=a+2:7+2=9;</think>\\boxed{b=9}" + EOS

    def sample(policy, tokenizer, prompts, **_):
        prompt_ids, prompt_mask = padded_left([tokenizer(p).input_ids for p in prompts], 0)
        ids = torch.tensor([tokenizer(text).input_ids])
        return Rollouts(prompt_ids, prompt_mask, ids, torch.ones_like(ids))

    monkeypatch.setattr(module, "sample", sample)
    audited = sample_audited(torch.nn.Linear(1, 1), TOKENIZER, two_hop, [problem], group_size=1)
    assert audited.truth.essential[0, :4].tolist() == [False, True, False, True]
    assert audited.truth.indirect[0, :4].tolist() == [False, True, False, False]
    only_read = torch.where(audited.truth.step_index == 3, 1.0, 0.0)
    scores = audit({"c": only_read}, audited.rollouts, audited.truth).row("c").scores
    assert scores["step_ranking_direct"].estimate.value == 1
    assert scores["step_ranking_indirect"].estimate.value == 0.5
    both = torch.where(audited.truth.step_index % 2 == 1, 1.0, 0.0)
    row = _counterfactual(audited.rollouts, replace(audited.truth, effect=both), seed=0)
    assert row["kind"] == "control"
    assert "replacement" not in row["scores"], "it would be compared with itself"
    for measure in ("step_ranking_direct", "step_ranking_indirect", "essential_auroc"):
        assert row["scores"][measure]["estimate"]["value"] == 1
