"""What reading signals costs, as a ratio to the forward pass that training makes anyway.

    make bench          or    python benchmarks/signals.py --lengths 512 1024 --rounds 3

Everything in a row runs in one process, in turns, so that a busy machine slows all alike; a figure is the median of the
rounds' ratios, with the least and the greatest. `attention` is all attention statistics together: look-back distance,
WAAD and FAI of five layers, answer rows of two. `all` adds log-probs and entropies, and is compared with a pass that
makes the logits. `eager` reads the same statistics the way other code does, from the attention matrices of eager
attention: in all layers, or only where they are read (`eager, needed`). Memory is the peak of a process of its own,
over what it holds after a pass over 64 tokens; freed blocks go back at once, so that the peak is of what is in use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as IMPLEMENTATIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, eager_attention_forward

import tokencredit as tc
from tokencredit.signals import DistanceNeed

LAYERS, WINDOW, HORIZON = 8, 10, (10, 100)
SAMPLED, ANSWER_LAYERS = (1, 2, 3, 4, 5), (6, 7)
VOCABULARY = 32_000
THREADS = 2
ATTENTION = tc.Needs(
    answer_attention=frozenset(ANSWER_LAYERS), distances=frozenset({DistanceNeed(SAMPLED, WINDOW, HORIZON)})
)
ALL = ATTENTION | tc.Needs(logits=True)


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


def plain(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    with torch.no_grad():
        model.model(r.input_ids, use_cache=False)


def plain_logits(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    with torch.no_grad():
        model(r.input_ids, use_cache=False)


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


def attention(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    tc.collect(model, r, ATTENTION)


def everything(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    tc.collect(model, r, ALL)


def early_stop(model: Qwen3ForCausalLM, r: tc.Rollouts) -> None:
    tc.collect(model, r, tc.Needs(distances=ATTENTION.distances))


Mode = Callable[[Qwen3ForCausalLM, tc.Rollouts], None]
RATIOS: dict[str, tuple[Mode, Mode]] = {
    "attention": (attention, plain),
    "distances, early stop": (early_stop, plain),
    "eager, needed": (eager_where_needed, plain),
    "eager": (eager, plain),
    "all": (everything, plain_logits),
}


def seconds(mode: Mode, model: Qwen3ForCausalLM, r: tc.Rollouts) -> float:
    started = time.perf_counter()
    mode(model, r)
    return time.perf_counter() - started


def ratios(model: Qwen3ForCausalLM, n: int, rounds: int) -> dict[str, list[float]]:
    r = rollouts(n)
    modes = list(dict.fromkeys(mode for pair in RATIOS.values() for mode in pair))
    for mode in modes:
        mode(model, r)
    found: dict[str, list[float]] = {name: [] for name in RATIOS}
    for _ in range(rounds):
        took = {mode: seconds(mode, model, r) for mode in modes}
        for name, (mode, base) in RATIOS.items():
            found[name].append(took[mode] / took[base])
    return found


def peak_memory(mode: Mode, n: int) -> float:
    """MiB that a pass adds to a process of its own."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # read by glibc as the new process starts
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (mode, n))


def _peak_memory(mode: Mode, n: int) -> float:
    torch.set_num_threads(THREADS)
    model = build()
    mode(model, rollouts(64))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is used now
    before = _memory("VmHWM")
    mode(model, rollouts(n))
    return (_memory("VmHWM") - before) / 1024


def _memory(kind: str) -> int:
    """KiB, from Linux's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    console = Console(width=110)
    console.print(
        f"Qwen3, {LAYERS} layers, 8 heads of 64, width 512, vocabulary {VOCABULARY:,}, float32, one sequence of N "
        f"tokens; torch {torch.__version__} on {platform.machine()}, {THREADS} threads, {args.rounds} rounds"
    )
    model = build()
    table = Table("N", *RATIOS, title="time / forward pass: median [least, greatest]", box=SIMPLE)
    for n in args.lengths:
        found = ratios(model, n, args.rounds)
        table.add_row(str(n), *(f"{statistics.median(v):.2f} [{min(v):.2f}, {max(v):.2f}]" for v in found.values()))
    console.print(table)
    n = max(args.lengths)
    memory = Table("", "MiB", "/ forward pass", title=f"peak extra memory, N = {n}", box=SIMPLE)
    base = {mode: peak_memory(mode, n) for mode in (plain, plain_logits)}
    for name, mode, reference in (("forward pass", plain, plain), *((k, m, b) for k, (m, b) in RATIOS.items())):
        used = base[mode] if mode in base else peak_memory(mode, n)
        memory.add_row(name, f"{used:.0f}", f"{used / base[reference]:.2f}")
    console.print(memory)


if __name__ == "__main__":
    main()
