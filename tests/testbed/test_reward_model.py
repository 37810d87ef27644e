"""The testbed's process reward model: its labels, its training, its score."""

from __future__ import annotations

import pytest
import torch

from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.reward_model import (
    UNLABELLED,
    RewardTraining,
    _Lessons,
    process_reward_model,
    step_quality,
)
from tokencredit.testbed.tasks import task
from tokencredit.testbed.warmup import WarmUp

TOKENIZER = build_tokenizer()
GATHER = task("gather")
PROBLEM = GATHER.parse({"prompt": "Q:a=6+1,b=2+3,c=2+4?b,c"})


class Teacher:
    """The gather task with a teacher that says what it is told."""

    def __init__(self, text):
        self.teach = lambda problem, rng: text
        self.label = GATHER.label


def labelled(text):
    """(token, label) of the labelled tokens of a completion."""
    lesson = _Lessons(Teacher(text), [PROBLEM], TOKENIZER, 0)[0]
    pieces = [TOKENIZER.decode([i]) for i in lesson["input_ids"]]
    return [(t, label) for t, label in enumerate(lesson["labels"]) if label != UNLABELLED], pieces


def test_steps_are_right_up_to_the_first_error_and_unlabelled_behind_it():
    found, pieces = labelled("<think>b=2+3=5;a=6+1=0;c=2+4=9;a=6+1=7;</think>\\boxed{b=5,c=9}")
    assert [label for _, label in found] == [1, 1, 0]
    assert all(pieces[t] == ";" for t, _ in found)
    assert "".join(pieces[: found[2][0] + 1]).endswith("c=2+4=9;")
    right, _ = labelled("<think>b=2+3=5;c=2+4=6;</think>\\boxed{b=5,c=6}")
    assert [label for _, label in right] == [1, 1]


def test_an_error_outside_the_steps_blames_none():
    found, _ = labelled("<think>b=2+3=5;c=2+4=6;</think>\\boxed{b=5,c=7}")
    assert [label for _, label in found] == [1, 1]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path))
    warm_up = WarmUp(size=PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48))
    policy, steps = build_policy(warm_up.size), []

    def train():
        recipe = RewardTraining(steps=3, batch_size=4)
        return process_reward_model(GATHER, warm_up, policy, TOKENIZER, recipe, steps.append)

    return train, policy, steps


def test_training_starts_from_the_policys_body_and_is_cached(trained):
    train, policy, steps = trained
    state = torch.get_rng_state()
    first = train()
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [1, 2, 3]
    moved = (first.model.embed_tokens.weight - policy.model.embed_tokens.weight).abs().max()
    assert 0 < moved < 0.1
    again = train()
    assert steps == [1, 2, 3]
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_quality_is_the_share_of_pairs_in_the_right_order(trained):
    train, *_ = trained
    model, problems = train(), generate_problems(GATHER, 40, held_out=True, seed=0)
    quality = step_quality(model, TOKENIZER, GATHER, problems)
    scores = {0: [], 1: []}
    lessons = _Lessons(GATHER, problems, TOKENIZER, 1)
    for i in range(len(problems)):
        with torch.no_grad():
            score = model(torch.tensor([lessons[i]["input_ids"]])).logits[0].softmax(-1)[:, 1]
        for value, label in zip(score.tolist(), lessons[i]["labels"], strict=True):
            if label != UNLABELLED:
                scores[label].append(value)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[1] for b in scores[0]]
    assert quality.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    assert (quality.right, quality.wrong) == (len(scores[1]), len(scores[0]))
    with pytest.raises(ValueError, match="both are needed"):
        step_quality(model, TOKENIZER, Teacher("<think>b=2+3=5;c=2+4=6;</think>\\boxed{b=5,c=6}"), [PROBLEM])
