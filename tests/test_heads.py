import dataclasses
import json
import statistics

import pytest
import torch
from accelerate import cpu_offload
from conftest import make_rollouts, tiny_lora_policy, tiny_policy

import tokencredit as tc
from tokencredit.ablation import ablated_sequences
from tokencredit.head_files import HeldOut
from tokencredit.head_ranking import StepPairs, above_chance, count_pairs, order_steps

ROLLOUTS = make_rollouts((14, 14, 11, 6), (6, 3, 5, 4), (9, 12, 8, -1))
ESSENTIAL = torch.tensor(
    [[True, False, True, False], [False, True, False, True], [True, True, False, False], [True, False, True, False]]
)


def test_it_equals_counting_pairs():
    policy = tiny_policy()
    attention = tc.collect(policy, ROLLOUTS, tc.Needs(answer_attention=frozenset(range(4)))).answer_attention
    expected = {}
    for layer in range(4):
        for head in range(4):
            outcomes = []
            for i in range(3):  # the fourth has no answer
                steps = ROLLOUTS.step_index[i]
                score = {k: attention[layer][i, head][steps == k].mean().item() for k in set(steps.tolist()) - {-1}}
                for a in score:
                    for b in score:
                        if ESSENTIAL[i, a] and not ESSENTIAL[i, b]:
                            outcomes.append(1.0 if score[a] > score[b] else 0.5 if score[a] == score[b] else 0.0)
            expected[layer, head] = (sum(outcomes) / len(outcomes), len(outcomes))
    ranks = tc.rank_heads(policy, ROLLOUTS, ESSENTIAL)
    assert {(r.layer, r.head): (pytest.approx(r.sra), r.pairs) for r in ranks} == expected
    assert [r.sra for r in ranks] == sorted((r.sra for r in ranks), reverse=True)


def test_a_head_that_knows_scores_one_and_its_opposite_zero():
    """Labels made from a head's own attention."""
    policy = tiny_policy()
    attention = tc.collect(policy, ROLLOUTS, tc.Needs(answer_attention=frozenset({2}))).answer_attention[2][:, 1]
    made = torch.zeros_like(ESSENTIAL)
    for i in range(3):
        steps = ROLLOUTS.step_index[i]
        score = {k: attention[i][steps == k].mean().item() for k in set(steps.tolist()) - {-1}}
        made[i, max(score, key=score.get)] = True
    by_head = {(r.layer, r.head): r.sra for r in tc.rank_heads(policy, ROLLOUTS, made)}
    assert by_head[2, 1] == 1.0
    assert {(r.layer, r.head): r.sra for r in tc.rank_heads(policy, ROLLOUTS, ~made)}[2, 1] == 0.0


def test_masked_steps_do_not_count():
    mask = torch.ones_like(ESSENTIAL)
    mask[0] = False
    masked = tc.rank_heads(tiny_policy(), ROLLOUTS, ESSENTIAL, mask)
    assert masked[0].pairs < tc.rank_heads(tiny_policy(), ROLLOUTS, ESSENTIAL)[0].pairs


def test_bad_input():
    policy = tiny_policy()
    with pytest.raises(ValueError, match="mark_spans"):
        tc.rank_heads(policy, make_rollouts(step_index=None), ESSENTIAL)
    with pytest.raises(ValueError, match="K >= 4"):
        tc.rank_heads(policy, ROLLOUTS, ESSENTIAL[:, :2])
    with pytest.raises(ValueError, match="both an essential and a redundant"):
        tc.rank_heads(policy, ROLLOUTS, torch.ones_like(ESSENTIAL))


def test_ties_count_half():
    """Where all attention is equal, every head is as good as a coin."""
    policy = tiny_policy()
    for p in policy.parameters():
        p.data.zero_()
    r = make_rollouts((8,), (2,), (6,))  # uniform attention of the answer's rows, so equal step scores
    ranks = tc.rank_heads(policy, r, torch.tensor([[True, False]]))
    assert {rank.sra for rank in ranks} == {0.5}
    assert [(rank.layer, rank.head) for rank in ranks] == sorted((rank.layer, rank.head) for rank in ranks)


