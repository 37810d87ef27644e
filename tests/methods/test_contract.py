"""What every method promises. A new method joins by one line in CASES."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from conftest import VOCABULARY, make_rollouts, tiny_lora_policy, tiny_policy, tiny_reward_model

import tokencredit as tc

CASES = [
    ("arca", {}),
    ("atpo", {}),
    ("atpo", {"layers": 3, "floor": 0.0}),
    ("attnpo", {"heads": ((3, 1), (-2, 0))}),
    ("attnpo", {"heads": ((0, 3),), "delta": 0.2, "incorrect": True, "baseline_length": "sequence", "beta": 0.5}),
    ("divergence", {}),
    ("entropy", {}),
    ("entropy_reduction", {}),
    ("entropy_selection", {}),
    ("p2t", {}),
    ("p2t", {"backward": "per_step", "null": "mean", "alpha": 1.0}),
    ("p2t", {"estimator": "exact", "null": "zero", "omega": 3.0}),
    ("p2t", {"estimator": "integrated", "null": "zero", "path_points": 3}),
    ("position", {}),
    ("position", {"shape": "sigmoid", "floor": 0.2}),
    ("random", {}),
    ("rhythm", {}),
    ("rhythm", {"strategy": "local", "layers": "all", "horizon": (1, 4)}),
    ("rhythm", {"strategy": "global", "heads": "all", "horizon": (2, 6), "select": "bottom", "sign": "positive"}),
    ("rhythm", {"horizon": (1, 4), "local_heads": ((1, 0), (2, 3)), "global_heads": ((3, 1), (-3, 0))}),
    ("surprisal", {}),
    ("uniform", {}),
]
MEAN_ONE = ("arca", "divergence", "entropy_reduction", "surprisal", "uniform")
GROUP_AWARE = ("attnpo",)
"""Their credit depends on the completion's own group, and on nothing else in the batch."""
EVERY_METHOD = pytest.mark.parametrize(("name", "params"), CASES, ids=[f"{n}-{p}" if p else n for n, p in CASES])


@pytest.fixture(scope="module")
def lora_policy():
    return tiny_lora_policy()


@pytest.fixture(scope="module")
def reward_model():
    """For the cases that read one: step by step where the backward pass is, else of the whole completion."""
    models = {process: tiny_reward_model(process=process) for process in (False, True)}
    return lambda params: models[params.get("backward") == "per_step"]


@pytest.fixture
def assign(lora_policy, reward_model):
    def assign(rollouts, name, params, advantages=None, policy=lora_policy, **kwargs):
        m, scorer = tc.method(name, **params), reward_model(params)
        return tc.assign(policy, rollouts, m, advantages, reward_model=scorer, **kwargs)

    return assign


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_every_method_has_a_case():
    assert sorted({name for name, _ in CASES}) == tc.methods()


@EVERY_METHOD
def test_shape_and_type(assign, rollouts, name, params):
    credit = assign(rollouts, name, params)
    shape = rollouts.completion_ids.shape
    assert credit.advantages.shape == shape
    assert credit.advantages.dtype == torch.float32
    assert (credit.weights is None) != (credit.bonus is None)
    for values in credit.diagnostics.values():
        assert values.shape == (len(rollouts),)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
    assert {"gini", "effective_ratio", "broadcast", "sparse", "sign_flip", "no_answer"} <= credit.diagnostics.keys()


@EVERY_METHOD
def test_padding_is_zero(assign, rollouts, name, params):
    credit = assign(rollouts, name, params)
    for values in (credit.advantages, credit.weights, credit.bonus):
        assert values is None or (values[~rollouts.completion_mask] == 0).all()


@EVERY_METHOD
def test_form(assign, rollouts, name, params):
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0])
    credit = assign(rollouts, name, params, advantages)
    if credit.weights is not None:
        assert (credit.weights >= 0).all()
        same(credit.advantages, advantages[:, None] * credit.weights)
    else:
        same(credit.advantages, (advantages[:, None] + credit.bonus) * rollouts.completion_mask)


