"""Recordings on disk, and the comparison of two of them.

A recording maps keys to values: a tensor, or a text such as a hash. Tensors are kept in a compressed safetensors file;
what has few numbers is a JSON file that a reader can look at.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

DATA = Path(__file__).parent / "data"
CREDIT, TRL, VERL = DATA / "credit.safetensors.gz", DATA / "trl.json", DATA / "verl.json"

Runs = Mapping[str, Mapping[str, list[float] | str]]


def write_tensors(path: Path, values: Mapping[str, Tensor]) -> None:
    # Without a time in its header the file depends on the values alone.
    path.write_bytes(gzip.compress(to_bytes(dict(values)), 9, mtime=0))


def write_runs(path: Path, runs: Runs) -> None:
    """name of a run -> name of a value -> one number per step, or a text."""
    lines = [f"{json.dumps(name)}: {json.dumps(values, indent=1)}" for name, values in runs.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def read(path: Path) -> dict[str, Tensor | str]:
    """A recording of either kind, by flat keys."""
    if path.suffix == ".json":
        return flat(json.loads(path.read_text("utf-8")))
    return dict(from_bytes(gzip.decompress(path.read_bytes())))


def flat(runs: Runs) -> dict[str, Tensor | str]:
    """Numbers as float64, under "run | name"."""
    return {
        f"{run} | {name}": value if isinstance(value, str) else torch.tensor(value, dtype=torch.float64)
        for run, values in runs.items()
        for name, value in values.items()
    }


def report(before: Mapping[str, Tensor | str], after: Mapping[str, Tensor | str]) -> tuple[bool, list[str]]:
    """Whether two recordings are equal bit for bit, and lines that say so, or where and how much they differ.

    There is one line per case, which is a key without its last part, with the value that differs most.
    """
    missing, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    lines = [*(f"only before: {key}" for key in missing), *(f"only after: {key}" for key in new)]
    worst: dict[str, tuple[float, str]] = {}
    for key in before.keys() & after.keys():
        difference, shown = differing(before[key], after[key])
        case, _, field = key.rpartition(" | ")
        if difference > worst.get(case, (0.0, ""))[0]:
            worst[case] = difference, f"{field}: {shown}"
    lines += [f"{case}: {shown}" for case, (_, shown) in sorted(worst.items(), key=lambda item: (-item[1][0], item[0]))]
    cases = len({key.rpartition(" | ")[0] for key in before})
    if not lines:
        return True, [f"equal bit for bit: {cases} cases, {len(before)} values"]
    return False, [f"different: {len(worst)} of {cases} cases, {len(missing) + len(new)} keys that one lacks", *lines]


def differing(a: Tensor | str, b: Tensor | str) -> tuple[float, str]:
    """The largest difference, 0 where the bits are equal and infinite where they cannot be subtracted; and in words."""
    if isinstance(a, str) or isinstance(b, str):
        return (0.0, "") if a == b else (float("inf"), "other bytes")
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf"), f"{a.dtype} {tuple(a.shape)} before, {b.dtype} {tuple(b.shape)} after"
    if a.numpy().tobytes() == b.numpy().tobytes():
        return 0.0, ""
    largest = float((a.double() - b.double()).abs().max())
    if largest == 0:  # 0 and -0
        return torch.finfo(torch.float64).tiny, "other signs of zero"
    return (largest, f"{largest:.3g}") if largest == largest else (float("inf"), "NaN")
