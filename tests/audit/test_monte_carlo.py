"""Monte-Carlo advantages against the exact ones of a policy small enough to enumerate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_lora_policy, tiny_policy
from scipy.stats import spearmanr

import tokencredit as tc
from tokencredit.analysis.decoding import continuations
from tokencredit.audit.monte_carlo import MonteCarloAdvantage, monte_carlo_advantage, noise_ceiling, noise_ceilings
from tokencredit.signals.policy import reading

EOS, PAD, TOKENS, MOST = 1, 0, 5, 4
IDS = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": MOST}
PROMPTS = ([2, 3], [4])


def right(row: int, completion: list[int]) -> float:
    """Depends on every token, on the prompt, and on whether the completion ended."""
    return float((sum((i + 2) * token for i, token in enumerate(completion)) + row % 2) % 3 > 0)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(5, vocab_size=TOKENS, initializer_range=0.35).double()


@pytest.fixture(scope="module")
def exact(policy):
    """V of every prefix of every completion of both prompts, by enumeration: without sampling, padding or cache."""

    def value(row: int, prefix: tuple[int, ...]) -> float:
        if len(prefix) == MOST or EOS in prefix:
            known[row, prefix] = right(row, list(prefix))
        else:
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([[*PROMPTS[row], *prefix]]), use_cache=False).logits[0, -1]
            chances = logits.softmax(-1).tolist()
            known[row, prefix] = sum(p * value(row, (*prefix, token)) for token, p in enumerate(chances))
        return known[row, prefix]

    known: dict[tuple[int, tuple[int, ...]], float] = {}
    for row in range(2):
        value(row, ())
    return known


def rollouts_of(completions: list[list[int]]) -> tc.Rollouts:
    """Rows take the two prompts in turn."""
    prompts = [PROMPTS[i % 2] for i in range(len(completions))]
    width = max(1, *map(len, completions))
    return tc.Rollouts(
        torch.tensor([[PAD] * (2 - len(p)) + p for p in prompts]),
        torch.tensor([[0] * (2 - len(p)) + [1] * len(p) for p in prompts]),
        torch.tensor([c + [PAD] * (width - len(c)) for c in completions]),
        torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in completions]),
    )


@pytest.fixture(scope="module")
def rollouts(policy) -> tc.Rollouts:
    """Ended early, truncated, and of no token at all."""
    drawn = torch.Generator().manual_seed(1)
    completions = torch.randint(2, TOKENS, (78, MOST), generator=drawn).tolist()
    ended = [[*c[: i % MOST], EOS] if i % 3 == 0 else c for i, c in enumerate(completions)]
    return rollouts_of([*ended, [], [EOS]])


def exact_values(exact, rollouts) -> torch.Tensor:
    found = torch.zeros(len(rollouts), rollouts.completion_ids.shape[1] + 1, dtype=torch.float64)
    for i, n in enumerate(rollouts.lengths.tolist()):
        ids = rollouts.completion_ids[i, :n].tolist()
        for t in range(n + 1):
            found[i, t] = exact[i % 2, tuple(ids[:t])]
    return found


@pytest.fixture(scope="module")
def estimate(policy, rollouts) -> MonteCarloAdvantage:
    return monte_carlo_advantage(policy, rollouts, right, samples=64, negligible=0, **IDS)


def test_it_agrees_with_enumeration_within_its_standard_errors(exact, rollouts, estimate):
    true = exact_values(exact, rollouts)
    assert true[true > 0].std() > 0.1
    advantage = (true[:, 1:] - true[:, :-1]) * rollouts.completion_mask
    sampled = estimate.mask
    for found, expected, error in (
        (estimate.advantage[sampled], advantage[sampled], estimate.standard_error[sampled]),
        (estimate.value[:, :-1][sampled], true[:, :-1][sampled], estimate.value_error[:, :-1][sampled]),
    ):
        z = (found - expected) / error
        assert z.abs().max() < 4
        assert abs(z.mean()) < 0.2
        assert 0.75 < z.var() < 1.25


def test_departures_go_anywhere_but_where_the_completion_went(policy, rollouts):
    """With the prefix, whole, and ended as the policy would end them."""
    asked = []

    def watched(row: int, completion: list[int]) -> float:
        asked.append((row, completion))
        return 0.5

    monte_carlo_advantage(policy, rollouts, watched, samples=8, negligible=0, **IDS)
    departures = set()
    for row, completion in asked:
        original = rollouts.completion_ids[row, : int(rollouts.lengths[row])].tolist()
        assert completion == original or len(completion) == MOST or completion[-1] == EOS
        assert EOS not in completion[:-1]
        at = next((t for t, pair in enumerate(zip(completion, original, strict=False)) if len(set(pair)) == 2), None)
        assert completion == original or at is not None
        departures.add((row, at))
    everywhere = set(map(tuple, rollouts.completion_mask.nonzero().tolist()))
    assert departures - {(row, None) for row in range(len(rollouts))} == everywhere


def test_advantages_add_up_to_success(rollouts, estimate):
    own = [
        right(i, ids[:n].tolist())
        for i, (ids, n) in enumerate(zip(rollouts.completion_ids, rollouts.lengths.tolist(), strict=True))
    ]
    total = torch.tensor(own) - estimate.value[:, 0]
    assert torch.allclose(estimate.advantage.sum(1), total, atol=1e-6)
    rows, ends = torch.arange(len(rollouts)), rollouts.lengths
    assert torch.equal(estimate.value[rows, ends], torch.tensor(own))
    assert not estimate.value_error[rows, ends].any()
    for grid in (estimate.advantage, estimate.standard_error, estimate.value[:, 1:], *estimate.halves):
        assert grid.shape == rollouts.completion_ids.shape
        assert not grid[~rollouts.completion_mask].any()


def test_negligible_departures_are_not_sampled(policy, rollouts, estimate):
    totals = []
    rest = monte_carlo_advantage(
        policy, rollouts, right, samples=8, negligible=0.3, on_progress=lambda done, total: totals.append(total), **IDS
    )
    rare = estimate.departure < 0.3
    assert 0 < (rare & estimate.mask).sum() < estimate.mask.sum()
    assert totals[0] == 8 * (~rare & estimate.mask).sum()
    assert torch.equal(rest.departure, estimate.departure.masked_fill(rare, 0))
    assert not rest.advantage[rare].any()
    assert torch.allclose(rest.advantage.sum(1), rest.success - rest.value[:, 0], atol=1e-6)


def test_the_seed_decides_and_nothing_is_left_behind(rollouts):
    """Dropout is off while it samples, and what the model's users set for generation does not count."""
    policy = tiny_lora_policy()
    part = rollouts.rows(slice(0, 4))
    asked = {"samples": 4, **IDS}
    first = monte_carlo_advantage(policy, part, right, **asked)
    policy.train()
    policy.generation_config.update(repetition_penalty=9.0, top_k=1)
    settings, state = policy.generation_config.to_dict(), torch.get_rng_state()
    again = monte_carlo_advantage(policy, part, right, **asked)
    other = monte_carlo_advantage(policy, part, right, seed=1, **asked)
    assert torch.equal(first.departed, again.departed)
    assert not torch.equal(first.departed, other.departed)
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.generation_config.to_dict() == settings
    assert all(module.training for module in policy.modules())