def step_pairs(right, pairs, prompt=None, tied=None, later=None):
    """`StepPairs` of completions in which each head orders so many of the pairs rightly, as (B, N) numbers."""
    right, pairs = torch.tensor(right, dtype=torch.float64), torch.tensor(pairs)
    return StepPairs(
        heads=tuple((0, n) for n in range(right.shape[1])),
        right=right,
        tied=torch.zeros_like(right).long() if tied is None else torch.tensor(tied),
        later=torch.zeros_like(pairs) if later is None else torch.tensor(later),
        pairs=pairs,
        prompt=torch.arange(len(pairs)) if prompt is None else torch.tensor(prompt),
    )


def test_ties_pairs_and_order_are_counted_by_completion():
    policy = tiny_policy()
    found = order_steps(policy, ROLLOUTS, ESSENTIAL)
    assert found.heads == tuple((layer, head) for layer in range(4) for head in range(4))
    # Three of the completions have an answer, and three, four and three steps before it.
    assert found.pairs.tolist() == [2, 4, 2]
    assert found.later.tolist() == [1, 3, 0]
    assert found.later_first == 4 / 8
    assert found.prompt.tolist() == [0, 0, 1]
    assert found.ranks() == tc.rank_heads(policy, ROLLOUTS, ESSENTIAL)
    for p in policy.parameters():
        p.data.zero_()
    r = make_rollouts((8,), (2,), (6,))  # uniform attention of the answer's rows, so equal step scores
    (rank, *_) = order_steps(policy, r, torch.tensor([[True, False]])).ranks()
    assert (rank.sra, rank.pairs, rank.tied) == (0.5, 1, 1)


def test_batches_change_no_ranking_and_completions_without_a_pair_are_not_read():
    policy, seen = tiny_policy(), []
    whole = order_steps(policy, ROLLOUTS, ESSENTIAL)
    parts = order_steps(policy, ROLLOUTS, ESSENTIAL, batch_size=2, on_progress=lambda *done: seen.append(done))
    assert seen == [(2, 3), (3, 3)]
    assert torch.equal(whole.right, parts.right)
    mask = torch.ones_like(ESSENTIAL)
    mask[0] = False
    assert torch.equal(order_steps(policy, ROLLOUTS, ESSENTIAL, mask).right, whole.right[1:])
    assert count_pairs(ROLLOUTS, ESSENTIAL, mask).tolist() == [0, 4, 2, 0]


def test_attention_that_is_not_finite_is_refused():
    policy = tiny_policy()
    policy.model.layers[1].self_attn.q_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaN|finite"):
        tc.rank_heads(policy, ROLLOUTS, ESSENTIAL)


def test_the_best_of_many_random_heads_are_at_chance_on_held_out_prompts():
    """Where attention has nothing to do with the labels, the best of 300 heads look good on 24 pairs, by luck."""
    rng = torch.Generator().manual_seed(0)
    found = step_pairs(torch.randint(2, (24, 300), generator=rng).tolist(), [1] * 24)
    best = found.with_interval(found.ranks()[0])
    assert best.sra > 0.75
    assert best.low > 0.5
    held_out = found.held_out(3)
    assert held_out.prompts == 24
    assert held_out.low < 0.5
    assert not above_chance(held_out)


def test_heads_that_read_the_essential_steps_do_so_on_held_out_prompts():
    rng = torch.Generator().manual_seed(0)
    right = torch.randint(2, (48, 300), generator=rng)
    right[:, [5, 7]] = 1
    right[::24, 5] = 0
    found = step_pairs(right.tolist(), [1] * 48)
    held_out = found.held_out(2)
    assert held_out.shared == 2
    assert held_out.sra == pytest.approx(right[:, [5, 7]].double().mean().item())
    assert held_out.low <= held_out.sra <= held_out.high
    assert above_chance(held_out)
    # A single head that is always right has no interval, since no resample differs.
    assert found.held_out(1)[:3] == (1.0, None, None)
    assert above_chance(found.held_out(1))
    assert not above_chance(found.held_out(1)._replace(prompts=7))


