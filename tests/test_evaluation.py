"""Evaluation: what is sampled, how it is scored, and what the figures say."""

from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch
from datasets import Dataset
from scipy.stats import binomtest

from tokencredit.evaluation import Scored, evaluate, pass_at_k
from tokencredit.prompts import encode_prompt
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

TOKENIZER = build_tokenizer()
TEMPLATE = "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
TEXTS = ["Q:a=1?a\n", "Q:a=1,b=a+22?b\n", "Q:c=3?c\n", "Q:d=4,e=d*d,f=e+1?f\n", "Q:g=5?g\n"]
PROBLEMS = Dataset.from_dict({"prompt": TEXTS, "answer": ["1", "2", "3", "4", "5"]})
ENDS = [2, *range(8, 30)]


@pytest.fixture
def policy():
    """Random, with many ends of sequence: its completions differ in length."""
    model = build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    model.generation_config.eos_token_id = ENDS
    return model


def chat_tokenizer(template=TEMPLATE):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def odd(completions, completion_ids, **columns):
    """Right where the last token is odd."""
    return [float(ids[-1] % 2) for ids in completion_ids]


def sampled(policy, problems=PROBLEMS, reward=odd, tokenizer=TOKENIZER, **settings):
    """The report, and the completions as they came."""
    came = []
    report = evaluate(
        policy, tokenizer, problems, reward, on_progress=lambda _, new: came.extend(new), max_new_tokens=12, **settings
    )
    return report, came


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert 0 < pass_at_k(100_000, 1, 50_000) < 1
    for wrong in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(*wrong)


def test_greedy_is_what_the_model_does_with_each_prompt_alone(policy):
    report, came = sampled(policy, batch_size=3)
    assert [s.row for s in came] == list(range(5))
    for scored, text in zip(came, TEXTS, strict=True):
        ids = TOKENIZER(text, return_tensors="pt").input_ids
        for _ in range(12):
            logits = policy(ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            if ids[0, -1] in ENDS:
                break
        made = ids[0, len(TOKENIZER(text).input_ids) :].tolist()
        assert scored.completion == TOKENIZER.decode(made, skip_special_tokens=True)
        assert scored.tokens == len(made)
        assert scored.truncated == (made[-1] not in ENDS)
        assert scored.reward == made[-1] % 2
    assert len({s.tokens for s in came}) > 1
    assert sampled(policy, batch_size=1)[0] == sampled(policy, batch_size=64)[0] == report


def test_the_models_own_sampling_settings_do_not_apply_and_come_back(policy):
    expected = sampled(policy)[1]
    policy.generation_config.repetition_penalty = 9.0
    policy.generation_config.do_sample = True
    own = policy.generation_config
    policy.train()
    assert sampled(policy)[1] == expected
    assert policy.generation_config is own
    assert policy.training


def test_the_seed_decides_the_samples(policy):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    settings = {"samples": 4, "temperature": 1.0, "batch_size": 8}
    first = sampled(policy, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert sampled(policy, seed=3, **settings) == first
    assert sampled(policy, seed=4, **settings)[1] != first[1]


def test_a_sample_depends_on_its_problem_and_the_seed_alone(policy):
    """Not on the batch, on the problems after it, or on how far the run got before it was interrupted."""
    settings = {"samples": 3, "temperature": 1.0, "seed": 2}
    report, came = sampled(policy, batch_size=6, **settings)
    for batch_size in (1, 4, 64):
        assert sampled(policy, batch_size=batch_size, **settings) == (report, came)
    assert sampled(policy, PROBLEMS.select(range(2)), **settings)[1] == came[:6]
    for count in (0, 1, 4, 5):
        resumed, rest = sampled(policy, batch_size=6, done=came[: 3 * count], **settings)
        assert resumed == report
        assert rest == came[3 * count :]
    assert len({s.completion for s in came}) > 10


def test_greedy_goes_on_too(policy):
    report, came = sampled(policy)
    assert sampled(policy, done=came[:2]) == (report, came[2:])


def test_top_p_keeps_the_likely_tokens(policy):
    greedy = [s.completion for s in sampled(policy)[1]]
    nearly = [s.completion for s in sampled(policy, temperature=1.0, top_p=1e-6)[1]]
    assert nearly == greedy


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_the_figures_are_those_of_the_completions(policy, batch_size):
    report, came = sampled(policy, samples=5, temperature=1.0, batch_size=batch_size)
    assert [s.row for s in came] == [row for row in range(5) for _ in range(5)]
    right = [sum(s.reward for s in came if s.row == row) for row in range(5)]
    assert report.reward.value == pytest.approx(sum(right) / 25)
    assert list(report.pass_at_k) == [1, 2, 4]
    for k, estimate in report.pass_at_k.items():
        assert estimate.value == pytest.approx(sum(pass_at_k(5, int(c), k) for c in right) / 5)
        assert estimate.low is None or 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert report.pass_at_k[1].value == pytest.approx(report.reward.value)
    assert report.tokens == pytest.approx(sum(s.tokens for s in came) / 25)
    assert report.truncated == pytest.approx(sum(s.truncated for s in came) / 25)
    content = json.loads(json.dumps(report.as_json()))
    assert content["pass_at_k"]["4"]["value"] == report.pass_at_k[4].value
    assert (content["problems"], content["samples"]) == (5, 5)


def test_one_sample_has_wilsons_interval(policy):
    report, came = sampled(policy)
    interval = binomtest(int(sum(s.reward for s in came)), 5).proportion_ci(0.95, method="wilson")
    assert (report.reward.low, report.reward.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    always = sampled(policy, reward=lambda completions, **_: [1.0] * len(completions))[0]
    assert always.reward.low < 1 == always.reward.high


def test_a_reward_of_fractions_has_a_mean_and_no_pass_at_k(policy):
    report, came = sampled(policy, reward=lambda completion_ids, **_: [1 / len(ids) for ids in completion_ids])
    assert report.pass_at_k == {}
    assert report.reward.value == pytest.approx(sum(1 / s.tokens for s in came) / 5)


@pytest.mark.parametrize(
    ("rewards", "bounded"),
    [
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.25, 0.75], False),
        ([0.1] * 12, False),
        ([0.25, 0.75] * 3 + [0.5], False),
        ([0.25, 0.75] * 4, True),
        ([1.0, 1.0], True),
        ([0.0], True),
    ],
)
def test_no_interval_is_given_that_the_problems_do_not_support(policy, rewards, bounded):
    """Fractions need eight problems that differ; 0 and 1 have Wilson's interval, which is wide for a few."""
    problems = Dataset.from_dict({"prompt": [TEXTS[0]] * len(rewards), "worth": rewards})
    found = sampled(policy, problems, reward=lambda completions, worth, **_: worth)[0].reward
    assert found.value == pytest.approx(sum(rewards) / len(rewards))
    assert (found.low is not None) == (found.high is not None) == bounded
    assert not bounded or found.high - found.low > 0.05


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("11111", r"returned '11111' \(str\)"),
        (1.0, r"returned 1.0 \(float\)"),
        (torch.tensor(1.0), r"returned tensor\(1.\) \(Tensor\)"),
        (None, r"returned None \(NoneType\)"),
        ({"a": 1.0}, r"\(dict\)"),
        ([[1.0]] * 5, r"gave \[1.0\] for completion 0"),
        ([1.0, "1", 1.0, 1.0, 1.0], "gave '1' for completion 1"),
        ([1.0, math.nan, 1.0, 1.0, 1.0], "gave nan for completion 1"),
        ([1.0, 10**400, 1.0, 1.0, 1.0], "gave inf for completion 1"),
        ([1.0, 1j, 1.0, 1.0, 1.0], "gave 1j for completion 1"),
        (torch.ones(5, 1), "for completion 0"),
    ],
)
def test_what_a_reward_must_return(policy, returned, said):
    def my_own(**_):
        return returned

    with pytest.raises(ValueError, match=f"the reward function my_own .*{said}"):
        sampled(policy, reward=my_own)


