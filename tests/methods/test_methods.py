"""Each method against its naive reference in float64, and its own edges."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import reference
import torch
from conftest import make_rollouts, tiny_lora_policy, tiny_policy

import tokencredit as tc
from tokencredit.signals import FullAttentionLayer
from tokencredit.signals.attention_statistics import HeadDistances
from tokencredit.signals.types import RewardAttribution

ROLLOUTS = make_rollouts((14, 9, 11, 5), (6, 3, 5, 4), (9, 5, -1, 1))


def weights_of(policy, method, rollouts=ROLLOUTS):
    return tc.assign(policy, rollouts, method).weights


def expect_rows(weights, rows, tolerance=1e-6):
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            weights[i, : len(row)].double(), torch.tensor(row, dtype=torch.float64), atol=tolerance, rtol=0
        )


@pytest.mark.parametrize("params", [{}, {"layers": 3}, {"floor": 0.0, "temperature": 0.7}])
def test_atpo_equals_the_reference(params):
    policy = tiny_policy().double()
    m = tc.method("atpo", **params)
    rows = [
        reference.atpo(
            reference.eager_attention(policy, ROLLOUTS, i),
            int(ROLLOUTS.prompt_mask[i].sum()),
            ROLLOUTS.answer_start[i].item(),
            m.layers,
            m.temperature,
            m.floor,
        )
        for i in range(len(ROLLOUTS))
    ]
    expect_rows(weights_of(policy, m), rows)
    assert min(rows[0]) == pytest.approx(m.floor)
    assert max(rows[0][:9]) == pytest.approx(1)


def test_atpo_by_hand():
    """Three reasoning tokens whose attention is 1, e and e^2, so whose standardised logs are -1, 0 and 1."""
    r = make_rollouts((4,), (1,), (3,))
    attention = torch.tensor([[[math.exp(k) - 1e-6 for k in range(3)] + [9.0]]])
    signals = tc.Signals(answer_attention={FullAttentionLayer(-1): attention})
    credit = tc.method("atpo", floor=0.25)(r, torch.tensor([0.75]), signals)
    assert credit.weights[0].tolist() == pytest.approx([0.25, 0.625, 1.0, 1.0], abs=1e-6)
    assert credit.advantages[0].tolist() == pytest.approx([0.1875, 0.46875, 0.75, 0.75], abs=1e-6)


def test_atpo_gives_half_where_all_attention_is_equal():
    policy = tiny_policy()
    for layer in policy.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    weights = weights_of(policy, tc.method("atpo", floor=0.0))
    assert weights[0, :9].tolist() == [0.5] * 9
    assert weights[0, 9:14].tolist() == [1.0] * 5


def test_atpo_asked_for_more_layers_than_there_are():
    with pytest.raises(ValueError, match=r"layer -5 of the layers with full attention.* has 4 of them"):
        weights_of(tiny_policy(), tc.method("atpo", layers=5))


def test_arca_equals_the_reference():
    policy = tiny_lora_policy().double()
    rows = [reference.arca(policy, ROLLOUTS, i, 1e-6) for i in range(len(ROLLOUTS))]
    expect_rows(weights_of(policy, "arca"), rows, tolerance=1e-5)


def test_arca_is_uniform_on_a_fresh_adapter():
    credit = tc.assign(tiny_lora_policy(trained=False), ROLLOUTS, "arca")
    assert (credit.weights[ROLLOUTS.completion_mask] == 1).all()
    assert (credit.diagnostics["residual_max"] == 0).all()


def test_arca_does_not_see_the_scale_of_the_residual():
    signals = tc.collect(tiny_lora_policy(), ROLLOUTS, tc.method("arca").needs)
    scaled = tc.Signals(adapter_residual=1000 * signals.adapter_residual)
    a, b = (tc.method("arca", eps=1e-12)(ROLLOUTS, torch.ones(4), s).weights for s in (signals, scaled))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert a[0].std() > 0.01


def test_arca_reports_its_residual():
    credit = tc.assign(tiny_lora_policy(), ROLLOUTS, "arca")
    residual = tc.collect(tiny_lora_policy(), ROLLOUTS, tc.method("arca").needs).adapter_residual
    assert credit.diagnostics["residual_max"][3].item() == pytest.approx(residual[3, :5].max().item())
    assert credit.diagnostics["residual_mean"][3].item() == pytest.approx(residual[3, :5].mean().item())


def test_arca_without_an_adapter_says_so():
    with pytest.raises(ValueError, match="LoraConfig"):
        weights_of(tiny_policy(), "arca")


RHYTHMS = [
    {"strategy": strategy, "horizon": (2, 6), "window": 3, **more}
    for strategy in ("local", "global", "coupled")
    for more in (
        {},
        {"layers": "all", "heads": "all"},
        {"layers": "top", "q": 0.2, "select": "bottom"},
        {"layers": "bottom", "sign": "positive", "alpha": 0.3, "k": 2},
        {"sign": "negative", "head_fraction": 0.6},
    )
]


@pytest.mark.parametrize("params", RHYTHMS, ids=str)
def test_rhythm_equals_the_reference(params):
    policy = tiny_policy(num_hidden_layers=7).double()
    rollouts = make_rollouts((24, 17, 20, 1), (6, 3, 5, 4), (9, 5, -1, -1))
    m = tc.method("rhythm", **params)
    advantages = torch.tensor([1.0, -0.5, 0.25, 1.0])
    (distances,) = m.needs.distances
    layers = distances.sample(7)
    rows = []
    for i in range(len(rollouts)):
        attention = reference.eager_attention(policy, rollouts, i)[layers]
        rows.append(reference.rhythm(attention, int(rollouts.prompt_mask[i].sum()), m, advantages[i].item()))
    expect_rows(tc.assign(policy, rollouts, m, advantages).weights, rows)
    assert any(w != 1 for row in rows for w in row)


@pytest.mark.parametrize("params", [{}, {"alpha": 0.2, "k": 1}, {"q": 0.7, "k": 5}, {"strategy": "local"}], ids=str)
def test_rhythm_on_many_waves(params):
    """Coarse WAAD and FAI, so that thresholds are met exactly and values tie."""
    m = tc.method("rhythm", layers="all", **params)
    lengths = [1, 2, 5, 9, 14, 20, 20, 20]
    r = make_rollouts(lengths, (1,) * 8, (-1,) * 8)
    rng = torch.Generator().manual_seed(2)
    for _ in range(20):
        waad, fai = (torch.randint(0, 5, (8, 1, 20), generator=rng).float() for _ in range(2))
        heads = HeadDistances(torch.ones(8, 1), waad, fai)
        signals = tc.Signals(distances=dict.fromkeys(m.needs.distances, heads))
        expected = [
            reference.rhythm_weights(waad[i, 0, :n].tolist(), fai[i, 0, :n].tolist(), m, 1.0)
            for i, n in enumerate(lengths)
        ]
        expect_rows(m(r, torch.ones(8), signals).weights, expected)


def test_rhythm_samples_the_layers_of_the_paper():
    from tokencredit.signals.types import DistanceNeed

    def sample(layers, count):
        return DistanceNeed(layers).sample(count)

    assert sample("middle", 36) == [12, 15, 18, 21, 24]
    assert sample("middle", 28) == [9, 11, 14, 16, 18]
    assert sample("middle", 3) == [1, 2]
    assert sample("bottom", 36) == [0, 3, 6, 9, 12]
    assert sample("top", 36) == [24, 27, 30, 32, 35]
    assert sample("all", 3) == [0, 1, 2]
    assert all(
        0 <= layer < count for count in range(1, 40) for kind in ("top", "middle") for layer in sample(kind, count)
    )


@pytest.mark.parametrize("step", [None, 1, 500, 5000])
@pytest.mark.parametrize(
    "params",
    [{}, {"delta": 0.3, "lam": 1.0}, {"incorrect": True, "beta": 0.5}, {"baseline_length": "sequence", "beta": 0.0}],
    ids=str,
)
def test_attnpo_equals_the_reference(params, step):
    policy = tiny_policy().double()
    rollouts = make_rollouts(
        (14, 14, 11, 5, 9, 12),
        (6, 3, 5, 4, 2, 2),
        (9, 10, 8, 3, -1, 8),
        group=torch.tensor([0, 0, 0, 0, 1, 1]),
        correct=torch.tensor([True, True, False, True, True, True]),
    )
    m = tc.method("attnpo", heads=((0, 1), (2, 3), (3, 0)), **params)
    seen = set()
    for advantages in (torch.tensor([1.0, -1, 1, 1, 1, -1]), torch.tensor([-1.0, 1, -1, -1, -1, 1])):
        rows = [
            reference.attnpo(reference.eager_attention(policy, rollouts, i), rollouts, i, m, advantages[i].item(), step)
            for i in range(len(rollouts))
        ]
        credit = tc.assign(policy, rollouts, m, advantages, step=step)
        expect_rows(credit.weights, rows, tolerance=1e-5)
        shares = [[sum(0 < w < 1 for w in row) / len(row), sum(w == 0 for w in row) / len(row)] for row in rows]
        found = torch.stack([credit.diagnostics["attenuated"], credit.diagnostics["protected"]], 1)
        torch.testing.assert_close(found, torch.tensor(shares))
        seen |= {w for row in rows for w in row}
    assert 0.0 in seen
    assert step == 1 or any(0 < w < 1 for w in seen)


def test_attnpo_needs_what_it_needs():
    with pytest.raises(ValueError, match="attnpo needs heads"):
        tc.method("attnpo")
    with pytest.raises(ValueError, match="rank_heads"):
        tc.method("attnpo", heads=())
    m = tc.method("attnpo", heads=[[3, 7]])
    with pytest.raises(ValueError, match="the policy has 4 heads"):
        tc.assign(tiny_policy(), ROLLOUTS, m)
    for missing in ("correct", "group", "step_index"):
        with pytest.raises(ValueError, match="attnpo needs rollouts with step_index"):
            tc.assign(
                tiny_policy(), make_rollouts(**{missing: None}), tc.method("attnpo", heads=[[3, 1]]), torch.ones(4)
            )


def test_the_length_penalised_reward():
    from tokencredit.methods.attnpo import length_penalised_reward

    correct = torch.tensor([True, True, False, True, False])
    lengths, group = torch.tensor([10, 30, 999, 50, 5]), torch.tensor([7, 7, 7, 7, 8])
    found = length_penalised_reward(correct, lengths, group)
    std = statistics.pstdev([10, 30, 50])
    expected = [1 - 0.2 / (1 + math.exp(-(n - 30) / (std + 1e-8))) for n in (10, 30, 50)]
    assert found.tolist() == pytest.approx([expected[0], expected[1], 0, expected[2], 0], abs=1e-6)


def logit_reference(name, policy, i):
    """The weights of completion i under a method that reads logits."""
    log_ps, tokens = reference.distributions(policy, ROLLOUTS, i)
    logprob = [row[token].item() for row, token in zip(log_ps, tokens, strict=True)]
    entropy = reference.entropies(log_ps)
    if name == "entropy":
        chosen = reference.top(entropy, 0.4)
        return [1.5 if t in chosen else 1.0 for t in range(len(tokens))]
    if name == "entropy_selection":
        chosen = reference.top(entropy, 0.2)
        return [float(t in chosen) for t in range(len(tokens))]
    if name == "surprisal":
        return reference.mean_one([-v for v in logprob], 1e-6)
    if name == "entropy_reduction":
        falls = [max(0.0, a - b) for a, b in pairwise(entropy)]
        return reference.mean_one([*falls, 0.0], 1e-6)
    with policy.disable_adapter():
        base, _ = reference.distributions(policy, ROLLOUTS, i)
    apart = [abs(v - row[token].item()) for v, row, token in zip(logprob, base, tokens, strict=True)]
    return reference.mean_one(apart, 1e-6)


@pytest.mark.parametrize("name", ["entropy", "entropy_selection", "surprisal", "entropy_reduction", "divergence"])
def test_methods_on_logits_equal_the_reference(name):
    policy = tiny_lora_policy().double()
    rows = [logit_reference(name, policy, i) for i in range(len(ROLLOUTS))]
    expect_rows(weights_of(policy, name), rows, tolerance=1e-5)


def test_divergence_from_a_given_reference():
    policy, reference_model = tiny_policy(), tiny_policy(seed=1)
    credit = tc.assign(policy, ROLLOUTS, "divergence", reference_model=reference_model)
    assert credit.weights[0].std() > 0.1
    same = tc.assign(policy, ROLLOUTS, "divergence", reference_model=tiny_policy())
    assert (same.weights[ROLLOUTS.completion_mask] == 1).all()


def test_divergence_without_a_reference_says_so():
    with pytest.raises(ValueError, match="reference_model="):
        weights_of(tiny_policy(), "divergence")


def test_ties_go_to_the_earlier_token():
    from tokencredit.methods.base import top_mask

    values = torch.tensor([[1.0, 3.0, 3.0, 3.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, True, True, True, True]])
    assert top_mask(values, mask, 0.5).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("shape", ["linear", "exponential", "sigmoid", "zero"])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_position_equals_the_reference(shape, floor):
    m = tc.method("position", shape=shape, floor=floor)
    rows = [
        reference.position(n, answer, shape, floor, 2.0)
        for n, answer in zip(ROLLOUTS.lengths.tolist(), ROLLOUTS.answer_start.tolist(), strict=True)
    ]
    expect_rows(weights_of(None, m), rows)


def test_position_spans_exactly_the_floor_to_one():
    weights = weights_of(None, tc.method("position", shape="sigmoid", floor=0.25))
    assert weights[0, 0].item() == 0.25
    assert weights[0, 8].item() == 1.0


def test_a_sigmoid_without_spread_is_its_limit():
    straight = weights_of(None, "position")
    assert torch.equal(weights_of(None, tc.method("position", shape="sigmoid", temperature=1e-17)), straight)


def test_random_amplifies_the_stated_share():
    weights = weights_of(None, "random")
    assert [(row == 1.5).sum().item() for row in weights] == [5, 3, 4, 2]
    assert set(weights[ROLLOUTS.completion_mask].tolist()) == {1.0, 1.5}


def test_random_depends_on_the_tokens_and_the_seed_alone():
    state = torch.random.get_rng_state()
    first = weights_of(None, "random")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(weights_of(None, tc.method("random", seed=1)), first)
    other = make_rollouts((14, 9, 11, 5), (6, 3, 5, 4), (9, 5, -1, 1), seed=5)
    assert not torch.equal(weights_of(None, "random", other), first)


def test_a_share_is_counted_without_rounding_accidents():
    from tokencredit.methods.base import top_count

    assert [top_count(0.4, n) for n in (1, 2, 5, 10, 15)] == [1, 1, 2, 4, 6]
    assert all(top_count(k / 10, 10) == k for k in range(1, 11))


def test_uniform_is_the_plain_advantage():
    advantages = torch.tensor([0.1, -2.0, 3.3, 0.0])
    credit = tc.assign(None, ROLLOUTS, "uniform", advantages)
    assert torch.equal(credit.advantages, advantages[:, None] * ROLLOUTS.completion_mask)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("nope", {}, "Valid methods: arca, atpo"),
        ("atop", {}, "did you mean 'atpo'"),
        ("atpo", {"flor": 1}, "Valid parameters: layers, temperature, floor"),
        ("uniform", {"q": 1}, "Valid parameters: none"),
        ("atpo", {"layers": 0}, "layers must be"),
        ("atpo", {"layers": 1.5}, "layers must be"),
        ("atpo", {"floor": 1.5}, r"floor must be a number in \[0, 1\]; got 1.5"),
        ("atpo", {"floor": float("nan")}, "floor must be"),
        ("atpo", {"temperature": "hot"}, "temperature must be"),
        ("position", {"shape": "cubic"}, "linear, exponential, sigmoid, zero"),
        ("random", {"amplification": float("inf")}, "amplification must be"),
        ("random", {"q": 0}, r"q must be a number in \(0, 1\]"),
        ("arca", {"eps": 0}, "eps must be"),
        ("entropy", {"q": 1.1}, "q must be"),
        ("entropy_selection", {"q": -0.1}, "q must be"),
        ("rhythm", {"strategy": "loud"}, "local, global, coupled"),
        ("rhythm", {"horizon": (5, 2)}, "horizon must be"),
        ("rhythm", {"window": 0}, "window must be"),
        ("rhythm", {"layers": "last"}, "middle, all, top, bottom"),
        ("surprisal", {"eps": -1}, "eps must be"),
    ],
)
def test_bad_parameters_are_refused_with_the_valid_ones(name, params, message):
    with pytest.raises(ValueError, match=message):
        tc.method(name, **params)


def test_bad_advantages(rollouts, policy):
    with pytest.raises(ValueError, match=r"advantages must be \(4,\)"):
        tc.assign(policy, rollouts, "uniform", torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        tc.assign(policy, rollouts, "uniform", torch.tensor([1.0, float("nan"), 0, 0]))
    with pytest.raises(ValueError, match="rewards and group"):
        tc.assign(policy, make_rollouts(rewards=None), "uniform")


def test_spans_must_be_marked_for_methods_that_read_them(policy):
    for name in ("atpo", "position"):
        with pytest.raises(ValueError, match="mark_spans"):
            tc.assign(policy, make_rollouts(answer_start=None), name)


def attribution(influence, reward, segment, covered=None):
    segment = torch.tensor(segment)
    return RewardAttribution(
        torch.tensor(reward),
        torch.tensor(influence),
        segment,
        segment >= 0 if covered is None else torch.tensor(covered),
    )


@pytest.mark.parametrize("params", [{}, {"omega": 2.0, "alpha": 1.0}])
def test_p2t_equals_the_reference(params):
    """Two segments, and a token outside both."""
    m = tc.method("p2t", **params)
    r = make_rollouts((6, 3), (2, 2), (-1, -1))
    influence = [[0.3, -1.0, 2.0, 0.1, 0.0, 4.0], [5.0, 5.0, 5.0, 0.0, 0.0, 0.0]]
    reward = [[0.5, 0.5, 0.5, -2.0, -2.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    segment = [[0, 0, 0, 1, 1, -1], [0, 0, 0, -1, -1, -1]]
    read = attribution(influence, reward, segment, [[True] * 5 + [False], [True] * 3 + [False] * 3])
    credit = m(r, torch.tensor([0.75, -1.0]), tc.Signals(reward={next(iter(m.needs.reward)): read}))
    first = reference.p2t_bonus(influence[0][:3], 0.5, m.omega, m.alpha)
    second = reference.p2t_bonus(influence[0][3:5], -2.0, m.omega, m.alpha)
    expect_rows(credit.bonus, [[*first, *second, 0.0], reference.p2t_bonus([5.0] * 3, 1.0, m.omega, m.alpha)])
    expect_rows(credit.advantages, [[0.75 + b for b in (*first, *second, 0.0)]])
    assert credit.weights is None
    assert credit.diagnostics["unscored"].tolist() == pytest.approx([1 / 6, 0])
    assert credit.diagnostics["unmapped"].tolist() == pytest.approx([1 / 6, 0])
    flat = credit.diagnostics["softmax_effective_ratio"].tolist()
    assert flat[1] == pytest.approx(1)
    assert flat[0] == pytest.approx(statistics.fmean(effective(s) for s in (influence[0][:3], influence[0][3:5])))
    bonus = [*first, *second, 0.0]
    spread = statistics.fmean(abs(b - statistics.fmean(bonus)) for b in bonus)
    size = statistics.fmean(abs(0.75 + b) for b in bonus)
    assert credit.diagnostics["bonus_share"].tolist() == pytest.approx([spread / size, 0], abs=1e-6)


def effective(influence):
    total = sum(math.exp(v) for v in influence)
    return 1 / (len(influence) * sum((math.exp(v) / total) ** 2 for v in influence))


def test_p2t_takes_any_influence():
    """Exponentials neither overflow nor vanish."""
    m = tc.method("p2t", omega=1.0, alpha=1.0)
    r = make_rollouts((3,), (2,), (-1,))
    read = attribution([[-2000.0, 3000.0, 3000.0]], [[1.0] * 3], [[0, 0, 0]])
    credit = m(r, torch.zeros(1), tc.Signals(reward={next(iter(m.needs.reward)): read}))
    assert credit.bonus[0].tolist() == pytest.approx([1, 1.5, 1.5])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"omega": -1}, "omega"),
        ({"alpha": float("nan")}, "alpha"),
        ({"null": "bos"}, "pad, eos, zero, mean"),
        ({"estimator": "shapley"}, "taylor, exact, integrated"),
        ({"backward": "both"}, "single, per_step"),
        ({"path_points": 0}, "path_points"),
    ],
)
def test_p2t_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        tc.method("p2t", **params)


def test_rhythm_with_fixed_groups():
    """Groups of its own choice: the same heads as those it would pick itself give the same weights."""
    policy = tiny_policy().double()
    free = tc.method("rhythm", layers="top", horizon=(1, 4))
    rows = ROLLOUTS.rows(slice(0, 1))

    def weights_of(m):
        return tc.assign(policy, rows, m, torch.ones(1)).weights

    look_back = tc.collect(policy, rows, free.needs).distances[next(iter(free.needs.distances))].look_back[0]
    order = look_back.argsort().tolist()
    local, remote = ([(2 + h // 4, h % 4) for h in part] for part in (order[:2], order[-2:]))
    fixed = tc.method("rhythm", horizon=(1, 4), local_heads=local, global_heads=remote)
    torch.testing.assert_close(weights_of(fixed), weights_of(free))
    backwards = [(layer, head - 4) for layer, head in local]
    counted_back = tc.method("rhythm", horizon=(1, 4), local_heads=backwards, global_heads=remote)
    assert torch.equal(weights_of(counted_back), weights_of(fixed))
    assert {layer for layer, _ in (*local, *remote)} == set(next(iter(fixed.needs.distances)).layers)
    other = tc.method("rhythm", horizon=(1, 4), local_heads=remote, global_heads=local)
    assert not torch.equal(weights_of(other), weights_of(free))
    for strategy, wanted in (("local", local), ("global", remote), ("coupled", local + remote)):
        m = tc.method("rhythm", strategy=strategy, local_heads=local, global_heads=remote)
        assert set(next(iter(m.needs.distances)).heads) == set(wanted)
    with pytest.raises(ValueError, match="together"):
        tc.method("rhythm", local_heads=local)
    with pytest.raises(ValueError, match="group_heads"):
        tc.method("rhythm", local_heads=local, global_heads=[3])
    with pytest.raises(ValueError, match="the policy has 4"):
        weights_of(tc.method("rhythm", local_heads=[(9, 0)], global_heads=remote))
    with pytest.raises(ValueError, match="has 4 heads"):
        weights_of(tc.method("rhythm", local_heads=[(1, 4)], global_heads=remote))