def test_completions_of_one_prompt_are_one_observation():
    """Eight copies of each completion make the interval no narrower, and never lie in both halves."""
    rng = torch.Generator().manual_seed(1)
    right = torch.randint(3, (12, 5), generator=rng)
    once = step_pairs(right.tolist(), [2] * 12)
    often = step_pairs(right.repeat(8, 1).tolist(), [2] * 96, list(range(12)) * 8)
    a, b = (found.with_interval(found.ranks()[0]) for found in (once, often))
    assert (a.sra, a.low, a.high) == pytest.approx((b.sra, b.low, b.high))
    assert once.held_out(2) == pytest.approx(often.held_out(2))
    assert step_pairs([[1]] * 5, [1] * 5, [0] * 5).held_out(1) is None
    few = step_pairs([[1], [0]] * 3, [1] * 6)
    assert few.with_interval(few.ranks()[0])[-2:] == (None, None)


def test_stability_is_pearsons_correlation():
    policy, other = tiny_policy(), tiny_policy()
    torch.manual_seed(1)
    for p in other.parameters():
        p.data += 0.05 * torch.randn_like(p)
    found = tc.head_stability(policy, other, ROLLOUTS)
    assert [(s.layer, s.head) for s in found] == [(layer, head) for layer in range(4) for head in range(4)]
    needs = tc.Needs(answer_attention=frozenset(range(4)))
    a, b = (tc.collect(p, ROLLOUTS, needs).answer_attention for p in (policy, other))
    for s in found:
        scores = []
        for attention in (a, b):
            of = []
            for i in range(3):
                steps = ROLLOUTS.step_index[i]
                of += [
                    attention[s.layer][i, s.head][steps == k].mean().item() for k in sorted(set(steps.tolist()) - {-1})
                ]
            scores.append(of)
        assert s.correlation == pytest.approx(statistics.correlation(*scores), abs=1e-4)
    assert {round(s.correlation, 6) for s in tc.head_stability(policy, policy, ROLLOUTS)} == {1.0}
    with pytest.raises(ValueError, match="differ in layers or heads"):
        tc.head_stability(policy, tiny_policy(num_hidden_layers=2), ROLLOUTS)
    with pytest.raises(ValueError, match="two steps"):
        tc.head_stability(policy, other, make_rollouts((3,), (2,), (-1,)))


