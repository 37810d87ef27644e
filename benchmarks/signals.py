"""What reading signals costs, against the forward pass that training makes anyway.

    make bench          or    python benchmarks/signals.py --lengths 512 1024 --rounds 3

Everything in a row runs in one process, in turns, so that a busy machine slows all alike; a figure is the median of the
rounds' ratios, with the least and the greatest. `attention` is all attention statistics together: look-back distance,
WAAD and FAI of five layers (`distances`), answer rows of two. `all` adds log-probs and entropies (`logits`); both are
compared with a pass that makes the logits. `fused` are the kernels of that name; `fixed heads` are five of the eight
heads of each layer, about as many as rhythm's two groups, without look-back distance. `eager` reads the same statistics
the way other code does, from the attention matrices of eager attention: in all layers, or only where they are read
(`eager, needed`). Memory is the peak of a process of its own, over what it holds after a pass over 64 tokens; freed
blocks go back at once, so that the peak is of what is in use.

`growth` is the exponent of N in a fit of log(cost) over log(N): of the time that a signal adds to a forward pass
without logits, a fit a round, and of the peak memory. For it each signal is read alone, in passes that are not broken
off once all is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from measure import (
    THREADS,
    arguments,
    exponent,
    exponents,
    extra_memory,
    finish,
    in_own_process,
    in_turns,
    ratios,
    spread,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as IMPLEMENTATIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, eager_attention_forward

import tokencredit as tc
from tokencredit.signals import DistanceNeed

LAYERS, WINDOW, HORIZON = 8, 10, (10, 100)
SAMPLED, ANSWER_LAYERS = (1, 2, 3, 4, 5), (6, 7)
VOCABULARY = 32_000
DISTANCES = tc.Needs(distances=frozenset({DistanceNeed(SAMPLED, WINDOW, HORIZON)}))
FIXED_HEADS = tc.Needs(
    distances=frozenset({DistanceNeed(window=WINDOW, horizon=HORIZON, heads=tuple(product(SAMPLED, range(5))))})
)
ANSWER_ROWS = tc.Needs(answer_attention=frozenset(ANSWER_LAYERS))
LOGITS = tc.Needs(logits=True)
LENGTHS = (512, 1024, 2048, 4096)
QUICK: dict[str, Any] = {"lengths": [64, 128], "rounds": 2}

Pass = Callable[[Qwen3ForCausalLM, tc.Rollouts], Any]


@dataclass(frozen=True)
class Mode:
    """A way to make a pass over a sequence.

    Attributes:
        base: the mode that its time and memory are compared with.
        growth: its growth with N is measured; then `make` does not break the pass off.
    """

    make: Pass
    base: str = "forward"
    growth: bool = False


def build() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def rollouts(n: int) -> tc.Rollouts:
    """One completion: an eighth of the tokens are the prompt, a tenth the answer."""
    ids = torch.randint(3, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
    p = n // 8
    ones = torch.ones_like(ids)
    return tc.Rollouts(
        ids[:, :p], ones[:, :p], ids[:, p:], ones[:, p:], answer_start=torch.tensor([n - p - max(1, n // 10)])
    )


def statistics_of(a: Tensor, r: tc.Rollouts, layer: int) -> list[Tensor]:
    """The same statistics from a full (1, H, N, N) matrix."""
    p, n = r.prompt_ids.shape[1], a.shape[-1]
    if layer in ANSWER_LAYERS:
        return [a[:, :, p + int(r.answer_start[0]) :].mean(2)]
    if layer not in SAMPLED:
        return []
    position = torch.arange(n)
    behind = (position[:, None] - position).clamp(min=0).float()
    rows = a[:, :, p:]
    near = (behind >= HORIZON[0]) & (behind <= HORIZON[1])
    return [
        (rows * behind[p:]).sum(-1).mean(-1),
        (rows * behind[p:].clamp(max=WINDOW)).sum(-1),
        (rows * near[p:]).sum(2) / near[p:].sum(0).clamp(min=1),
    ]


def plain(model: Qwen3ForCausalLM, r: tc.Rollouts, *, logits: bool = False) -> None:
    with torch.no_grad():
        (model if logits else model.model)(r.input_ids, use_cache=False)


def eager(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.model(r.input_ids, use_cache=False, output_attentions=True).attentions
        for layer, a in enumerate(attentions):
            statistics_of(a, r, layer)
    model.set_attn_implementation("sdpa")


def eager_where_needed(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    """Eager attention in the layers that are read only, each matrix dropped once it is."""
    original = IMPLEMENTATIONS["sdpa"]

    def attend(module: Qwen3Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        if module.layer_idx not in (*SAMPLED, *ANSWER_LAYERS):
            return original(module, q, k, v, mask, **kwargs)
        n = q.shape[2]
        causal = torch.full((n, n), torch.finfo(q.dtype).min).triu_(1)[None, None]
        out, a = eager_attention_forward(module, q, k, v, causal, **kwargs)
        statistics_of(a, r, module.layer_idx)
        return out, None

    IMPLEMENTATIONS["sdpa"] = attend
    try:
        plain(model, r)
    finally:
        IMPLEMENTATIONS["sdpa"] = original


def reads(needs: tc.Needs, *, whole: bool = False, **settings: Any) -> Pass:
    """A pass by `collect`, with its `settings`; a `whole` one is not broken off once all is read."""

    def make(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
        # A pass that some hook may want to see the end of is never broken off.
        with model.model.register_forward_hook(lambda *_: None) if whole else nullcontext():
            tc.collect(model, r, needs, **settings)

    return make


MODES = {
    "forward": Mode(plain),
    "forward, logits": Mode(partial(plain, logits=True)),
    "distances": Mode(reads(DISTANCES, whole=True), growth=True),
    "distances, fused": Mode(reads(DISTANCES, whole=True, kernels="fused"), growth=True),
    "distances, fixed heads": Mode(reads(FIXED_HEADS, whole=True), growth=True),
    "distances, early stop": Mode(reads(DISTANCES)),
    "answer rows": Mode(reads(ANSWER_ROWS, whole=True), growth=True),
    "logits": Mode(reads(LOGITS), base="forward, logits", growth=True),
    "attention": Mode(reads(DISTANCES | ANSWER_ROWS)),
    "all": Mode(reads(DISTANCES | ANSWER_ROWS | LOGITS), base="forward, logits"),
    "eager, needed": Mode(eager_where_needed),
    "eager": Mode(eager),
}


def figures(lengths: Sequence[int] = LENGTHS, rounds: int = 3) -> dict[str, Any]:
    """`seconds` and `ratio`: mode -> a spread a length. `memory`: mode -> MiB a length, where it was measured."""
    torch.set_num_threads(THREADS)
    lengths, model = sorted(lengths), build()
    took = []
    for n in lengths:
        r = rollouts(n)
        took.append(in_turns({name: partial(mode.make, model, r) for name, mode in MODES.items()}, rounds))
    memory = {name: _memory_by_length(name, mode, lengths) for name, mode in MODES.items()}
    return {
        "model": f"Qwen3, {LAYERS} layers, 8 heads of 64, width 512, vocabulary {VOCABULARY:,}, float32, one sequence",
        "lengths": lengths,
        "rounds": rounds,
        "base": {name: mode.base for name, mode in MODES.items()},
        "seconds": {name: [spread(at[name]) for at in took] for name in MODES},
        "ratio": {name: [spread(ratios(at[name], at[m.base])) for at in took] for name, m in MODES.items()},
        "memory": memory,
        "growth": _growth(lengths, took, memory),
    }


def _growth(lengths: list[int], took: list[dict[str, list[float]]], memory: dict[str, Any]) -> dict[str, Any]:
    """Exponents of the forward pass itself, and of what each signal adds to its time and of its peak memory."""
    found = {"forward": exponents(lengths, [at["forward"] for at in took])}
    for name in (name for name, mode in MODES.items() if mode.growth):
        added = [[a - b for a, b in zip(at[name], at["forward"], strict=True)] for at in took]
        found[name] = exponents(lengths, added)
    return {name: {"time": time, "memory": exponent(lengths, memory[name])} for name, time in found.items()}


def _memory_by_length(name: str, mode: Mode, lengths: list[int]) -> list[float | None]:
    """At every length where growth is asked for, else at the greatest."""
    everywhere = mode.growth or name == "forward"
    return [in_own_process(_memory, name, n) if everywhere or n == lengths[-1] else None for n in lengths]


def _memory(name: str, n: int) -> float:
    torch.set_num_threads(THREADS)
    model, make = build(), MODES[name].make
    make(model, rollouts(64))
    return extra_memory(partial(make, model, rollouts(n)))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    finish("signals", figures(**QUICK) if asked.quick else figures(asked.lengths, asked.rounds), asked)


if __name__ == "__main__":
    main()
