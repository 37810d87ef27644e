"""Naive references in float64: full attention matrices and Python loops, one completion at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

import torch


def eager_attention(policy, rollouts, i: int) -> torch.Tensor:
    """(L, H, n, n) float64: the attention of completion i alone, without any padding."""
    p, c = rollouts.prompt_mask[i], rollouts.completion_mask[i]
    ids = torch.cat([rollouts.prompt_ids[i][p], rollouts.completion_ids[i][c]])[None]
    original = policy.config._attn_implementation
    policy.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = policy(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        policy.set_attn_implementation(original)
    return torch.cat(attentions).double()


def atpo(
    attention: torch.Tensor, prompt: int, answer: int, layers: int, temperature: float, floor: float
) -> list[float]:
    """Weights of one completion, from (L, H, n, n); `answer` -1 where there is none."""
    n = attention.shape[-1] - prompt
    if answer < 0:
        return [1.0] * n
    count_layers, heads = attention.shape[:2]
    x = []
    for s in range(answer):
        picked = [
            attention[layer, h, prompt + t, prompt + s].item()
            for layer in range(count_layers - layers, count_layers)
            for h in range(heads)
            for t in range(answer, n)
        ]
        x.append(math.log(statistics.fmean(picked) + 1e-6))
    y = _rescaled(x, temperature)
    return [floor + (1 - floor) * v for v in y] + [1.0] * (n - answer)


def _rescaled(x: Sequence[float], temperature: float) -> list[float]:
    if len(x) < 2 or max(x) == min(x):
        return [0.5] * len(x)
    mean, std = statistics.fmean(x), statistics.stdev(x)
    y = [1 / (1 + math.exp(-temperature * (v - mean) / std)) for v in x]
    return [(v - min(y)) / (max(y) - min(y)) for v in y]


def arca(policy, rollouts, i: int, eps: float) -> list[float]:
    """Weights of one completion, from hidden states with the adapter on and off."""
    p, c = rollouts.prompt_mask[i], rollouts.completion_mask[i]
    ids = torch.cat([rollouts.prompt_ids[i][p], rollouts.completion_ids[i][c]])[None]
    prompt, n = int(p.sum()), int(c.sum())
    with torch.no_grad():
        adapted = policy(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0].double()
        with policy.disable_adapter():
            base = policy(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0].double()
    raw = [math.dist(adapted[prompt + t - 1].tolist(), base[prompt + t - 1].tolist()) + eps for t in range(n)]
    return [n * a / sum(raw) for a in raw]


def position(n: int, answer: int, shape: str, floor: float, temperature: float) -> list[float]:
    if answer < 0:
        return [1.0] * n
    last = answer - 1

    def ramp(t: int) -> float:
        if shape == "zero":
            return 0.0
        if last == 0:
            return 1.0
        if shape == "linear":
            return t / last
        if shape == "exponential":
            return 0.995 ** (last - t)
        curve = [1 / (1 + math.exp(-3 * temperature * (2 * u / last - 1))) for u in range(answer)]
        return (curve[t] - curve[0]) / (curve[last] - curve[0])

    return [floor + (1 - floor) * ramp(t) for t in range(answer)] + [1.0] * (n - answer)


def rhythm(attention: torch.Tensor, prompt: int, m, advantage: float) -> list[float]:
    """Weights of one completion under a `Rhythm`, from (L, H, n, n) of the sampled layers."""
    n = attention.shape[-1] - prompt
    heads = [head.tolist() for layer in attention for head in layer]
    rows = range(prompt, prompt + n)

    def look_back(a):
        return statistics.fmean(sum(a[t][s] * (t - s) for s in range(t + 1)) for t in rows)

    def waad(a, t):
        return sum(a[t][s] * min(t - s, m.window) for s in range(t + 1))

    def fai(a, s):
        ahead = [a[t][s] for t in rows if s + m.horizon[0] <= t <= s + m.horizon[1]]
        return statistics.fmean(ahead) if ahead else 0.0

    distance = [look_back(a) for a in heads]
    size = max(1, int(m.head_fraction * len(heads) + 1e-9))
    everyone = range(len(heads))
    local = sorted(everyone, key=lambda h: (distance[h], h))[:size] if m.heads == "targeted" else everyone
    remote = sorted(everyone, key=lambda h: (-distance[h], h))[:size] if m.heads == "targeted" else everyone
    near = [statistics.fmean(waad(heads[h], t) for h in local) for t in rows]
    anchor = [statistics.fmean(fai(heads[h], s) for h in remote) for s in rows]
    return rhythm_weights(near, anchor, m, advantage)


def rhythm_weights(near: Sequence[float], anchor: Sequence[float], m, advantage: float) -> list[float]:
    """Weights of one completion from its WAAD and FAI."""
    n = len(near)
    delta = [abs(a - b) for a, b in pairwise(near)] + [0.0]

    def chosen(values):
        return top(values if m.select == "top" else [-v for v in values], m.q)

    g, anchors = m.amplification - 1, chosen(anchor)
    if (m.sign == "positive" and advantage <= 0) or (m.sign == "negative" and advantage >= 0) or advantage == 0:
        return [1.0] * n
    if m.strategy == "local":
        return [1 + g * (t in chosen(delta)) for t in range(n)]
    if m.strategy == "global":
        return [1 + g * (t in anchors) for t in range(n)]
    tau_waad, tau_delta = quantile(near, 0.5), quantile(delta, 0.6)
    intro = {}
    for t in anchors:
        before = range(max(0, t - m.k), t)
        if before and near[t] <= tau_waad and max(delta[u] for u in before) >= tau_delta:
            intro[t] = max(before, key=lambda u: (delta[u], -u))
    return [
        1
        + g * (t in anchors and t not in intro)
        + (1 - m.alpha) * g * (t in intro)
        + m.alpha * g * (t in intro.values())
        for t in range(n)
    ]


def attnpo(attention, rollouts, i: int, m, advantage: float, step: int | None) -> list[float]:
    """Weights of completion i, from (L, H, n, n) of all layers."""
    n, answer = int(rollouts.lengths[i]), int(rollouts.answer_start[i])
    prompt = int(rollouts.prompt_mask[i].sum())
    group = [j for j in range(len(rollouts)) if rollouts.group[j] == rollouts.group[i]]
    p = statistics.fmean(float(rollouts.correct[j]) for j in group)
    correct, weights = bool(rollouts.correct[i]), [1.0] * n
    steps = sorted({k for k in rollouts.step_index[i, :n].tolist() if k >= 0})
    if answer < 0 or len(steps) < 2:
        return weights
    length = n + (prompt if m.baseline_length == "sequence" else 0)
    base = p**m.beta * (n - answer) / length
    for k in steps:
        tokens = [t for t in range(n) if rollouts.step_index[i, t] == k]
        score = statistics.fmean(
            sum(attention[layer, head, prompt + a, prompt + t].item() for a in range(answer, n) for t in tokens)
            / len(tokens)
            for layer, head in m.heads
        )
        w = 1.0
        if correct and advantage > 0 and score < base and (step is None or step > m.delay * (1 - p)):
            w = (1 - m.delta) * (1 - p**m.lam * (1 - score / base)) + m.delta
        if (correct or m.incorrect) and advantage < 0 and score > base:
            w = 0.0
        for t in tokens:
            weights[t] = w
    return weights


def taylor(score, embeddings: torch.Tensor, null: torch.Tensor) -> list[float]:
    """grad score(E) . (e_i - e_null), one position after the other, as the slope towards the null token."""
    found = []
    for i in range(len(embeddings)):
        towards = torch.zeros((), dtype=embeddings.dtype, requires_grad=True)
        moved = embeddings.clone()
        moved[i] = embeddings[i] + towards * (embeddings[i] - null)
        found.append(torch.autograd.grad(score(moved), towards)[0].item())
    return found


def p2t_bonus(influence: Sequence[float], reward: float, omega: float, alpha: float) -> list[float]:
    """The bonus of the tokens of one segment."""
    total = sum(math.exp(v) for v in influence)
    return [alpha * (reward + omega * reward * math.exp(v) / total) for v in influence]


def quantile(values: Sequence[float], q: float) -> float:
    """Linearly interpolated."""
    ordered, at = sorted(values), q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def distributions(policy, rollouts, i: int) -> tuple[list[torch.Tensor], list[int]]:
    """Completion i alone: log pi(. | before t) for each of its tokens t, float64, and the tokens."""
    p, c = rollouts.prompt_mask[i], rollouts.completion_mask[i]
    ids = torch.cat([rollouts.prompt_ids[i][p], rollouts.completion_ids[i][c]])
    with torch.no_grad():
        log_p = policy(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    prompt = int(p.sum())
    return list(log_p[prompt - 1 : -1]), ids[prompt:].tolist()


def entropies(log_ps: list[torch.Tensor]) -> list[float]:
    return [-sum(math.exp(v) * v for v in row.tolist()) for row in log_ps]


def mean_one(salience: Sequence[float], eps: float) -> list[float]:
    raised = [a + eps for a in salience]
    return [len(raised) * a / sum(raised) for a in raised]


def top(values: Sequence[float], q: float) -> set[int]:
    """The indices of the top q, the highest first, ties to the earlier."""
    n = max(1, int(q * len(values) + 1e-9))
    return set(sorted(range(len(values)), key=lambda t: (-values[t], t))[:n])
