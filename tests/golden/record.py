"""Record the golden values, or compare with a recording. Run by hand, with OMP_NUM_THREADS=1:

    python tests/golden/record.py                            writes data/credit.safetensors.gz, which the tests read
    python tests/golden/record.py --trl                      writes data/trl.json
    python tests/golden/record.py --everything --dtype bfloat16 --out FILE.safetensors.gz
    python tests/golden/record.py --smollm2 --out FILE.safetensors.gz
    python tests/golden/record.py --trl --compare FILE.json  records anew, and says whether it is equal bit for bit
    python tests/golden/record.py --compare BEFORE AFTER     compares two files

Before a change that must not change any number, record with --out; after it, --compare on the same machine. Equality
bit for bit can be expected on one machine with one version of torch only.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from golden_files import CREDIT, TRL, flat, read, report, write_runs, write_tensors
from torch import Tensor


def credit(dtype: torch.dtype | None, everything: bool) -> dict[str, Tensor]:
    import cases

    values: dict[str, Tensor] = {}
    for model in cases.NAMES:
        values |= cases.recorded(model, dtype, everything=everything)
        print(f"{model}: {len(values)} values so far", file=sys.stderr, flush=True)
    return values


def trl(steps: int, out: Path | None) -> dict[str, dict[str, list[float] | str]]:
    """Written after each run, so that an interruption loses none of those before it."""
    import trl_runs

    runs: dict[str, dict[str, list[float] | str]] = {}
    for run in trl_runs.RUNS:
        runs[run.name] = trl_runs.recorded(run, steps)
        if out is not None:
            write_runs(out, runs)
        print(run.name, file=sys.stderr, flush=True)
    return runs


def smollm2(dtype: torch.dtype, folder: str | None) -> dict[str, Tensor]:
    import pretrained_cases

    return dict(pretrained_cases.recorded(folder, dtype))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--trl", action="store_true", help="training runs of TRL's trainer, instead of credit")
    what.add_argument("--smollm2", action="store_true", help="credit of a pretrained model, instead of tiny ones")
    parser.add_argument("--model", metavar="FOLDER", help="of the pretrained model; by default the converted SmolLM2")
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16"], help="of the models' weights")
    parser.add_argument("--everything", action="store_true", help="every case with every model")
    parser.add_argument("--steps", type=int, default=5, help="of each training run")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="one recording, or two")
    given = parser.parse_args()
    if given.compare and len(given.compare) > 2:
        parser.error("--compare takes one recording, or two")
    if given.smollm2 and not given.out and not given.compare:
        parser.error("--smollm2 needs --out or --compare: its recording is not kept in the repository")
    changed = given.everything or given.dtype or given.steps != 5
    if changed and not given.out and not given.compare:
        parser.error("what the tests read is recorded with the defaults: give --out for anything else")
    return given


def main() -> int:
    given = parse()
    torch.set_num_threads(1)
    if given.compare and len(given.compare) == 2:
        after = read(given.compare[1])
    elif given.trl:
        after = flat(trl(given.steps, given.out or (None if given.compare else TRL)))
    else:
        dtype = getattr(torch, given.dtype) if given.dtype else None
        after = smollm2(dtype or torch.float32, given.model) if given.smollm2 else credit(dtype, given.everything)
        if given.out or not given.compare:
            write_tensors(given.out or CREDIT, after)
    if not given.compare:
        return 0
    equal, lines = report(read(given.compare[0]), after)
    print("\n".join(lines))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
