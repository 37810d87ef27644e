"""`tokencredit audit`: does credit land where it should?"""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokencredit.cli.outputs import Overwrite, Resume, check_claim, claim_folder, explained_interruption
from tokencredit.cli.terminal import Bars, needed_packages, offline_if_local, quiet_libraries, say, user_errors
from tokencredit.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencredit.testbed.audit import TestbedAudit

_PARTS = "parts"
"""The folder, in the audit's own, of what is finished. It is removed once the audit is."""


def audit(
    model: Annotated[
        str | None, typer.Argument(help="With --traces: the model that wrote or reads them.", show_default=False)
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Your completions with labels, JSONL, in our layout or ProcessBench's (see docs/audit.md).",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, NAME or NAME:PARAMETER=VALUE, separated by commas, or 'all'.")
    ] = "all",
    task: Annotated[
        str, typer.Option(help="Without --traces: gather, long_gather, two_hop, chain, countdown.")
    ] = "gather",
    level: Annotated[int | None, typer.Option(help="Its difficulty.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seeds policies, problems, sampling and intervals.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps of the policies after RL.")] = 50,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the warm-up.", show_default=False)] = None,
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems, 8 completions each.")] = 60,
    estimated: Annotated[
        int, typer.Option(min=1, help="Correct, and wrong, completions with Monte-Carlo values and replacements.")
    ] = 40,
    samples: Annotated[int, typer.Option(min=2, help="Continuations of each of their prefixes.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of audit.json and report.html.", show_default="runs/audit-TIME"),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Score every method's credit against ground truth, beside controls that know nothing.

    Without MODEL: a policy of the testbed, before and after RL, whose truth is known exactly. A star marks what beats,
    by its whole interval, its own values shuffled within the completion, those that it gives the same token elsewhere,
    and position and step length.
    """
    offline_if_local(model)
    with needed_packages("quickstart"):
        from tokencredit.cli.audit_tables import print_audit
        from tokencredit.report import write_report
    quiet_libraries()
    folder = out or Path("runs") / f"audit-{datetime.now():%Y%m%d-%H%M%S}"
    with user_errors():
        if (model is None) != (traces is None):
            raise ValueError("MODEL and --traces go together; without both, the testbed is audited")
        if traces is not None and model is not None:
            config, prepare = _of_traces(model, traces, methods, seed)
        else:
            config, prepare = _of_testbed(
                _testbed(methods, task, level, seed, steps, warmup_steps, problems, estimated, samples)
            )
        check_claim(folder, config, overwrite=overwrite, resume=resume)
        finished = _finished(folder) if resume else None
        run = prepare() if finished is None else None
        claim_folder(folder, config, overwrite=overwrite, resume=resume)
    if run is not None:
        how = f"To go on with it, repeat the command with --out {folder} --resume"
        with explained_interruption(f"What is finished is kept in {folder}. {how}"):
            with Bars() as bars, user_errors():
                finished = {"config": config, "policies": run(folder / _PARTS, bars)}
        _write(folder, finished)
    assert finished is not None
    print_audit(finished)
    say(f"written: {folder / 'audit.json'}\nreport: {write_report(folder)}")


Run = "Callable[[Path, Bars], dict[str, Any]]"
"""From the folder for finished parts to the audit of each policy."""


def _testbed(
    methods: str,
    task: str,
    level: int | None,
    seed: int,
    steps: int,
    warmup_steps: int | None,
    problems: int,
    estimated: int,
    samples: int,
) -> TestbedAudit:
    from tokencredit.methods.specs import expand_specs
    from tokencredit.testbed.audit import TestbedAudit
    from tokencredit.testbed.training import Budget
    from tokencredit.testbed.warmup import recipe_for

    return TestbedAudit(
        arms=expand_specs(methods),
        task=task,
        level=level,
        seed=seed,
        problems=problems,
        estimated=estimated,
        samples=samples,
        budget=Budget(steps=steps, seed=seed),
        warm_up=recipe_for(task, seed=seed, steps=warmup_steps),
    )