def test_progress_is_told(policy, rollouts):
    told = []
    part = rollouts.rows(slice(0, 3))
    monte_carlo_advantage(
        policy, part, right, samples=4, batch_size=8, negligible=0, on_progress=lambda *a: told.append(a), **IDS
    )
    total = 4 * int(part.lengths.sum())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("eos", [EOS, [EOS, 3]])
@pytest.mark.parametrize("seed", [5, 6])
def test_greedy_continuations_equal_a_loop_without_cache_or_padding(seed, eos):
    policy = tiny_policy(seed).double()
    prefixes, budgets = [[7, 8, 9, 3], [5], [6, 2], [9] * 6, [4, 4]], [3, 9, 0, 5, 1]
    barred = [[], [], [], [1, 2], []]
    ends = eos if isinstance(eos, list) else [eos]
    expected = []
    for prefix, budget, never in zip(prefixes, budgets, barred, strict=True):
        found: list[int] = []
        while len(found) < budget and not set(ends) & set(found):
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([prefix + found]), use_cache=False).logits[0, -1]
            logits[[] if found else never] = -torch.inf
            found.append(int(logits.argmax()))
        expected.append([found] * 2)
    with reading(policy):
        made = continuations(policy, prefixes, budgets, eos_token_id=eos, pad_token_id=PAD, barred=barred, copies=2)
    assert made == expected