@EVERY_METHOD
def test_alone_or_in_a_batch(assign, rollouts, name, params):
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0])
    together = assign(rollouts, name, params, advantages)
    size = 2 if name in GROUP_AWARE else 1  # the rollouts come in groups of two
    for i in range(0, len(rollouts), size):
        rows = slice(i, i + size)
        alone = assign(rollouts.rows(rows), name, params, advantages[rows])
        same(alone.advantages, together.advantages[rows])
        for key, values in together.diagnostics.items():
            same(alone.diagnostics[key], values[rows])


@EVERY_METHOD
def test_more_padding_changes_nothing(assign, rollouts, name, params):
    rng = torch.Generator().manual_seed(9)
    batch, length = rollouts.completion_ids.shape

    def junk(width):
        return torch.randint(1, VOCABULARY, (batch, width), generator=rng)

    padded = replace(
        rollouts,
        prompt_ids=torch.cat([junk(4), rollouts.prompt_ids], 1),
        prompt_mask=torch.cat([torch.zeros(batch, 4, dtype=torch.bool), rollouts.prompt_mask], 1),
        completion_ids=torch.cat([rollouts.completion_ids, junk(3)], 1),
        completion_mask=torch.cat([rollouts.completion_mask, torch.zeros(batch, 3, dtype=torch.bool)], 1),
        step_index=torch.cat([rollouts.step_index, torch.full((batch, 3), -1)], 1),
    )
    more = assign(padded, name, params).advantages
    same(more[:, :length], assign(rollouts, name, params).advantages)
    assert (more[:, length:] == 0).all()


@EVERY_METHOD
def test_order_of_the_batch(assign, rollouts, name, params):
    order = torch.tensor([2, 0, 3, 1])
    taken = {f.name: getattr(rollouts, f.name) for f in fields(rollouts)}
    shuffled = tc.Rollouts(**{k: None if v is None else v[order] for k, v in taken.items()})
    same(assign(shuffled, name, params).advantages, assign(rollouts, name, params).advantages[order])


@EVERY_METHOD
@pytest.mark.parametrize("batch_size", [1, 3])
def test_micro_batches(assign, rollouts, name, params, batch_size):
    split = assign(rollouts, name, params, batch_size=batch_size)
    same(split.advantages, assign(rollouts, name, params).advantages)


@EVERY_METHOD
def test_repeats_itself(assign, rollouts, name, params):
    assert torch.equal(assign(rollouts, name, params).advantages, assign(rollouts, name, params).advantages)


@EVERY_METHOD
def test_assign_is_collect_then_apply(lora_policy, assign, reward_model, rollouts, name, params):
    m = tc.method(name, **params)
    signals = tc.collect(lora_policy, rollouts, m.needs, reward_model(params))
    applied = m(rollouts, tc.outcome.grpo(rollouts.rewards, rollouts.group), signals)
    assert torch.equal(applied.advantages, assign(rollouts, name, params).advantages)


@EVERY_METHOD
@pytest.mark.parametrize("step", [None, 700])
def test_weights_depend_on_the_sign_of_the_outcome_where_it_says_so(
    lora_policy, reward_model, rollouts, name, params, step
):
    """verl's workers apply such methods without knowing the outcome advantages."""
    m = tc.method(name, **params)
    signals = tc.collect(lora_policy, rollouts, m.needs, reward_model(params))
    rng = torch.Generator().manual_seed(4)
    for signs in ([1.0, 1, 1, 1], [-1.0, -1, -1, -1], [1.0, -1, 0, 1]):
        sizes = 10 ** torch.empty(4).uniform_(-4, 4, generator=rng)
        by_sign, by_size = (m(rollouts, torch.tensor(signs) * size, signals, step=step) for size in (1.0, sizes))
        assert m.sign_only == (by_sign.weights is not None)
        if m.sign_only:
            assert torch.equal(by_sign.weights, by_size.weights)


@EVERY_METHOD
def test_signals_that_were_not_read_are_named(rollouts, name, params):
    m = tc.method(name, **params)
    if m.needs:
        with pytest.raises(ValueError, match="these signals lack"):
            m(rollouts, torch.ones(len(rollouts)), tc.Signals())