def test_groups_are_those_of_the_mean_look_back():
    policy = tiny_policy()
    local, remote = tc.group_heads(policy, ROLLOUTS, (1, 3), head_fraction=0.25)
    need = tc.signals.DistanceNeed((1, 3))
    look_back = tc.collect(policy, ROLLOUTS, tc.Needs(distances=frozenset({need}))).distances[need].look_back.mean(0)
    order = look_back.argsort().tolist()
    assert local == tuple(((1, 3)[h // 4], h % 4) for h in order[:2])
    assert remote == tuple(((1, 3)[h // 4], h % 4) for h in order[:-3:-1])
    m = tc.method("rhythm", local_heads=local, global_heads=remote)
    assert torch.isfinite(tc.assign(policy, ROLLOUTS, m).advantages).all()


def write(path, policy, heads=((2, 1), (0, 3))):
    ranks = tuple(tc.HeadRank(layer, head, 0.9, 10) for layer, head in heads)
    tc.HeadFile(tc.signals.model_signature(policy), ranks, completions=5, labels="by hand").write(path)
    return path


def test_a_head_file_serves_attnpo(tmp_path):
    policy = tiny_policy()
    path = write(tmp_path / "heads.json", policy)
    assert tc.HeadFile.read(path).heads[0] == tc.HeadRank(2, 1, 0.9, 10)
    m = tc.method("attnpo", heads=str(path))
    assert m.heads == ((2, 1), (0, 3))
    credit = tc.assign(policy, ROLLOUTS, m)
    by_hand = tc.assign(policy, ROLLOUTS, tc.method("attnpo", heads=((2, 1), (0, 3))))
    assert torch.equal(credit.weights, by_hand.weights)
    assert tc.method("attnpo", **vars(m)) == m


def test_a_head_file_keeps_what_is_known_of_its_heads(tmp_path):
    rank = tc.HeadRank(2, 1, 0.9, 10, tied=1, low=0.7, high=0.95)
    for held_out in (None, HeldOut(0.8, None, None, 5, 1), HeldOut(0.8, 0.6, 0.9, 12, 2)):
        file = tc.HeadFile("m", (rank,), completions=5, labels="by hand", held_out=held_out)
        file.write(tmp_path / "heads.json")
        assert tc.HeadFile.read(tmp_path / "heads.json") == file


def test_a_head_file_of_another_model_is_refused(tmp_path):
    m = tc.method("attnpo", heads=write(tmp_path / "heads.json", tiny_policy()))
    with pytest.raises(ValueError, match=r"4 layers, 4 heads.*but the policy is qwen3 of 3 layers"):
        tc.assign(tiny_policy(num_hidden_layers=3), ROLLOUTS, m)


def test_a_head_file_of_another_model_of_the_same_shape_is_refused(tmp_path):
    m = tc.method("attnpo", heads=write(tmp_path / "heads.json", tiny_policy()))
    for seed in (1, 2, 3):
        with pytest.raises(ValueError, match="another model than the policy, though both are qwen3 of 4 layers"):
            tc.assign(tiny_policy(seed), ROLLOUTS, m)
    with pytest.raises(ValueError, match="another model"), tc.signals.observe(tiny_policy(1), ROLLOUTS, m.needs):
        pass


def trained(policy, rate, steps=30):
    """After some steps of full fine-tuning on the rollouts."""
    optimizer = torch.optim.AdamW(policy.parameters(), rate)
    for _ in range(steps):
        policy(input_ids=ROLLOUTS.input_ids, labels=ROLLOUTS.input_ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@pytest.mark.parametrize(
    "descendant",
    [
        lambda: trained(tiny_policy(), 1e-3),
        lambda: tiny_policy().to(torch.bfloat16),
        lambda: tiny_lora_policy(),
        lambda: cpu_offload(tiny_policy(), torch.device("cpu")),
    ],
    ids=["trained", "rounded", "adapted", "offloaded"],
)
def test_a_head_file_serves_what_its_model_was_made_into(tmp_path, descendant):
    m = tc.method("attnpo", heads=write(tmp_path / "heads.json", tiny_policy()))
    assert torch.isfinite(tc.assign(descendant(), ROLLOUTS, m).advantages).all()


@pytest.mark.parametrize("width", [32, 48, 96, 128])
def test_no_entry_is_compared_twice(width):
    """Bits of the same entries would be no evidence, however many there are: the four entries of a token differ."""
    digits = tc.signals.model_signature(tiny_policy(hidden_size=width)).split()[-1]
    assert len({digits[i : i + 16] for i in range(0, 64, 16)}) == 4


def test_tokens_that_are_added_change_no_fingerprint():
    policy = tiny_policy()
    signature = tc.signals.model_signature(policy)
    policy.resize_token_embeddings(70)
    assert tc.signals.model_signature(policy) == signature


def test_a_head_file_without_fingerprint_is_checked_by_shape(tmp_path):
    """As earlier versions have written them."""
    path = write(tmp_path / "heads.json", tiny_policy())
    content = json.loads(path.read_text())
    content["model"] = content["model"].split(", embeddings")[0]
    assert content["model"] == "qwen3 of 4 layers, 4 heads, width 32"
    path.write_text(json.dumps(content))
    m = tc.method("attnpo", heads=path)
    tc.assign(tiny_policy(1), ROLLOUTS, m)
    with pytest.raises(ValueError, match="3 layers"):
        tc.assign(tiny_policy(num_hidden_layers=3), ROLLOUTS, m)


def test_a_fingerprint_that_is_none_is_refused(tmp_path):
    m = tc.method("attnpo", heads=((1, 0),), model=tc.signals.model_signature(tiny_policy())[:-2] + "zz")
    with pytest.raises(ValueError, match="is no fingerprint"):
        tc.assign(tiny_policy(), ROLLOUTS, m)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"model": "x", "heads": [], "completions": 1, "labels": ""}',
        '{"model": "x", "heads": [{"layer": "1", "head": 0, "sra": 1, "pairs": 2}], "completions": 1, "labels": ""}',
        '{"model": "x", "heads": [{"layer": 1}], "completions": 1, "labels": ""}',
        '{"model": "x", "heads": [], "completions": 1, "labels": "", "more": 1}',
        '{"model": "x", "heads": [{"layer": 1, "head": 0, "sra": NaN, "pairs": 2}], "completions": 1, "labels": ""}',
        '{"model": "x", "heads": [{"layer": 1, "head": 0, "sra": 0.9, "pairs": 2}], "completions": 1, "labels": "", '
        '"held_out": {"sra": 0.9}}',
    ],
)
def test_files_that_are_no_head_file(tmp_path, content):
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a head file"):
        tc.HeadFile.read(path)
    with pytest.raises(ValueError, match="no head file"):
        tc.method("attnpo", heads=str(tmp_path / "absent.json"))


def test_ablation_is_the_log_prob_that_the_answer_loses():
    policy = tiny_policy()
    for batch_size in (1, 64):
        seen: list = []
        drop, exists = tc.ablate_steps(
            policy, ROLLOUTS, batch_size=batch_size, on_progress=lambda *done, seen=seen: seen.append(done)
        )
        total = ablated_sequences(ROLLOUTS)
        assert total == 3 + int(exists.sum())
        assert seen == [(min(n, total), total) for n in range(batch_size, total + batch_size, batch_size)]
        assert not exists[3].any()
        for i in range(3):
            prompt = ROLLOUTS.prompt_ids[i][ROLLOUTS.prompt_mask[i]].tolist()
            completion = ROLLOUTS.completion_ids[i][ROLLOUTS.completion_mask[i]].tolist()
            start, steps = int(ROLLOUTS.answer_start[i]), ROLLOUTS.step_index[i].tolist()
            answer = completion[start:]

            def log_prob(reasoning, prompt=prompt, answer=answer):
                ids = torch.tensor([prompt + reasoning + answer])
                with torch.no_grad():
                    log_p = policy(ids).logits[0].log_softmax(-1)
                first = len(prompt + reasoning)
                return sum(log_p[first + j - 1, token].item() for j, token in enumerate(answer))

            whole = log_prob(completion[:start])
            for k in sorted(set(steps) - {-1}):
                without = log_prob([token for token, step in zip(completion[:start], steps, strict=False) if step != k])
                assert exists[i, k]
                assert drop[i, k].item() == pytest.approx(whole - without, abs=2e-4)
        assert int(exists.sum()) == sum(len(set(row.tolist()) - {-1}) for row in ROLLOUTS.step_index[:3])
    with pytest.raises(ValueError, match="mark_spans"):
        tc.ablate_steps(policy, make_rollouts(step_index=None))


def test_labels_by_ablation_fit_though_a_completion_without_answer_has_more_steps():
    r = make_rollouts((6, 12), (2, 2), (4, -1))
    r = dataclasses.replace(r, step_index=torch.where(r.completion_mask, torch.arange(12) // 2, -1))
    drop, exists = tc.ablate_steps(tiny_policy(), r)
    essential = drop > drop[exists].mean()
    assert tc.rank_heads(tiny_policy(), r, essential, exists)[0].pairs == 1


@pytest.mark.parametrize(
    ("layers", "fraction", "message"),
    [
        ("midle", 0.3, "bottom, middle, top, all"),
        ((), 0.3, "at least one"),
        ((9,), 0.3, "has 4"),
        ("all", 0, "fraction"),
    ],
)
def test_groups_that_cannot_be_made(layers, fraction, message):
    with pytest.raises(ValueError, match=message):
        tc.group_heads(tiny_policy(), ROLLOUTS, layers, fraction)


def test_a_layer_named_twice_counts_once():
    policy = tiny_policy()
    assert tc.group_heads(policy, ROLLOUTS, [3, -1, 1]) == tc.group_heads(policy, ROLLOUTS, (1, 3))


def test_parameters_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "heads.json", tiny_policy())
    with pytest.raises(ValueError, match="not of another"):
        tc.method("attnpo", heads=path, model="another")
    with pytest.raises(ValueError, match="exclude each other"):
        tc.method("rhythm", heads="all", local_heads=[(1, 0)], global_heads=[(1, 1)])
    with pytest.raises(ValueError, match="twice"):
        tc.method("attnpo", heads=[(1, 0), (1, 0)])
    with pytest.raises(ValueError, match="batch_size"):
        tc.ablate_steps(tiny_policy(), ROLLOUTS, batch_size=0)
