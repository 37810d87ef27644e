import pytest
import torch

from tokencredit.testbed.evaluate import Accuracy, completion_texts, evaluate, sample
from tokencredit.testbed.muon import Muon, orthogonalise
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import task
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy

TINY = WarmUp(steps=6, batch_size=4, size=PolicySize(width=32, layers=1, heads=2, kv_heads=1, feed_forward=32))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))


def parameters(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_warm_up_learns_and_the_second_run_starts_at_once(tmp_path):
    losses = []
    recipe = WarmUp(steps=40, batch_size=8, size=TINY.size)
    first, cached = warmed_up_policy(task("gather"), recipe, lambda step, loss: losses.append(loss))
    assert not cached
    assert losses[-1] < 0.8 * losses[0]
    second, cached = warmed_up_policy(task("gather"), recipe, lambda step, loss: pytest.fail("trained again"))
    assert cached
    assert torch.equal(parameters(first), parameters(second))
    assert list((tmp_path / "cache").rglob("model.safetensors"))


def test_another_recipe_or_task_is_another_checkpoint():
    base = parameters(warmed_up_policy(task("gather"), TINY)[0])
    for other_task, recipe in (("gather", WarmUp(**{**vars(TINY), "seed": 1})), ("chain", TINY)):
        policy, cached = warmed_up_policy(task(other_task), recipe)
        assert not cached
        assert not torch.equal(parameters(policy), base)


def test_warm_up_repeats_itself(tmp_path, monkeypatch):
    first = parameters(warmed_up_policy(task("gather"), TINY)[0])
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "other"))
    assert torch.equal(parameters(warmed_up_policy(task("gather"), TINY)[0]), first)


def test_an_interrupted_warm_up_leaves_no_checkpoint(tmp_path):
    def stop(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmed_up_policy(task("gather"), TINY, stop)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not warmed_up_policy(task("gather"), TINY)[1]


def test_muon_steps_along_an_orthogonal_matrix():
    torch.manual_seed(0)
    for shape in ((6, 4), (4, 6)):
        update = orthogonalise(torch.randn(3, *shape))
        assert update.shape == (3, *shape)
        singular = torch.linalg.svdvals(update)
        assert singular.min() > 0.5
        assert singular.max() < 1.4
    p = torch.nn.Parameter(torch.zeros(6, 4))
    p.grad = torch.randn(6, 4)
    Muon([p], lr=0.1).step()
    assert torch.linalg.svdvals(p.detach() / 0.1 / 1.5**0.5).max() < 1.4


def test_the_interval_is_wilsons():
    a = Accuracy.of([True] * 8 + [False] * 2, [5] * 10)
    assert (a.value, a.count, a.tokens) == (0.8, 10, 5)
    assert (a.low, a.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Accuracy.of([True] * 3, [1] * 3).high == 1
    with pytest.raises(ValueError, match="no completions"):
        Accuracy.of([], [])


def test_sampling_ends_at_the_first_eos_and_keeps_the_random_state():
    policy, tokenizer = build_policy(TINY.size), build_tokenizer()
    prompts = ["Q:a=1+2?a\n", "Q:a=1+2,b=3+4?a,b\n", "Q:b=1*2?b\n"]
    state = torch.random.get_rng_state()
    a = sample(policy, tokenizer, prompts, max_new_tokens=150, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    ended = [
        (ids[mask] == tokenizer.eos_token_id) for ids, mask in zip(a.completion_ids, a.completion_mask, strict=True)
    ]
    assert any(e.any() for e in ended)
    assert all(not e[:-1].any() for e in ended)
    assert all("<eos>" not in text for text in completion_texts(a, tokenizer))
    b = sample(policy, tokenizer, prompts, max_new_tokens=150, seed=1)
    assert torch.equal(a.completion_ids, b.completion_ids)


def test_sampling_in_batches_pads_them_together():
    policy, tokenizer = build_policy(TINY.size), build_tokenizer()
    prompts = ["Q:a=1+2?a\n", "Q:a=1+2,b=3+4?a,b\n", "Q:b=1*2?b\n"]
    whole = sample(policy, tokenizer, prompts, max_new_tokens=10, temperature=0)
    split = sample(policy, tokenizer, prompts, max_new_tokens=10, temperature=0, batch_size=2)
    assert completion_texts(split, tokenizer) == completion_texts(whole, tokenizer)


def test_evaluation_counts_what_the_verifier_accepts():
    class Always(type(task("gather"))):
        def verify(self, problem, completion):
            return problem.prompt.count(",") % 2 == 0

    problems = generate_problems(task("gather"), 10, held_out=True, seed=0)
    expected = sum(p.prompt.count(",") % 2 == 0 for p in problems) / 10
    assert evaluate(build_policy(TINY.size), build_tokenizer(), Always(), problems).value == expected
