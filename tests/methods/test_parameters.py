"""Any value of any parameter gives a method that works, or is refused by a ValueError that names the parameter."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import make_rollouts, tiny_lora_policy, tiny_reward_model
from hypothesis import given
from hypothesis import strategies as st

import tokencredit as tc
from tokencredit.methods.base import check_number, check_whole
from tokencredit.methods.specs import sketch
from tokencredit.signals.attention_statistics import HeadDistances

PARAMETERS = [(name, field.name) for name in tc.methods() for field in fields(type(sketch(name)))]
WHOLE = [("atpo", "layers"), ("p2t", "path_points"), ("random", "seed"), ("rhythm", "window"), ("rhythm", "k")]
NASTY = (
    *(None, "x", "", b"x", 0, 5, -1, 1.5, 10**5000, 1e308, float("nan"), float("inf"), -float("inf"), 1j, True),
    *([], {}, [1], [1, 2], (1.5, 2), ("a", "b"), [True, 2], [[1]], [[]], {"low": 1}, range(3), object(), float),
    *(Fraction(1, 2), Fraction(1), np.float32(0.5), np.int64(2), np.array([1, 2]), torch.tensor(1.0)),
)
ROLLOUTS = make_rollouts()


@pytest.fixture(scope="module")
def models():
    return tiny_lora_policy(), tiny_reward_model()


def built(name, parameter, value):
    """The method with one parameter set; None where the value is refused, in one line that names the parameter."""
    others = {"heads": ((0, 0),)} if name == "attnpo" and parameter != "heads" else {}
    try:
        return tc.method(name, **others, **{parameter: value})
    except ValueError as error:
        message = str(error)
        assert parameter in message
        assert "\n" not in message
        return None


@pytest.mark.filterwarnings("ignore:.* completions uniform")
@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_a_value_works_or_is_refused(models, name, parameter):
    policy, reward_model = models
    for value in NASTY:
        method = built(name, parameter, value)
        if method is None:
            continue
        assert hash(method) == hash(method)
        try:
            credit = tc.assign(policy, ROLLOUTS, method, reward_model=reward_model)
        except ValueError:
            continue  # such as a layer that the policy does not have
        assert torch.isfinite(credit.advantages).all()
        assert credit.weights is None or (credit.weights >= 0).all()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(PARAMETERS), ANYTHING)
def test_building_a_method_raises_nothing_but_value_errors(parameter, value):
    built(*parameter, value)


@pytest.mark.parametrize(("name", "parameter"), [*WHOLE, ("atpo", "floor"), ("position", "temperature")])
def test_true_is_no_number(name, parameter):
    with pytest.raises(ValueError, match=f"{parameter} must be a .*number.*; got True"):
        tc.method(name, **{parameter: True})


@pytest.mark.parametrize("horizon", [5, "57", (10,), (1, 2, 3), (1.0, 2.0), (True, 2), (0, 3), (None, 2), [4, 10**30]])
def test_a_horizon_is_two_whole_numbers(horizon):
    with pytest.raises(ValueError, match=r"horizon must be \(low, high\), whole numbers with 1 <= low <= high"):
        tc.method("rhythm", horizon=horizon)


@pytest.mark.parametrize("name", [["atpo"], None, 5, {}])
def test_a_method_is_named_by_a_text(name):
    with pytest.raises(ValueError, match=r"unknown method .* Valid methods: arca"):
        tc.method(name)


def test_a_seed_is_a_whole_number():
    """The choice is seeded by what the seed is written as; that of most objects has an address in it."""
    for seed in (object(), None, 1.0, "1"):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            tc.method("random", seed=seed)
    assert tc.method("random", seed=-3).seed == -3


def test_numbers_of_numpy_are_numbers():
    for value in (np.float32(0.5), np.float64(0.5), np.int64(1)):
        check_number("q", value, 0, 1)
    for value in (np.bool_(True), np.float32("nan")):
        with pytest.raises(ValueError, match="q must be a number"):
            check_number("q", value, 0, 1)
    with pytest.raises(ValueError, match="layers must be a whole number"):
        check_whole("layers", np.uint8(1), 1)


def test_a_long_value_is_cut_in_messages():
    with pytest.raises(ValueError, match=r"got 'xxx") as refused:
        tc.method("rhythm", strategy="x" * 10_000)
    assert len(str(refused.value)) < 200


@given(
    st.floats(0, 1),
    st.floats(0, 3),
    st.integers(1, 6),
    st.floats(0.05, 1),
    st.sampled_from(["local", "global", "coupled"]),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=14),
)
def test_rhythms_weights_are_never_negative(alpha, amplification, k, q, strategy, signals):
    """Coarse WAAD and FAI, so that many preplan tokens are anchors too."""
    params = {"alpha": alpha, "amplification": amplification, "k": k, "q": q, "strategy": strategy}
    lowest = alpha / (1 + alpha)
    if strategy == "coupled" and amplification < lowest:
        with pytest.raises(ValueError, match=r"amplification must be at least alpha / \(1 \+ alpha\)"):
            tc.method("rhythm", **params)
        return
    method = tc.method("rhythm", heads="all", **params)
    waad, fai = torch.tensor(signals, dtype=torch.float32).T[:, None, None]
    read = HeadDistances(torch.ones(1, 1), waad, fai)
    rollouts = make_rollouts((len(signals),), (1,), (-1,))
    weights = method(rollouts, torch.ones(1), tc.Signals(distances=dict.fromkeys(method.needs.distances, read))).weights
    assert (weights >= 0).all()


def test_rhythms_lowest_amplification_is_exact():
    """An intro that is an anchor too gets 1 + (amplification - 1) * (1 + alpha): 0 at the bound, with the default
    alpha 1/3. The bound holds for the coupled strategy alone."""
    waad, fai = torch.tensor([[5.0, 5, 0, 0]])[None], torch.tensor([[0.0, 9, 8, 0]])[None]
    rollouts = make_rollouts((4,), (1,), (-1,))

    def weights(amplification):
        method = tc.method("rhythm", heads="all", q=0.5, amplification=amplification)
        signals = tc.Signals(
            distances=dict.fromkeys(method.needs.distances, HeadDistances(torch.ones(1, 1), waad, fai))
        )
        return method(rollouts, torch.ones(1), signals).weights[0].tolist()

    assert weights(1 / 3) == pytest.approx([1, 0, 2 / 3, 1], abs=1e-6)
    assert weights(0.6) == pytest.approx([1, 0.4, 0.8, 1])
    with pytest.raises(ValueError, match=r"amplification must be at least .* = 0\.3333 .*strategy=coupled.*got 0\.33"):
        weights(0.33)
    for strategy in ("local", "global"):
        assert tc.method("rhythm", strategy=strategy, amplification=0.0).amplification == 0
