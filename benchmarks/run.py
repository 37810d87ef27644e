"""All benchmarks, one after the other, each in a process of its own; then one summary.

    make bench                      or    python benchmarks/run.py [--only signals p2t_cost ...] [--quick]
    make bench ARGS=--keep          also into benchmarks/measured.json, and docs/performance.md from it

Nothing else should run on the machine meanwhile. `verl_step` runs in verl's own environment and is left out where there
is none. A part that was not run keeps the figures that it had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make
from tables import GRIDS, Figures, printed

HERE = Path(__file__).parent
VERL_PYTHON = HERE.parent / ".venv-verl" / "bin" / "python"


def run(part: str, python: Path, quick: bool) -> Figures | None:
    """What a part has measured; None where it failed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "figures.json"
        command = [python, HERE / f"{part}.py", "--json", found, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        figures = json.loads(found.read_text("utf-8")) if done.returncode == 0 else None
    print(f"{part}: {time.perf_counter() - started:.0f} seconds" if figures else f"{part}: failed", flush=True)
    if figures is None:
        print(done.stderr[-3000:], file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GRIDS, default=list(GRIDS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="see that all run; figures mean little")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--verl-python", type=Path, default=VERL_PYTHON, help="of verl's environment")
    asked = parser.parse_args()
    measured, failed = {}, []
    for part in asked.only:
        if part == "verl_step" and not asked.verl_python.exists():
            print(f"{part}: left out, for {asked.verl_python} is not there; make test-verl makes verl's environment")
            continue
        python = asked.verl_python if part == "verl_step" else Path(sys.executable)
        figures = run(part, python, asked.quick)
        if figures is None:
            failed.append(part)
        else:
            measured[part] = figures
    printed(measured)
    if asked.keep:
        print(make.keep(measured))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
