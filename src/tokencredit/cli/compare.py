"""`tokencredit compare`: which credit trains better, at the same budget?"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.outputs import Overwrite, Resume, claim_folder, explained_interruption
from tokencredit.cli.terminal import Bars, console, needed_packages, offline, quiet_libraries, say, user_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokencredit.testbed.curves import ArmSummary, Interval


def compare(
    methods: Annotated[
        str,
        typer.Option(
            help="What to compare: [lora ][shuffled ]METHOD, or oracle, separated by commas, where METHOD is NAME or "
            "NAME:PARAMETER=VALUE; or 'all', which is most methods, with controls."
        ),
    ] = "all",
    task: Annotated[str, typer.Option(help="gather, long_gather, two_hop, chain or countdown.")] = "gather",
    level: Annotated[int | None, typer.Option(help="Its difficulty.", show_default=False)] = None,
    learning_rates: Annotated[str, typer.Option(help="Separated by commas; an adapter gets ten times as much.")] = (
        "1.5e-4,3e-4,6e-4"
    ),
    checkpoints: Annotated[int, typer.Option(min=1, help="Warm-ups to start from, of seeds 0, 1, ...")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm, rate and checkpoint, of seeds 0, 1, ...")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps of a run.")] = 60,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts a step.")] = 8,
    group_size: Annotated[int, typer.Option(min=2, help="Completions of each prompt.")] = 4,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 8,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the warm-up.", show_default=False)] = None,
    target: Annotated[float, typer.Option(min=0, max=1, help="Accuracy to count the steps to.")] = 0.7,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, of one thread each.")] = 2,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder.", show_default="runs/compare-TIME")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Train every arm from the same checkpoints on the same problems, and compare it with uniform credit, pair by pair.

    An interrupted sweep goes on with the same command, its --out and --resume. A sweep may be widened in the same way:
    it keeps its runs, and methods, learning rates, checkpoints and seeds that are new are added to it.
    """
    offline()
    with needed_packages("quickstart"):
        from tokencredit.files import write_text
        from tokencredit.report import write_report
        from tokencredit.testbed.compare import AXES, Comparison, config_of, split_arms, sweep
        from tokencredit.testbed.curves import at_best_rates, summarise
        from tokencredit.testbed.training import Budget
        from tokencredit.testbed.warmup import recipe_for
    quiet_libraries()
    folder = out or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    with user_errors():
        comparison = Comparison(
            arms=split_arms(methods),
            task=task,
            level=level,
            learning_rates=_rates(learning_rates),
            checkpoints=tuple(range(checkpoints)),
            seeds=tuple(range(seeds)),
            budget=Budget(steps=steps, prompts=prompts, group_size=group_size, updates_per_step=1, lora_rank=lora_rank),
            warm_up=recipe_for(task, steps=warmup_steps),
        )
        config = claim_folder(folder, config_of(comparison), overwrite=overwrite, resume=resume, grows=AXES)
    kept = {axis: [value for value in config[axis] if value not in getattr(comparison, axis)] for axis in AXES}
    if any(kept.values()):
        say(f"the sweep keeps its other {_in_words(kept)}")
    axes: dict[str, Any] = {axis: tuple(config[axis]) for axis in AXES}
    comparison = replace(comparison, **axes)
    how_to_go_on = f"Finished runs are kept; to go on, give the same command with --out {folder} --resume"
    with explained_interruption(how_to_go_on), Bars() as bars:
        bars.stage("runs", len(comparison.runs()))
        runs = sweep(
            comparison, folder, processes=processes, on_progress=lambda done, _, note: bars.advance(done, note)
        )
    summaries = summarise(runs, target)
    title = f"{len(runs)} runs; each arm, and uniform, at its own best learning rate; 95 % intervals"
    console.print(_table(at_best_rates(runs, target), title))
    results = {"config": config, "target": target, "summaries": [asdict(s) for s in summaries], "runs": runs}
    write_text(folder / "compare.json", json.dumps(results) + "\n")
    say(f"written: {folder / 'compare.json'}\nreport: {write_report(folder)}")


def _in_words(axes: dict[str, list[Any]]) -> str:
    names = {"arms": "methods", "learning_rates": "learning rates"}
    phrases = [f"{names.get(axis, axis)} ({', '.join(map(str, values))})" for axis, values in axes.items() if values]
    return " and ".join(phrases)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"learning rates must be numbers separated by commas; got {text!r}") from None
    if not all(0 < rate < 1 for rate in rates):
        raise ValueError(f"learning rates must be between 0 and 1; got {text!r}")
    return rates


def _table(summaries: Sequence[ArmSummary], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    # A name may be folded, a number never: one that is cut off is another number.
    table.add_column("method", overflow="fold")
    for name in ("rate", "area", "over uniform", "final", "collapsed", "to target"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in summaries:
        table.add_row(
            escape(s.arm),
            f"{s.learning_rate:g}",
            f"{s.area.mean:.3f}",
            "" if s.area_gain is None else _signed(s.area_gain),
            f"{s.final.mean:.3f}",
            f"{s.collapsed}/{s.runs}",
            "-" if s.steps_to_target is None else f"{s.steps_to_target:g}",
        )
    return table


def _signed(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.3f}"
    return escape(f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")
