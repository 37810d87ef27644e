"""Completions with what was read of them and the credit they got, token by token: what a report shows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokencredit.analysis.headlines import Headlines
from tokencredit.analysis.rhythm import find_peaks, has_row_ahead
from tokencredit.credit import Credit
from tokencredit.methods.rhythm import Rhythm
from tokencredit.rollouts import Rollouts
from tokencredit.signals import FullAttentionLayer, ModelLayers, Needs, Signals, causal_lm
from tokencredit.signals.attention import probe_attention
from tokencredit.signals.attention_statistics import Attention
from tokencredit.signals.final_states import final_states, pass_inputs
from tokencredit.signals.micro_batches import trimmed
from tokencredit.signals.policy import reading
from tokencredit.signals.types import AnswerLayer
from tokencredit.token_text import TokenTexts

VIEW = Rhythm().needs | Needs(logits=True)
"""What a report shows of a token beside its credit: log-prob, entropy, WAAD and FAI."""
PEAK_SHARE = 0.2
"""The share of a curve's tokens among which its peaks are (see `analysis.rhythm`)."""
LAST_FULL = FullAttentionLayer(-1)
PICTURE = (24, 96)
"""Rows and columns of an attention picture, at most; a longer one is averaged down."""


def trace_rows(
    tokenizer: Any,
    rollouts: Rollouts,
    credits: Mapping[str, Credit],
    signals: Signals,
    shown: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """One row a completion.

    Args:
        credits: by the name that the report calls them; of these rollouts.
        signals: of these rollouts; shown where they hold `VIEW`.
        shown: the completions that are wanted; all by default.

    Returns:
        `prompt`, `tokens` and `partial` (see `token_text.TokenText`); `headline`, by which a list of traces calls it;
        `group`, `reward`, `correct`, `answer_start`, `step_index`, null where the rollouts do not say; `same_reward`,
        how many completions its group has where all of them got the same reward, else null; `signals`, name -> value a
        token; `peaks`, the positions of preplans and anchors; `credit`, name -> `weights` (or null), `advantages`,
        `diagnostics`. FAI is null where no later token is in its horizon.
    """
    texts_of, headline_of = TokenTexts(tokenizer), Headlines(tokenizer)
    same_reward = _same_reward(rollouts)
    curves, peaks = _curves(rollouts, signals)
    lengths = rollouts.lengths.tolist()
    rows = []
    for i in range(len(rollouts)) if shown is None else shown:
        length = lengths[i]
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]].tolist()
        tokens = texts_of(rollouts.completion_ids[i, :length].tolist())
        text = "".join(texts_of(prompt).texts)
        rows.append(
            {
                "prompt": text,
                "headline": headline_of(prompt, text, "".join(tokens.texts)),
                "tokens": tokens.texts,
                "partial": tokens.partial,
                "reward": _item(rollouts.rewards, i),
                "same_reward": same_reward[i],
                **{name: _item(getattr(rollouts, name), i) for name in ("group", "correct", "answer_start")},
                "step_index": None if rollouts.step_index is None else rollouts.step_index[i, :length].tolist(),
                "signals": {name: _defined(curve[i, :length]) for name, curve in curves.items()},
                "peaks": {name: marks[i, :length].nonzero().flatten().tolist() for name, marks in peaks.items()},
                "credit": {name: _credit_row(credit, i, length) for name, credit in credits.items()},
            }
        )
    return rows


def _same_reward(rollouts: Rollouts) -> list[int | None]:
    """Of each completion the size of its group where all rewards in it are equal: GRPO gives these no advantage."""
    if rollouts.rewards is None or rollouts.group is None:
        return [None] * len(rollouts)
    groups = rollouts.group.tolist()
    rewards = defaultdict(list)
    for group, reward in zip(groups, rollouts.rewards.tolist(), strict=True):
        rewards[group].append(reward)
    return [len(rewards[group]) if len(set(rewards[group])) == 1 else None for group in groups]


