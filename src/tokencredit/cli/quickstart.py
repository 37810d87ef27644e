"""`tokencredit quickstart`: train a reasoning policy here and now, and show where the credit went."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.outputs import Overwrite, Resume, check_claim, claim_folder, explained_interruption
from tokencredit.cli.terminal import Bars, console, needed_packages, offline, quiet_libraries, say, user_errors

if TYPE_CHECKING:
    from tokencredit.testbed.quickstart import Quickstart

_GROWS = ("methods",)
"""The settings that a run may get more of when it goes on."""


def quickstart(
    methods: Annotated[
        str, typer.Option(help="Methods, NAME or NAME:PARAMETER=VALUE, separated by commas, or 'all'.")
    ] = "uniform,atpo",
    task: Annotated[str, typer.Option(help="gather, long_gather, two_hop, chain or countdown.")] = "gather",
    level: Annotated[int | None, typer.Option(help="Difficulty, 1 to 3; the task's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the policy, the problems and the sampling.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps a method.")] = 50,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts a step, 8 completions each.")] = 16,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the warm-up.", show_default=False)] = None,
    reward_model_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the reward model that p2t reads.", show_default=False)
    ] = None,
    evaluate_on: Annotated[int, typer.Option(min=1, help="Held-out problems that accuracy is measured on.")] = 300,
    problems: Annotated[
        Path | None,
        typer.Option(
            help="Your problems: a file of any format of docs/formats.md; a fifth of them is held out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/quickstart-TIME")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Warm up a tiny policy, train it with each credit method, and write a report.

    The policies share checkpoint, problems, seed and rollout budget; methods that read a LoRA adapter train one.
    With --resume, a run keeps the methods that it has finished, and new ones may be added to it.
    """
    offline()
    with needed_packages("quickstart"):
        from tokencredit.methods.specs import expand_specs
        from tokencredit.paths import existing_file
        from tokencredit.report import write_report
        from tokencredit.testbed.quickstart import Quickstart, prepare, run
        from tokencredit.testbed.reward_model import RewardTraining
        from tokencredit.testbed.runs import RunFolder
        from tokencredit.testbed.training import Budget
        from tokencredit.testbed.warmup import recipe_for
    quiet_libraries()
    folder_path = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    with user_errors():
        q = Quickstart(
            methods=expand_specs(methods),
            task=task,
            level=level,
            seed=seed,
            problems=None if problems is None else str(existing_file(problems)),
            evaluation_problems=evaluate_on,
            budget=Budget(steps=steps, prompts=prompts, seed=seed),
            warm_up=recipe_for(task, seed=seed, steps=warmup_steps),
            reward_training=RewardTraining()
            if reward_model_steps is None
            else RewardTraining(steps=reward_model_steps),
        )
        settings = q.as_config()
        check_claim(folder_path, settings, overwrite=overwrite, resume=resume, grows=_GROWS, inputs=(problems,))
        found = prepare(q)
        claim_folder(folder_path, settings, overwrite=overwrite, resume=resume, grows=_GROWS, inputs=(problems,))
    folder = RunFolder(folder_path)
    how_to_go_on = f"Finished methods are kept; to go on, give the same command with --out {folder_path} --resume"
    with explained_interruption(how_to_go_on), Bars() as progress:
        run(q, found, folder, progress)
    console.print(_table(q, folder.results))
    say(_what_next(q, write_report(folder_path)))


def _what_next(q: Quickstart, report: Path) -> str:
    """Where the report lies, what it shows, and commands to go on with."""
    command = _own_command()
    return f"""report: {report}
Open it in a browser; it needs no network. It shows completions of the trained
policies: every token is shaded by its credit under each method, blue for more
reward and orange for less; steps that the answer needs are underlined, and the
first error is boxed. Below are accuracy, reward and credit during training.

Next:
  {command} quickstart --task {q.task} --methods all
      every method on this task
  {command} score MODEL --traces traces.jsonl --open
      the same page for your own model and completions (docs/report.md)
  {command} train --config config.yaml
      train your own model with TRL (docs/trl.md; examples/ has configurations)"""


def _own_command() -> str:
    """How this shell can call tokencredit: by its name where it is on the path, else by the path of the script."""
    script = Path(sys.prefix) / "bin" / "tokencredit"
    if shutil.which("tokencredit") or not script.exists():
        return "tokencredit"
    return os.path.relpath(script)


def _table(q: Quickstart, results: dict[str, Any]) -> Table:
    """A row a method, narrow enough for 80 columns."""
    before = results["before"]
    table = Table(
        title=f"{q.task}: accuracy on {before['greedy']['count']} held-out problems, 95 % intervals",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    # A name may be folded, a number never: one that is cut off is another number.
    table.add_column("method", overflow="fold")
    for name in ("greedy", "T = 1", "tokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("before", *(_accuracy(before[kind]) for kind in ("greedy", "sampled")), "", "")
    for name in q.methods:
        result = results["methods"][name]
        table.add_row(
            escape(f"{name} (LoRA)" if result["adapter"] else name),
            *(_accuracy(result["after"][kind]) for kind in ("greedy", "sampled")),
            f"{result['tokens']:,}",
            f"{result['seconds']:.0f}",
        )
    return table


def _accuracy(a: dict[str, float]) -> str:
    return escape(f"{a['value']:.3f} [{a['low']:.2f}, {a['high']:.2f}]")
