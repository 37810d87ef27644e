"""What is made on the CPU is moved to the policy's device. The meta device stands in for a GPU, as far as the first
pass of the policy, whose inputs are looked at: the meta device holds no values to go on with."""

from __future__ import annotations

from random import Random

import pytest
import torch

from tokencredit.analysis.decoding import continuations
from tokencredit.heads import rank_heads
from tokencredit.testbed.evaluate import evaluate, sample
from tokencredit.testbed.lean import Updates
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.reward_model import _fresh, step_quality
from tokencredit.testbed.tasks import task

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
TASK, TOKENIZER = task("gather"), build_tokenizer()
PROBLEMS = [TASK.problem(Random(i)) for i in range(2)]


class _FirstPass(Exception):
    """The policy was reached, with its inputs on these devices."""


def _stop(module, args, kwargs):
    raise _FirstPass({value.device.type for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)})


def elsewhere(model):
    """A model on another device, that stops at its first pass, or where it is asked to generate."""
    model = model.to("meta")
    model.register_forward_pre_hook(_stop, with_kwargs=True)
    model.generate = lambda **inputs: _stop(model, (), inputs)
    return model


def devices_at(run):
    with pytest.raises(_FirstPass) as reached:
        run()
    return reached.value.args[0]


def test_sampling_and_evaluation():
    policy = elsewhere(build_policy(SIZE))
    assert devices_at(lambda: sample(policy, TOKENIZER, ["Q:a=1?a\n"], max_new_tokens=4)) == {"meta"}
    assert devices_at(lambda: evaluate(policy, TOKENIZER, TASK, PROBLEMS)) == {"meta"}


def test_updates_of_the_fast_trainer():
    rollouts = sample(build_policy(SIZE), TOKENIZER, [p.prompt for p in PROBLEMS], max_new_tokens=4)
    policy = elsewhere(build_policy(SIZE))
    update = Updates(policy, 1e-3, 1)
    assert devices_at(lambda: update(rollouts, torch.ones(2, 4), torch.arange(2))) == {"meta"}
    assert devices_at(lambda: continuations(policy, [[1, 2]], [3], eos_token_id=2, pad_token_id=0)) == {"meta"}


def test_the_quality_of_a_reward_model():
    model = elsewhere(_fresh(build_policy(SIZE), seed=0))
    model.model.register_forward_pre_hook(_stop, with_kwargs=True)
    assert devices_at(lambda: step_quality(model, TOKENIZER, TASK, PROBLEMS)) == {"meta"}


def test_labels_need_not_be_on_the_device_of_the_rollouts(policy, rollouts):
    """The labels stand on another device here, and are moved."""
    moved = []

    class Labels(torch.Tensor):
        def to(self, *args, **kwargs):
            moved.append(args)
            return super().to(*args, **kwargs)

    labels = torch.tensor([[True, False, True]] * 4).as_subclass(Labels)
    assert rank_heads(policy, rollouts, labels)
    assert moved[0] == (rollouts.completion_ids.device,)
