"""Whether reading attention keeps to the memory of the forward pass where sequences are long.

    python benchmarks/long_context.py [--length 32768] [--rounds 2]

One sequence; look-back distance, WAAD and FAI of the first layer, answer rows of the second, for an answer of the last
512 tokens, against a plain forward pass; likewise with the kernels `fused`, and with two fixed heads instead of
look-back distances. Each pass, none broken off, has a process of its own, which tells its time and
its peak memory over what it holds after a pass over 64 tokens. Half of the layers are read for distances here; in a
model of 36 layers it would be five.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import THREADS, arguments, extra_memory, finish, in_own_process, ratios, seconds, spread
from signals import plain, reads
from transformers import Qwen3Config, Qwen3ForCausalLM

import tokencredit as tc
from tokencredit.signals import DistanceNeed

VOCABULARY, ANSWER = 1000, 512
ANSWER_ROWS = tc.Needs(answer_attention=frozenset({1}))
NEEDS = tc.Needs(distances=frozenset({DistanceNeed((0,))})) | ANSWER_ROWS
FIXED_HEADS = tc.Needs(distances=frozenset({DistanceNeed(heads=((0, 0), (0, 3)))})) | ANSWER_ROWS
PASSES = {
    "forward": plain,
    "read": reads(NEEDS, whole=True),
    "read, fused": reads(NEEDS, whole=True, kernels="fused"),
    "read, fixed heads": reads(FIXED_HEADS, whole=True),
}
QUICK: dict[str, Any] = {"length": 1024, "rounds": 2}


def build() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1 << 17,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def make(kind: str, model: Qwen3ForCausalLM, n: int) -> None:
    ids = torch.randint(3, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
    p, ones = n // 8, torch.ones_like(ids)
    start = torch.tensor([n - p - min(ANSWER, n // 8)])
    r = tc.Rollouts(ids[:, :p], ones[:, :p], ids[:, p:], ones[:, p:], answer_start=start)
    PASSES[kind](model, r)


def figures(length: int = 32_768, rounds: int = 2) -> dict[str, Any]:
    """Spreads of seconds, of MiB, and of the ratios of each pass to the plain one."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in PASSES}
    for _ in range(rounds):
        for kind, each in found.items():
            each.append(in_own_process(_cost, kind, length))
    took, memory = ({kind: [pair[i] for pair in each] for kind, each in found.items()} for i in range(2))
    return {
        "model": "Qwen3, 2 layers, 4 heads of 64, 2 for keys, width 256, float32",
        "heads": 4,
        "length": length,
        "rounds": rounds,
        "seconds": {kind: spread(values) for kind, values in took.items()},
        "memory": {kind: spread(values) for kind, values in memory.items()},
        "ratio": {kind: spread(ratios(values, took["forward"])) for kind, values in took.items()},
        "memory_ratio": {kind: spread(ratios(values, memory["forward"])) for kind, values in memory.items()},
    }


def _cost(kind: str, n: int) -> tuple[float, float]:
    """Seconds and MiB."""
    torch.set_num_threads(THREADS)
    model, took = build(), []
    make(kind, model, 64)
    memory = extra_memory(lambda: took.append(seconds(partial(make, kind, model, n))))
    return took[0], memory


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    finish("long_context", figures(**QUICK) if asked.quick else figures(asked.length, asked.rounds), asked)


if __name__ == "__main__":
    main()