@EVERY_METHOD
def test_detached(lora_policy, assign, rollouts, name, params):
    advantages = torch.ones(len(rollouts), requires_grad=True)
    credit = assign(rollouts, name, params, advantages)
    assert not credit.advantages.requires_grad
    assert all(p.grad is None for p in lora_policy.parameters())


DEGENERATE = {
    "one token": make_rollouts((1, 1), (1, 1), (-1, 0)),
    "no tokens": make_rollouts((0, 3), (2, 2), (-1, 1)),
    "nobody has tokens": make_rollouts((0, 0), (2, 2), (-1, -1)),
    "no answers": make_rollouts((5, 4), (2, 2), (-1, -1)),
    "answers only": make_rollouts((5, 4), (2, 2), (0, 0)),
    "one reasoning token": make_rollouts((5, 4), (2, 2), (1, 1)),
    "constant rewards": make_rollouts((5, 4), (2, 2), (3, 2), rewards=torch.ones(2)),
    "a group of one": make_rollouts((5, 4), (2, 2), (3, 2), group=torch.tensor([0, 1])),
    "the same token": make_rollouts(
        (6, 6), (2, 2), (4, 4), prompt_ids=torch.ones(2, 2).long(), completion_ids=torch.ones(2, 6).long()
    ),
}


@EVERY_METHOD
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_is_finite(assign, name, params, case):
    rollouts = DEGENERATE[case]
    credit = assign(rollouts, name, params)
    assert torch.isfinite(credit.advantages).all()
    assert all(torch.isfinite(v).all() for v in credit.diagnostics.values())


@EVERY_METHOD
def test_equal_attention_is_finite(assign, rollouts, name, params):
    policy = tiny_lora_policy(trained=False)
    for p in policy.parameters():
        p.data.zero_()
    assert torch.isfinite(assign(rollouts, name, params, policy=policy).advantages).all()


@pytest.mark.parametrize("name", MEAN_ONE)
def test_mean_one(assign, rollouts, name):
    weights = assign(rollouts, name, {}).weights
    same(weights.sum(1) / rollouts.lengths, torch.ones(len(rollouts)))


@EVERY_METHOD
def test_the_policy_is_left_as_it_was(assign, rollouts, name, params):
    policy = tiny_lora_policy()
    policy.train()
    policy.base_model.model.lm_head.eval()
    trainable = [p.requires_grad for p in policy.parameters()]
    before = [m.training for m in policy.modules()]
    original = policy.config._attn_implementation
    assign(rollouts, name, params, policy=policy)
    assert [m.training for m in policy.modules()] == before
    assert policy.config._attn_implementation == original
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in policy.modules())
    assert all(p.grad is None for p in policy.parameters())
    assert [p.requires_grad for p in policy.parameters()] == trainable


@EVERY_METHOD
def test_dropout_is_off_while_signals_are_read(assign, rollouts, name, params):
    policy = tiny_lora_policy()
    quiet = assign(rollouts, name, params, policy=policy).advantages
    assert torch.equal(assign(rollouts, name, params, policy=policy.train()).advantages, quiet)


@EVERY_METHOD
def test_bfloat16_policy(assign, rollouts, name, params):
    credit = assign(rollouts, name, params, policy=tiny_lora_policy().to(torch.bfloat16))
    assert credit.advantages.dtype == torch.float32
    assert torch.isfinite(credit.advantages).all()


@EVERY_METHOD
def test_parameters_are_frozen(name, params):
    m = tc.method(name, **params)
    assert m.name == name
    assert m == tc.method(name, **params)
    assert hash(m) == hash(tc.method(name, **params))
    for field in fields(m):
        with pytest.raises(FrozenInstanceError):
            setattr(m, field.name, None)


def test_a_policy_that_breaks_is_left_as_it_was(rollouts):
    policy = tiny_policy()
    policy.train()
    policy.model.layers[1].mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        tc.assign(policy, rollouts, "atpo")
    assert policy.config._attn_implementation == "sdpa"
    assert all(m.training for m in policy.modules())


def test_nan_never_passes(rollouts):
    policy = tiny_policy()
    policy.model.embed_tokens.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        tc.assign(policy, rollouts, "atpo")
