"""What the benchmarks share: rounds in turns, peak memory, spreads, growth with length, and what they ran on."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tables import printed

THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))

Spread = dict[str, float]
"""The median of what several rounds found, the least and the greatest."""


def spread(values: Sequence[float]) -> Spread | None:
    """None where there are no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(works: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each work, round by round: a machine that is busy for a while then slows all alike. Every other round
    goes backwards, since a work finds memory as the one before has left it."""
    if warm_up:
        for work in works.values():
            work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds):
        for name in list(works) if i % 2 == 0 else reversed(works):
            found[name].append(seconds(works[name]))
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float | None:
    """The slope of log(value) over log(N): 1 where it grows as N, 2 as N^2. None where a value is not positive, as an
    added time is that the noise is larger than, or for fewer than two lengths."""
    if len(lengths) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def exponents(lengths: Sequence[int], by_length: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The exponents that the rounds found, one fit a round; and how many rounds had none.

    Args:
        by_length: for each length, a value a round.
    """
    fits = [exponent(lengths, values) for values in zip(*by_length, strict=True)]
    return {"exponent": spread([fit for fit in fits if fit is not None]), "without": fits.count(None)}


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module returns, in a new process that gives freed blocks back to the system at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # read by glibc as the new process starts
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def extra_memory(work: Callable[[], Any]) -> float:
    """MiB of the peak of this process during `work`, over what it holds before. Needs Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is used now
    before = peak_memory()
    work()
    return peak_memory() - before


def peak_memory() -> float:
    """MiB, the most that this process has held. Needs Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def machine() -> dict[str, Any]:
    """What figures depend on besides the code."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, with what all have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs: sizes are so small that figures mean little"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, and print nothing")
    return parser


def finish(part: str, figures: dict[str, Any], asked: argparse.Namespace) -> None:
    """Print what a benchmark has found, or write it down."""
    found = rounded({"machine": machine(), "quick": asked.quick, **figures})
    if asked.json:
        asked.json.write_text(json.dumps(found), encoding="utf-8")
    else:
        printed({part: found})


def _cpu() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rounded(value: Any, digits: int = 4) -> Any:
    """Figures in significant digits, throughout a structure of dicts and lists."""
    if isinstance(value, dict):
        return {key: rounded(v, digits) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