def made_up(departed: torch.Tensor, departure: float = 0.5, success: float = 0.0) -> MonteCarloAdvantage:
    batch, width, _ = departed.shape
    lengths = torch.randint(20, width + 1, (batch, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(width) < lengths
    return MonteCarloAdvantage(torch.full((batch,), success), departure * mask, departed * mask[..., None], mask)


def test_noise_has_no_ceiling_and_certainty_has_one_of_one():
    """Noise: whatever follows is right half of the time, as the completion itself is."""
    chances = torch.rand(300, 30, 1, generator=torch.Generator().manual_seed(0)).expand(300, 30, 16)
    noise = torch.bernoulli(torch.full((300, 30, 16), 0.5), generator=torch.Generator().manual_seed(1))
    certain = noise_ceiling(made_up(chances.round()))
    assert (certain.raw, certain.corrected, certain.completions) == pytest.approx((1, 1, 300))
    for departure in (0.5, 1.0):
        assert abs(noise_ceiling(made_up(noise, departure, success=0.5)).raw) < 0.04


def test_standard_errors_are_the_spread_of_repeated_estimates():
    """3000 estimates of one completion, whose tokens depart rarely as well as often."""
    drawn = torch.Generator().manual_seed(0)
    chances, departure = torch.rand(20, generator=drawn) * 0.6 + 0.2, torch.rand(20, generator=drawn) ** 2
    departed = torch.bernoulli(chances[:, None].expand(3000, 20, 32), generator=drawn)
    again = MonteCarloAdvantage(
        torch.ones(3000), departure.expand(3000, 20), departed, torch.ones(3000, 20, dtype=torch.bool)
    )
    for found, error in ((again.value[:, :-1], again.value_error[:, :-1]), (again.advantage, again.standard_error)):
        assert torch.allclose(found.var(0) / (error**2).mean(0), torch.ones(20), atol=0.15)


def test_the_corrected_ceiling_foretells_a_second_estimate():
    """Spearman-Brown: how well two estimates by all M samples agree; and the root, how well one finds the truth."""
    chances = torch.rand(300, 40, generator=torch.Generator().manual_seed(0))[..., None]
    draws = [torch.bernoulli(chances.expand(300, 40, 16), generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    one, two, truth = (made_up(departed) for departed in (*draws, chances.expand(300, 40, 16)))
    found = noise_ceiling(one)

    def agreement(a: MonteCarloAdvantage, b: MonteCarloAdvantage) -> float:
        each = [spearmanr(x[m], y[m]).statistic for x, y, m in zip(a.advantage, b.advantage, a.mask, strict=True)]
        return float(torch.tensor(each).mean())

    assert found.raw == pytest.approx(agreement(*(replace(one, departed=one.departed[..., i::2]) for i in (0, 1))))
    assert found.corrected == pytest.approx(agreement(one, two), abs=0.02)
    assert found.attainable == pytest.approx(agreement(one, truth), abs=0.02)
    by_samples = noise_ceilings(one)
    assert [c.samples for c in by_samples] == [2, 4, 8, 16]
    assert by_samples[-1] == found
    assert sorted(by_samples, key=lambda c: c.raw) == by_samples


def test_completions_that_do_not_vary_are_no_part_of_the_ceiling():
    flat = made_up(torch.zeros(3, 30, 4))
    assert noise_ceiling(flat).completions == 0
    assert noise_ceiling(flat).raw != noise_ceiling(flat).raw  # NaN
    with pytest.raises(ValueError, match="one sample"):
        noise_ceiling(flat.first(1))
    with pytest.raises(ValueError, match="5 samples"):
        flat.first(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples must be a whole number of at least 2"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": MOST - 1}, "longest completion, 4"),
        ({"negligible": 2}, "negligible"),
    ],
)
def test_bad_parameters(policy, rollouts, options, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo_advantage(policy, rollouts, right, **{"samples": 2, **IDS, **options})


@pytest.mark.parametrize("wrong", [float("nan"), 2.0, -1.0])
def test_bad_success(policy, rollouts, wrong):
    with pytest.raises(ValueError, match="success of a completion of row 0"):
        monte_carlo_advantage(policy, rollouts, lambda row, ids: wrong, samples=2, **IDS)
