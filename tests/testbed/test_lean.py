"""The lean loop makes TRL's updates, and its own decoding and bookkeeping do what they say."""

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tokencredit as tc
from tokencredit.testbed import lean, training
from tokencredit.testbed.evaluate import complete, evaluate
from tokencredit.testbed.lean import own_credit, prompt_batches, roll_out, train_lean
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.tasks import task
from tokencredit.testbed.training import Budget
from tokencredit.trainers.trl import CreditGRPOTrainer

Gather = type(task("gather"))
BUDGET = Budget(
    steps=5, prompts=4, group_size=4, updates_per_step=2, learning_rate=1e-3, lora_rank=2, evaluate_every=2, seed=3
)
TIMES = ("credit/seconds", "credit/share_of_step")


class Guessable(Gather):
    """Right answers are common in what a random policy writes."""

    max_new_tokens = 14

    def verify(self, problem, completion):
        return sum(map(ord, problem.prompt + completion)) % 3 == 0


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def problems():
    return generate_problems(task("gather"), 13, held_out=False, seed=0)


@pytest.fixture(scope="module")
def policy(tokenizer):
    """A random policy that closes its reasoning, and ends, now and then."""
    policy = build_policy(PolicySize(width=32, layers=2, heads=2, feed_forward=32))
    likely = 0.6 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(["</think>", "<eos>"])] = likely
    return policy