@pytest.mark.parametrize("returned", [torch.tensor([1, 0, 1, 0, 1]), (True, False, 1, 0.0, torch.tensor(1.0))])
def test_tensors_tuples_and_truth_values_are_numbers_too(policy, returned):
    report, came = sampled(policy, reward=lambda **_: returned)
    assert [s.reward for s in came] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert report.reward.value == pytest.approx(0.6)


def test_a_reward_is_called_as_trl_calls_it(policy):
    calls = []

    def reward(**given):
        calls.append(given)
        return [0.0] * len(given["completions"])

    sampled(policy, reward=reward, samples=4, temperature=1.0, batch_size=2)
    assert [given["answer"] for given in calls] == [[str(n)] * 4 for n in range(1, 6)]
    assert [given["prompts"] for given in calls] == [[text] * 4 for text in TEXTS]
    assert all(set(given) == {"prompts", "completions", "completion_ids", "answer"} for given in calls)


def test_chat_messages_go_through_the_template_and_come_back_as_messages(policy):
    chat = Dataset.from_dict({"prompt": [[{"role": "user", "content": t.strip()}] for t in TEXTS]})
    as_text = Dataset.from_dict({"prompt": [f"{t.strip()};<think>" for t in TEXTS]})
    seen = []

    def reward(completions, **_):
        seen.extend(completions)
        return [0.0] * len(completions)

    came = sampled(policy, chat, reward, chat_tokenizer())[1]
    assert came == sampled(policy, as_text, lambda completions, **_: [0.0] * len(completions))[1]
    assert seen == [[{"role": "assistant", "content": s.completion}] for s in came]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}", "has no generation prompt"),
        ("{{ raise_exception('no system role') }}", "refuses the prompt.*no system role"),
    ],
)
def test_a_chat_template_that_does_not_fit_is_an_error(template, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt([{"role": "user", "content": "a"}], chat_tokenizer(template))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "2 samples at temperature 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"temperature": math.nan}, "expected temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"done": [Scored(1, "1", 1, False, 1.0)]}, "done must hold 1 completions of each of the first problems"),
        ({"done": [Scored(i, "1", 1, False, 1.0) for i in range(6)]}, "done must hold"),
        ({"reward": lambda completions, **_: [1.0]}, "gave 1 values for 5"),
        ({"reward": lambda completions, **_: [None] * 5}, "problem 0 is None"),
        ({"problems": Dataset.from_dict({"prompt": []})}, "got 0"),
        ({"problems": Dataset.from_dict({"prompt": ["Q:a=1?a", ""]})}, "row 1: the prompt '' has no token"),
    ],
)
def test_what_does_not_fit_is_an_error(policy, settings, message):
    with pytest.raises(ValueError, match=message):
        sampled(policy, **settings)


def test_a_reward_that_cannot_score_the_problems_says_so_before_the_model_runs(policy):
    def reward(**_):
        raise AssertionError("never called")

    def refuse(columns):
        raise ValueError(f"cannot score {columns['answer'][1]}")

    reward.check = refuse
    with pytest.raises(ValueError, match="cannot score 2"):
        sampled(policy, reward=reward)


def test_padding_needs_no_pad_token(policy):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    expected = sampled(policy)[0]
    assert sampled(policy, tokenizer=tokenizer)[0] == expected
