"""Train a real language model with token-level credit, from a warm-up to a report, on two CPU cores.

    python examples/smollm2.py          # what `make real` runs

Every stage is a command of tokencredit, which is printed before it runs. A stage that is done is not repeated, so after
an interruption the same command goes on. docs/real_model.md explains the stages and their settings.

The model is SmolLM2-135M-Instruct. --model takes another one, which needs a chat template.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOKENCREDIT = (sys.executable, "-m", "tokencredit.cli")
CONFIG = Path(__file__).with_suffix(".yaml")
TRACES = 24
NO_INSTRUCTION = ("--instruction", "")
"""The warm-up teaches where to write the answer, so the problems are given as they are."""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="the folder of the run")
    parser.add_argument("--model", type=Path, help="the folder of another model")
    parser.add_argument("--warmup-steps", type=int, default=60, help="updates of the warm-up")
    parser.add_argument("--steps", type=int, default=30, help="updates of reinforcement learning")
    parser.add_argument("--held-out", type=int, default=128, help="problems that accuracy is measured on")
    arguments = parser.parse_args(words)
    try:
        check_settings(arguments)
        run(arguments)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from here.")
    except OSError as error:
        sys.exit(f"error: {error}")


def check_settings(arguments: argparse.Namespace) -> None:
    """Keep the settings of a new run; end where the folder holds a run with other settings, whose stages do not fit."""
    settings = {name: None if value is None else str(value) for name, value in vars(arguments).items() if name != "out"}
    path = arguments.out / "settings.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else settings
    if differing := sorted(name for name in settings if settings[name] != kept.get(name)):
        names = ", ".join(f"--{name.replace('_', '-')} {kept.get(name)}" for name in differing)
        sys.exit(f"error: {arguments.out} holds a run with other settings ({names}): choose another --out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(settings, indent=2) + "\n")


def run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    problems, warm, trained, report = out / "problems", out / "warm", out / "trained", out / "report"
    model = None if warm.exists() else arguments.model or packaged_model()
    stage(out, "problems", "word-problems", "--out", problems, "--held-out", arguments.held_out)
    if model is not None:
        lessons = ("--data", problems / "lessons.jsonl", "--chat", "--steps", arguments.warmup_steps)
        resumed = ["--resume"] if warm.with_name("warm.unfinished").exists() else []
        stage(out, "warm-up", "warmup", model, *lessons, "--out", warm, *resumed)
    evaluations(out, warm, "before")
    # The adapter remembers where its base model is, so the path should be valid from every folder.
    settings = ("--model_name_or_path", warm.resolve(), "--data", problems / "train.jsonl", "--output_dir", trained)
    resumed = [word for folder in checkpoints(trained)[-1:] for word in ("--resume_from_checkpoint", folder)]
    steps = ("--max_steps", arguments.steps)
    stage(out, "training", "train", "--config", CONFIG, *settings, *NO_INSTRUCTION, *steps, *resumed)
    evaluations(out, trained, "after")
    write_traces(out / "after-sampled.jsonl", out / "traces.jsonl")
    if "report" not in finished(out):
        shutil.rmtree(report, ignore_errors=True)
    traces = ("--traces", out / "traces.jsonl", "--methods", "rhythm,atpo,surprisal")
    stage(out, "report", "score", trained, *traces, "--out", report)
    print(summary(out))
    print(f"report: {report / 'report.html'}")


def packaged_model() -> str:
    """The folder of SmolLM2, whose weights the first call converts."""
    done = subprocess.run([*TOKENCREDIT, "smollm2"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(1)  # the command has said why
    return done.stdout.strip()


def stage(out: Path, name: str, *words: object) -> None:
    """Run a command of tokencredit unless this stage is done, and write down how long it took."""
    if name in finished(out):
        return
    command = [str(word) for word in words]
    print(f"\n$ tokencredit {shlex.join(command)}", flush=True)
    started, before = time.time(), cpu_seconds()
    if exit_code(command):
        sys.exit(f"tokencredit {command[0]} failed. Once the cause is removed, the same command goes on from here.")
    times = {"seconds": time.time() - started, "cpu_seconds": cpu_seconds() - before}
    write(out / "stages.json", json.dumps({**finished(out), name: times}, indent=2) + "\n")


def exit_code(command: list[str]) -> int:
    """Run a command of tokencredit in a process of its own."""
    return subprocess.run([*TOKENCREDIT, *command], env=ENVIRONMENT, check=False).returncode


def write(path: Path, text: str) -> None:
    """The file appears when it is complete."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def finished(out: Path) -> dict[str, dict[str, float]]:
    """The stages that are done, and how long they took."""
    path = out / "stages.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def cpu_seconds() -> float:
    """Of the commands that have run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def evaluations(out: Path, model: Path, when: str) -> None:
    """Accuracy on the held-out problems: greedy, and of one sample per problem at temperature 1."""
    for kind, temperature in (("greedy", 0), ("sampled", 1)):
        results = out / f"{when}-{kind}.json"
        completions = results.with_suffix(".jsonl")
        resumed = ["--resume"] if results.with_name(f"{results.name}.partial").exists() else []
        if results.stem not in finished(out) and not resumed:  # what an interrupted evaluation may have left
            results.unlink(missing_ok=True)
            completions.unlink(missing_ok=True)
        problems = ("--data", out / "problems" / "heldout.jsonl", "--chat", *NO_INSTRUCTION)
        sampling = ("--temperature", temperature, "--max-new-tokens", 64, "--batch-size", 32)
        files = ("--out", results, "--completions", completions)
        stage(out, results.stem, "eval", model, *problems, *sampling, *files, *resumed)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of training, the latest last: the trainer's state is written after the weights."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    return sorted((state.parent for state in states), key=lambda path: int(path.name.partition("-")[2]))


def write_traces(completions: Path, traces: Path) -> None:
    """The first held-out completions, as `tokencredit score` reads them."""
    # A completion may hold U+2028 and other characters that splitlines would take for the end of a line.
    rows = [json.loads(line) for line in completions.read_text("utf-8").split("\n")[:TRACES] if line]
    kept = [{k: row[k] for k in ("prompt", "completion", "reward")} | {"correct": row["reward"] == 1} for row in rows]
    traces.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")


def summary(out: Path) -> str:
    lines = ["", "accuracy on held-out problems, 95 % intervals", ""]
    lines.append(f"{'':8}{'greedy':>22}{'T = 1':>22}")
    for when in ("before", "after"):
        results = [json.loads((out / f"{when}-{kind}.json").read_text())["reward"] for kind in ("greedy", "sampled")]
        cells = [f"{reward['value']:.3f} [{reward['low']:.2f}, {reward['high']:.2f}]" for reward in results]
        lines.append(f"{when:8}{cells[0]:>22}{cells[1]:>22}")
    times = finished(out).values()
    wall, cpu = (sum(row[name] for row in times) / 60 for name in ("seconds", "cpu_seconds"))
    return "\n".join([*lines, "", f"{wall:.0f} minutes, {cpu:.0f} of CPU time"])


if __name__ == "__main__":
    main()