@pytest.fixture(scope="module")
def adapted(policy):
    """The same with a LoRA adapter that has been trained."""
    found = lean._trainable_copy(policy, BUDGET, True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in found.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return found.eval()


def run(policy, tokenizer, problems, m="uniform", budget=BUDGET, held_out=(), **given):
    """The trained policy, and the rows that it gave."""
    rows = []
    m = tc.method(m) if isinstance(m, str) else m
    return train_lean(policy, tokenizer, Guessable(), m, problems, held_out, budget, rows.append, **given), rows


class Recording(CreditGRPOTrainer):
    """Keeps what TRL generated, how it split it into updates, and what each update was."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen.trainer = self
        self.seen.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        rollouts = self._rollouts(batch)
        self.seen.batches.append(replace(rollouts, rewards=self._weighted_rewards()))
        self.seen.prompts.append([x["prompt"] for x in inputs])
        return {**batch, "row": torch.arange(len(rollouts))}

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.seen.order.append(inputs["row"])
        self.seen.losses.append(loss.item())
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        self.seen.norms.append(float(norm))
        return norm


def through_trl(policy, tokenizer, problems, m, budget, folder, monkeypatch):
    seen = SimpleNamespace(batches=[], prompts=[], order=[], losses=[], norms=[], rows=[])
    monkeypatch.setattr(training, "CreditGRPOTrainer", type("Recorded", (Recording,), {"seen": seen}))
    seen.trained = training.train(policy, tokenizer, Guessable(), m, problems, [], budget, folder, seen.rows.append)
    return seen


def replayed(seen, policy, tokenizer, problems, m, budget, monkeypatch):
    """The lean loop on TRL's completions, split into updates as TRL did; its own credit, losses and weights."""
    found = SimpleNamespace(prompts=[], losses=[], norms=[])

    def replay(policy, tokenizer, task, asked, copies, generator):
        found.prompts.append([p.prompt for p in asked for _ in range(copies)])
        return seen.batches[len(found.prompts) - 1]

    class Replayed(lean.Updates):
        def __call__(self, rollouts, advantages, order):
            order = torch.cat(seen.order[self.done : self.done + budget.updates_per_step])
            losses, norms = zip(*super().__call__(rollouts, advantages, order), strict=True)
            found.losses += losses
            found.norms += norms

    monkeypatch.setattr(lean, "roll_out", replay)
    monkeypatch.setattr(lean, "Updates", Replayed)
    found.trained, found.rows = run(policy, tokenizer, problems, m, budget)
    return found


# A fresh adapter tells the policy from its reference by rounding alone, which a small eps would make credit of.
METHODS = {name: tc.method(name) for name in ("uniform", "atpo", "surprisal", "arca")}
METHODS["divergence"] = tc.method("divergence", eps=0.1)


@pytest.mark.filterwarnings("ignore:the credit of")
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_on_the_same_completions_updates_are_those_of_trl(
    name, updates, policy, tokenizer, problems, tmp_path, monkeypatch
):
    m, budget = METHODS[name], replace(BUDGET, updates_per_step=updates)
    trl = through_trl(policy, tokenizer, problems, m, budget, tmp_path, monkeypatch)
    own = replayed(trl, policy, tokenizer, problems, m, budget, monkeypatch)

    assert own.prompts == trl.prompts, "the order of the problems, over more than one epoch"
    assert len(trl.losses) == len(own.losses) == 5 * updates
    assert max(map(abs, trl.losses)) > 0.01
    spread = torch.cat([batch.rewards for batch in trl.batches]).view(-1, budget.group_size).std(1)
    assert (spread == 0).any(), "completions without an advantage"
    torch.testing.assert_close(own.losses, trl.losses, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(own.norms, trl.norms, atol=1e-6, rtol=1e-4)

    rate = budget.lora_learning_rate if m.needs.adapter else budget.learning_rate
    expected = dict(trl.trained.policy.named_parameters())
    for key, p in own.trained.policy.named_parameters():
        torch.testing.assert_close(p, expected[key], atol=rate / 1000, rtol=0)
    assert max((p - trl.start[key]).abs().max().item() for key, p in expected.items()) > rate

    for mine, theirs in zip(own.rows, trl.rows, strict=True):
        assert mine.keys() == theirs.keys()
        shared = [key for key in mine if key not in TIMES]
        assert [mine[key] for key in shared] == pytest.approx([theirs[key] for key in shared], abs=1e-5)
    assert own.trained.tokens == trl.trained.tokens


@pytest.mark.parametrize("which", ["policy", "adapted"])
def test_greedy_completions_are_those_of_generate(which, request, tokenizer, problems):
    chosen = request.getfixturevalue(which)
    encoded = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    expected = complete(
        chosen, tokenizer, [(encoded.input_ids, encoded.attention_mask)], max_new_tokens=Guessable.max_new_tokens
    )
    found = roll_out(chosen, tokenizer, Guessable(), problems, copies=1)
    assert len(set(found.lengths.tolist())) > 1
    assert torch.equal(found.completion_mask, expected.completion_mask)
    assert torch.equal(found.completion_ids[found.completion_mask], expected.completion_ids[expected.completion_mask])


def test_completions_are_sampled_from_the_policy_with_their_rewards(policy, tokenizer, problems):
    copies, guessable = 3000, Guessable()
    rollouts = roll_out(policy, tokenizer, guessable, problems[:1], copies, torch.Generator().manual_seed(0))
    ids = tokenizer(problems[0].prompt, return_tensors="pt").input_ids
    p = policy(ids).logits[0, -1].softmax(-1).detach()
    seen = torch.bincount(rollouts.completion_ids[:, 0], minlength=len(p)) / copies
    assert ((seen - p).abs() < 5 * (p * (1 - p) / copies).sqrt() + 1 / copies).all()
    for i in range(5):
        written = rollouts.completion_ids[i, : rollouts.lengths[i]].tolist()
        text = tokenizer.decode(written).removesuffix("<eos>")
        assert rollouts.rewards[i] == guessable.verify(problems[0], text)


def test_a_run_repeats_itself_and_leaves_everything_else_alone(policy, tokenizer, problems):
    start, state = [p.clone() for p in policy.parameters()], torch.get_rng_state()
    first, first_rows = run(policy, tokenizer, problems, "arca")
    torch.manual_seed(99)
    again, again_rows = run(policy, tokenizer, problems, "arca")
    torch.set_rng_state(state)
    other, _ = run(policy, tokenizer, problems, "arca", replace(BUDGET, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(start, policy.parameters(), strict=True))

    def timeless(rows):
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]

    assert timeless(first_rows) == timeless(again_rows)
    pairs = zip(first.policy.parameters(), again.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.policy.parameters(), other.policy.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_credit_of_ones_own_sees_the_problems_and_replaces_the_methods(policy, tokenizer, problems):
    m, batches = tc.method("position"), []

    def nothing(batch):
        batches.append(batch)
        return replace(own_credit(m)(batch), advantages=torch.zeros(batch.rollouts.completion_mask.shape))

    trained, rows = run(policy, tokenizer, problems, m, assign_credit=nothing)
    pairs = zip(policy.parameters(), trained.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "no advantage, no gradient"
    assert [batch.updates for batch in batches] == [0, 2, 4, 6, 8]
    for batch, row in zip(batches, rows, strict=True):
        prompts = [ids[mask] for ids, mask in zip(batch.rollouts.prompt_ids, batch.rollouts.prompt_mask, strict=True)]
        asked = [batch.problems[group].prompt for group in batch.rollouts.group.tolist()]
        assert tokenizer.batch_decode(prompts) == asked
        torch.testing.assert_close(batch.advantages, tc.outcome.grpo(batch.rollouts.rewards, batch.rollouts.group))
        assert row["credit/gini"] > 0


def test_any_object_with_a_methods_interface_is_told_the_update(policy, tokenizer, problems):
    inner, steps = tc.method("surprisal"), []

    class Wrapped:
        name, needs = "wrapped", inner.needs

        def __call__(self, rollouts, advantages, signals, step=None):
            steps.append(step)
            return inner(rollouts, advantages, signals, step=step)

    wrapped, _ = run(policy, tokenizer, problems, Wrapped())
    plain, _ = run(policy, tokenizer, problems, inner)
    assert steps == [0, 2, 4, 6, 8]
    assert (wrapped.method, plain.method) == ("wrapped", "surprisal")
    pairs = zip(wrapped.policy.parameters(), plain.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_momentum_moves_on_where_no_completion_has_an_advantage(policy, tokenizer, problems):
    moving = copy.deepcopy(policy)
    update = lean.Updates(moving, 1e-3, 1)
    update.done = 5
    rollouts = roll_out(policy, tokenizer, Guessable(), problems, 2, torch.Generator().manual_seed(0))
    order = torch.arange(len(rollouts))
    update(rollouts, rollouts.completion_mask.float(), order)
    weights = [p.clone() for p in moving.parameters()]
    (loss, norm), *_ = update(rollouts, torch.zeros(rollouts.completion_mask.shape), order)
    assert loss == norm == 0
    assert not any(torch.equal(a, b) for a, b in zip(weights, moving.parameters(), strict=True))


def test_accuracy_is_that_of_evaluate_every_few_steps_and_at_the_end(policy, tokenizer, problems):
    trained, rows = run(policy, tokenizer, problems, held_out=problems)
    assert [row["step"] for row in rows if "accuracy" in row] == [2, 4, 5]
    assert rows[-1]["accuracy"] == pytest.approx(evaluate(trained.policy, tokenizer, Guessable(), problems).value)
    assert trained.seconds > 0
    assert trained.tokens == rows[-1]["tokens"] > rows[0]["tokens"] > 0
    assert not any("accuracy" in row for row in run(policy, tokenizer, problems)[1])


def test_every_problem_comes_once_an_epoch_and_few_are_repeated(problems):
    epochs = prompt_batches(problems[:12], BUDGET)
    for _ in range(2):
        drawn = [p.prompt for _ in range(3) for p in next(epochs)]
        assert Counter(drawn) == Counter(p.prompt for p in problems[:12])
    assert sorted(p.prompt for p in next(prompt_batches(problems[:2], BUDGET))) == sorted(
        2 * [p.prompt for p in problems[:2]]
    )


def test_says_what_cannot_be(policy, tokenizer, problems):
    with pytest.raises(ValueError, match="16 rollouts a step cannot be split into 3 equal updates"):
        run(policy, tokenizer, problems, budget=replace(BUDGET, updates_per_step=3))
    with pytest.raises(ValueError, match="no training problems"):
        run(policy, tokenizer, [])
