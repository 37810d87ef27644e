"""Arguments as a user of the Python API gives them: lists, arrays, names, and in the wrong order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_rollouts, tiny_policy, tiny_reward_model

import tokencredit as tc
from tokencredit.methods.atpo import ATPO

ROLLOUTS = make_rollouts()
POLICY = tiny_policy()


@pytest.mark.parametrize("given", [[0.1, -0.5, 0, 2], np.array([0.1, -0.5, 0, 2]), np.array([0.1, -0.5, 0, 2], "f4")])
def test_advantages_may_be_a_list_or_an_array(given):
    expected = tc.assign(POLICY, ROLLOUTS, "position", torch.tensor([0.1, -0.5, 0.0, 2.0]))
    assert torch.equal(tc.assign(POLICY, ROLLOUTS, "position", given).advantages, expected.advantages)


def test_outcomes_take_lists_and_arrays():
    rewards, group = [0.1, 1.0, 0.0, 0.3], [0, 0, 1, 1]
    for function in (tc.outcome.grpo, tc.outcome.dr_grpo, tc.outcome.rloo):
        expected = function(torch.tensor(rewards, dtype=torch.float64), torch.tensor(group))
        assert torch.equal(function(rewards, group), expected)
        assert torch.equal(function(np.array(rewards), np.array(group)), expected)
    for rewards_too, message in ((["a"], "rewards must hold real numbers"), ([None], r"at \[0\] it has None")):
        with pytest.raises(ValueError, match=message):
            tc.outcome.grpo(rewards_too, [0])
    with pytest.raises(ValueError, match="group is NaN"):
        tc.outcome.grpo([1.0, 2.0], [0.0, float("nan")])
    with pytest.raises(ValueError, match=r"group is given in torch\.bfloat16, which rounds from 256 on"):
        tc.outcome.grpo([1.0, 2.0], torch.tensor([257, 256]).bfloat16())


def test_labels_of_steps_may_be_nested_lists():
    essential = torch.tensor([[True, False, True]] * 4)
    expected = tc.rank_heads(POLICY, ROLLOUTS, essential)
    assert tc.rank_heads(POLICY, ROLLOUTS, essential.tolist()) == expected
    assert tc.rank_heads(POLICY, ROLLOUTS, essential.numpy(), mask=[[1, 1, 1]] * 4) == expected


@pytest.mark.parametrize("wrong", [float("nan"), 0.7, 2, -1])
@pytest.mark.parametrize("name", ["essential", "mask"])
def test_labels_of_steps_are_true_or_false(name, wrong):
    labels = {"essential": [[1, 0, 1]] * 4, "mask": [[1, 1, 1]] * 4}
    labels[name] = [[1, 0, 1], [1, wrong, 1], [1, 0, 1], [1, 0, 1]]
    with pytest.raises(ValueError, match=f"completion 1: {name} must be true or false"):
        tc.rank_heads(POLICY, ROLLOUTS, **labels)


def test_ragged_labels_of_steps_are_not_advised_to_become_rollouts():
    with pytest.raises(ValueError, match=r"rows of essential .* Extend the shorter rows to the length of the longest$"):
        tc.rank_heads(POLICY, ROLLOUTS, [[True, False], [True], [True], [True]])


def no_pass(policy):
    """The same policy, which fails the test where it is run: a mistake is told of before."""
    policy.get_decoder().register_forward_pre_hook(lambda *_: pytest.fail("the policy was run"))
    return policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (ROLLOUTS, POLICY, "atpo"),
            r"the policy comes first, then the rollouts: tc.assign\(policy, rollouts, method\)",
        ),
        (("Qwen/Qwen3-0.6B", ROLLOUTS, "atpo"), r"loaded transformers model, which AutoModelForCausalLM.* got str"),
        ((None, ROLLOUTS, "atpo"), "the policy must be a loaded transformers model.* got NoneType"),
        ((POLICY, "atpo", ROLLOUTS), "the rollouts must be a tc.Rollouts.* got str"),
        ((POLICY, ROLLOUTS, ATPO), r"ATPO is a class: call it, ATPO\(...\)"),
        ((POLICY, ROLLOUTS, torch.ones(4)), "a method is given by its name"),
        ((POLICY, ROLLOUTS, "atpo", [1.0, 2.0]), r"advantages must be \(4,\), one per completion; got shape \(2,\)"),
        ((POLICY, ROLLOUTS, "atpo", [1.0, 2.0, 3.0, float("inf")]), "advantages must be finite"),
        ((POLICY, ROLLOUTS, "atpo", 1.0), "advantages must be a tensor, a NumPy array or a list of numbers"),
        ((POLICY, ROLLOUTS, "atpo:flor=0.5"), "atpo has no parameter 'flor'"),
    ],
)
def test_arguments_in_a_wrong_place_are_refused_before_the_policy_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        tc.assign(*(no_pass(tiny_policy()) if argument is POLICY else argument for argument in arguments))


def test_other_functions_know_their_order_too():
    with pytest.raises(ValueError, match=r"tc.collect\(policy, rollouts, method.needs\)"):
        tc.collect(ROLLOUTS, POLICY, tc.method("atpo").needs)
    with pytest.raises(ValueError, match=r"needs must be a tc.Needs, such as method.needs; got ATPO"):
        tc.collect(POLICY, ROLLOUTS, tc.method("atpo"))
    with pytest.raises(ValueError, match=r"tc.rank_heads\(policy, rollouts, essential\)"):
        tc.rank_heads(ROLLOUTS, POLICY, [[True, False, True]] * 4)
    with pytest.raises(ValueError, match=r"tc.ablate_steps\(policy, rollouts\)"):
        tc.ablate_steps(ROLLOUTS, POLICY)
    with pytest.raises(ValueError, match=r"tc.mark_spans\(rollouts, tokenizer\)"):
        tc.mark_spans(object(), ROLLOUTS)
    credit = tc.assign(POLICY, ROLLOUTS, "uniform")
    with pytest.raises(ValueError, match=r"tc.show\(credit, rollouts, tokenizer\)"):
        tc.show(ROLLOUTS, credit, object())


def test_a_method_may_be_a_name_with_parameters():
    with_name = tc.assign(POLICY, ROLLOUTS, "atpo:floor=0.25,temperature=3")
    expected = tc.assign(POLICY, ROLLOUTS, tc.method("atpo", floor=0.25, temperature=3))
    assert torch.equal(with_name.advantages, expected.advantages)
    assert not torch.equal(with_name.advantages, tc.assign(POLICY, ROLLOUTS, "atpo").advantages)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("atpo", {"floor": 0.5}, r'floor is a parameter of the method: pass tc.method\("atpo", floor=0.5\)'),
        (tc.method("atpo"), {"floor": 0.5}, r'pass tc.method\("atpo", floor=0.5\)'),
        (
            "atpo",
            {"floor": 0.5, "layers": 2},
            r'floor, layers are parameters of .* tc.method\("atpo", floor=0.5, layers=2',
        ),
        ("attnpo", {"heads": [[1, 0]]}, r'tc.method\("attnpo", heads=\[\[1, 0\]\]\)'),
        (
            "atpo",
            {"flor": 0.5},
            "tc.assign has no argument flor; the parameters of atpo are layers, temperature, floor",
        ),
        ("nope", {"floor": 0.5}, "tc.assign has no argument floor"),
    ],
)
def test_parameters_of_the_method_belong_to_the_method(method, parameters, message):
    with pytest.raises(ValueError, match=message):
        tc.assign(POLICY, ROLLOUTS, method, **parameters)


@pytest.mark.parametrize("field", ["prompt_ids", "completion_ids"])
def test_tokens_that_the_policy_does_not_know_are_named_before_it_runs(field):
    ids = getattr(ROLLOUTS, field).clone()
    ids[1, 2] = 64
    with pytest.raises(
        ValueError, match=rf"completion 1: {field} has the token 64, but the vocabulary of the policy is 64"
    ):
        tc.assign(no_pass(tiny_policy()), replace(ROLLOUTS, **{field: ids}), "entropy")
    small = tiny_policy(vocab_size=32)
    with pytest.raises(ValueError, match="the vocabulary of the reference model is 32"):
        tc.assign(POLICY, ROLLOUTS, "divergence", reference_model=small)


@pytest.mark.parametrize("name", ["atpo", "entropy", "p2t", "rhythm"])
def test_an_empty_batch_has_no_signals(name):
    empty = ROLLOUTS.rows(slice(0, 0))
    with pytest.raises(ValueError, match="no completion to read signals of"):
        tc.collect(POLICY, empty, tc.method(name).needs, tiny_reward_model())


OTHER_HEADS = [
    (("attnpo", {"heads": [[1, 4]]}), "head 4 asked for, but the policy has 4 heads a layer"),
    (("attnpo", {"heads": [[4, 0]]}), "layer 4 asked for, but the policy has 4"),
    (("attnpo", {"heads": [[1, 0]], "model": "qwen3 of 9 layers, 4 heads, width 32"}), "heads are those of qwen3 of 9"),
    (("atpo", {"layers": 5}), "layer -5 of the layers with full attention asked for, but the policy has 4"),
    (("rhythm", {"local_heads": [[0, 1]], "global_heads": [[0, 7]]}), "head 7 asked for"),
]


@pytest.mark.parametrize(("method", "message"), OTHER_HEADS)
def test_heads_and_layers_that_the_policy_does_not_have_are_refused_before_it_runs(method, message):
    name, parameters = method
    with pytest.raises(ValueError, match=message):
        tc.assign(no_pass(tiny_policy()), ROLLOUTS, tc.method(name, **parameters))
