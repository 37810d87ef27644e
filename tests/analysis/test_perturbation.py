"""The perturbation test against a naive loop, and what it may not touch."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, replace

import pytest
import torch
from conftest import VOCABULARY, make_rollouts, tiny_lora_policy, tiny_policy

import tokencredit as tc
from tokencredit.analysis import perturb

EOS, PAD, MOST = 53, 0, 14
IDS = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": MOST}


def logits_after(policy, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def greedy(policy, ids: list[int], steps: int, eos: int = EOS) -> list[int]:
    """Without batch, padding or cache."""
    found: list[int] = []
    while len(found) < steps and eos not in found:
        found.append(int(logits_after(policy, ids + found).argmax()))
    return found


def greedy_rollouts(policy, prompts=(5, 3, 4, 6), eos: int = EOS) -> tc.Rollouts:
    made = make_rollouts((1,) * len(prompts), prompts, (-1,) * len(prompts), seed=2)
    texts = [
        greedy(policy, ids[mask].tolist(), MOST, eos)
        for ids, mask in zip(made.prompt_ids, made.prompt_mask, strict=True)
    ]
    width = max(map(len, texts))
    return tc.Rollouts(
        made.prompt_ids,
        made.prompt_mask,
        torch.tensor([text + [PAD] * (width - len(text)) for text in texts]),
        torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
    )


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(3).double()


@pytest.fixture(scope="module")
def rollouts(policy) -> tc.Rollouts:
    return greedy_rollouts(policy)


@pytest.fixture(scope="module")
def scores(rollouts) -> torch.Tensor:
    return torch.rand(rollouts.completion_ids.shape, generator=torch.Generator().manual_seed(0))


def replacements(policy, monkeypatch) -> list[tuple[list[int], int]]:
    """What `perturb` decodes on from: (prefix, replacement) pairs, filled as it runs."""
    seen: list[tuple[list[int], int]] = []
    generate = policy.generate

    def spy(**options):
        if "output_logits" not in options:
            for ids, mask in zip(options["input_ids"], options["attention_mask"], strict=True):
                *prefix, last = ids[mask.bool()].tolist()
                seen.append((prefix, last))
        return generate(**options)

    monkeypatch.setattr(policy, "generate", spy)
    return seen


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_it_equals_a_naive_loop(policy, rollouts, scores, batch_size):
    """With all tokens of both groups and one alternative, nothing is left to chance."""
    assert len(set(rollouts.lengths.tolist())) > 1
    rows = []
    for i, n in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]].tolist()
        completion = rollouts.completion_ids[i, :n].tolist()
        order = sorted(range(n - 1), key=lambda t: scores[i, t].item())
        size = max(1, int(0.3 * (n - 1)))
        row = []
        for group in (order[-size:], order[:size]):
            overlaps = []
            for t in group:
                logits = logits_after(policy, prompt + completion[:t])
                other = next(v for v in logits.argsort(descending=True).tolist() if v not in (completion[t], EOS))
                after = set(greedy(policy, [*prompt, *completion[:t], other], MOST - t - 1))
                before = set(completion[t + 1 :])
                overlaps.append(len(before & after) / len(before | after))
            row += [statistics.fmean(overlaps), statistics.fmean(t / (n - 1) for t in group)]
        rows.append([*row, size])
    high, high_at, low, low_at, size = zip(*rows, strict=True)
    report = perturb(policy, rollouts, scores, **IDS, share=0.3, per_completion=99, top_k=2, batch_size=batch_size)
    assert (report.completions, report.perturbations) == (4, sum(size))
    assert report.high == pytest.approx(statistics.fmean(high))
    assert report.low == pytest.approx(statistics.fmean(low))
    assert report.difference == pytest.approx(report.high - report.low)
    assert report.high_is_lower == statistics.fmean(a < b for a, b in zip(high, low, strict=True))
    assert report.high_position == pytest.approx(statistics.fmean(high_at))
    assert report.low_position == pytest.approx(statistics.fmean(low_at))
    assert report.interval is None, "four completions are too few"


def test_replacements_are_the_rest_of_the_top_k(policy, rollouts, scores, monkeypatch):
    seen = replacements(policy, monkeypatch)
    for seed in range(6):
        perturb(policy, rollouts, scores, **IDS, top_k=4, seed=seed)
    assert len(seen) == 6 * 8
    ranks = set()
    for prefix, replacement in seen:
        ranked = [v for v in logits_after(policy, prefix).argsort(descending=True).tolist() if v != EOS]
        ranks.add(ranked.index(replacement))
    assert ranks == {1, 2, 3}


def test_the_end_of_sequence_is_no_replacement(policy, monkeypatch):
    """Here it would be the runner-up of the only token that may be replaced."""
    never = VOCABULARY - 2
    rollouts = greedy_rollouts(policy, (5,), eos=never)
    prompt = rollouts.prompt_ids[0][rollouts.prompt_mask[0]].tolist()
    first, second = logits_after(policy, prompt).topk(3).indices.tolist()[:2]
    assert rollouts.completion_ids[0, 0] == first
    assert rollouts.lengths[0] == MOST
    scores = -torch.arange(MOST).float()[None]
    taken = {}
    for eos in (never, second):
        seen = replacements(policy, monkeypatch)
        perturb(policy, rollouts, scores, **{**IDS, "eos_token_id": eos}, share=0.01, top_k=2)
        taken[eos] = [replacement for prefix, replacement in seen if prefix == prompt]
    assert taken[never] == [second]
    assert len(taken[second]) == 1
    assert taken[second][0] not in (first, second)


def test_the_seed_decides(policy, rollouts, scores):
    reports = [perturb(policy, rollouts, scores, **IDS, share=0.5, seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]


def test_the_batch_size_does_not(policy, rollouts, scores):
    together, apart = (perturb(policy, rollouts, scores, **IDS, share=0.5, batch_size=size) for size in (None, 3))
    assert together == apart


def test_groups_never_meet_and_the_last_token_stays(policy, rollouts, monkeypatch):
    """Equal scores: the first half is high, the second low, and the last token is in neither."""
    seen = replacements(policy, monkeypatch)
    row = rollouts.rows(slice(0, 1))
    n, prompt = int(row.lengths[0]), int(row.prompt_mask[0].sum())
    report = perturb(policy, row, torch.zeros(row.completion_ids.shape), **IDS, share=0.5, per_completion=99)
    half = (n - 1) // 2
    replaced = [len(prefix) - prompt for prefix, _ in seen]
    assert sorted(replaced[:half]) == list(range(half))
    assert sorted(replaced[half:]) == list(range(n - 1 - half, n - 1))
    assert report.interval is None


def test_only_masked_tokens_are_replaced(policy, rollouts, scores):
    mask = torch.zeros(rollouts.completion_ids.shape, dtype=torch.bool)
    mask[:, [1, 3]] = True
    rising = torch.arange(mask.shape[1]).expand_as(scores).float()
    report = perturb(policy, rollouts, rising, **IDS, mask=mask)
    last = [n - 1 for n in rollouts.lengths.tolist()]
    assert report.high_position == pytest.approx(statistics.fmean(3 / n for n in last))
    assert report.low_position == pytest.approx(statistics.fmean(1 / n for n in last))


def test_completions_without_a_choice_are_left_out(policy, rollouts, scores):
    """Two tokens: only the first has something after it."""
    width = rollouts.completion_ids.shape[1]
    lengths = torch.tensor([2, 3, 1, 0])
    short = replace(rollouts, completion_mask=torch.arange(width) < lengths[:, None])
    report = perturb(policy, short, scores, **IDS, seed=4)
    assert (report.completions, report.perturbations) == (1, 1)
    assert (report.high, report.low, report.high_is_lower) == (0, 0, 0)  # a tie is not lower
    with pytest.raises(ValueError, match="two tokens to choose between"):
        perturb(policy, short.rows(slice(2, 4)), scores[2:], **IDS)


def test_nothing_is_left_behind(rollouts, scores):
    """A policy in training, with dropout, gives what it gives in evaluation, and stays as it was."""
    policy = tiny_lora_policy().double()
    expected = perturb(policy, rollouts, scores, **IDS, share=0.5)
    policy.train()
    policy.get_decoder().norm.eval()
    settings = policy.generation_config.to_dict()
    before = [(module.training, [p.requires_grad for p in module.parameters()]) for module in policy.modules()]
    state = torch.get_rng_state()
    assert perturb(policy, rollouts, scores, **IDS, share=0.5) == expected
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in policy.modules()] == before
    assert policy.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), state)


def test_enough_completions_have_an_interval_and_the_report_is_json(policy):
    rollouts = greedy_rollouts(policy, prompts=(5, 3, 4, 6, 2, 7, 8, 1, 5, 3))
    scores = torch.rand(rollouts.completion_ids.shape, generator=torch.Generator().manual_seed(0))
    report = perturb(policy, rollouts, scores, **IDS)
    assert report.completions >= 8
    assert report.interval[0] < report.difference < report.interval[1]
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["interval"] == list(report.interval)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.6}, "share"),
        ({"share": 0}, "share"),
        ({"per_completion": 0}, "per_completion"),
        ({"top_k": 1}, "top_k"),
        ({"top_k": VOCABULARY}, "top_k must be less than the vocabulary"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 5}, "longest completion"),
        ({"mask": torch.ones(1, 2)}, "mask must have shape"),
    ],
)
def test_bad_parameters(policy, rollouts, scores, options, message):
    with pytest.raises(ValueError, match=message):
        perturb(policy, rollouts, scores, **{**IDS, **options})


def test_bad_scores(policy, rollouts, scores):
    with pytest.raises(ValueError, match="scores must have shape"):
        perturb(policy, rollouts, scores[:2], **IDS)
    unknown = scores.clone()
    unknown[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        perturb(policy, rollouts, unknown, **IDS)