def rounded(values: Tensor) -> list[float]:
    """Seven significant digits, as many as float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def _defined(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in rounded(values)]


def _item(values: Tensor | None, i: int) -> Any:
    return None if values is None else values[i].item()


def _credit_row(credit: Credit, i: int, length: int) -> dict[str, Any]:
    return {
        "weights": None if credit.weights is None else rounded(credit.weights[i, :length]),
        "advantages": rounded(credit.advantages[i, :length]),
        "diagnostics": {name: float(f"{values[i].item():.7g}") for name, values in credit.diagnostics.items()},
    }


def _curves(rollouts: Rollouts, signals: Signals) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The signals to show, (B, T) each, NaN where one is not defined; and where the peaks of WAAD and FAI are."""
    shown = {name: getattr(signals, name) for name in ("logprob", "entropy")}
    curves = {name: values for name, values in shown.items() if values is not None}
    m = Rhythm()
    (need,) = m.needs.distances
    if need not in signals.distances:
        return curves, {}
    mask = rollouts.completion_mask
    waad, fai = m.group_means(signals.distances[need])
    has_fai = has_row_ahead(rollouts, need.horizon[0])
    peaks = {"preplan": find_peaks(waad, mask, PEAK_SHARE), "anchor": find_peaks(fai, has_fai, PEAK_SHARE)}
    return {**curves, "waad": waad, "fai": fai.masked_fill(~has_fai, torch.nan)}, peaks


def attention_pictures(
    policy: nn.Module, rollouts: Rollouts, layer: AnswerLayer = LAST_FULL
) -> list[dict[str, Any] | None]:
    """What each completion's answer attends to (ATPO's figure 2), by default in the last layer with full attention.

    A[t, s] of its answer rows t over its reasoning columns s, the mean over the heads of a layer.

    Only those rows are computed. Pictures larger than `PICTURE` are averaged over blocks of neighbours.

    Returns:
        `layer`, `rows` and `columns` (the first token of each), `values`; None where there is no answer.
    """
    model = causal_lm(policy)
    index = ModelLayers.of(model).index(layer)
    pictures: list[dict[str, Any] | None] = []
    with reading(policy):
        for i in range(len(rollouts)):
            one = trimmed(rollouts.rows(slice(i, i + 1)))
            start = int(one.answer_start) if one.answer_start is not None else -1
            pictures.append(None if start < 1 else {"layer": index, **_picture(model, one, index, start)})
    return pictures


def _picture(model: Any, one: Rollouts, layer: int, start: int) -> dict[str, Any]:
    length, prompt = int(one.lengths), one.prompt_ids.shape[1]
    blocks = [list(b) for b in _blocks(range(start, length), PICTURE[0])]
    columns = _blocks(range(start), PICTURE[1])

    def rows_of(attention: Attention) -> Tensor:
        return torch.stack([_mean_row(attention, block, prompt) for block in blocks])[:, prompt : prompt + start].cpu()

    with probe_attention(model, {layer: {"rows": rows_of}}, stop=True) as probe:
        final_states(model, pass_inputs(model, one))
    rows = probe.found[layer, "rows"]
    return {
        "rows": [block[0] for block in blocks],
        "columns": [block[0] for block in columns],
        "values": [rounded(torch.stack([row[list(block)].mean() for block in columns])) for row in rows],
    }


def _mean_row(attention: Attention, positions: Sequence[int], prompt: int) -> Tensor:
    """(N,): the mean over heads and over the completion's rows at `positions`."""
    rows = torch.tensor([[prompt + t for t in positions]], device=attention.query.device)
    queries = attention.query[:, :, rows[0]]
    return attention.probabilities(queries, attention.seen_by(rows), attention.query.shape[2]).mean((0, 1, 2))


def _blocks(positions: range, most: int) -> list[range]:
    """Neighbours together, in at most `most` blocks."""
    size = -(-len(positions) // most) or 1
    return [positions[i : i + size] for i in range(0, len(positions), size)]
