"""`tokencredit audit`: does credit land where it should?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.outputs import check_file, check_folder
from tokencredit.cli.terminal import (
    Bars,
    console,
    needed_packages,
    offline_if_local,
    quiet_libraries,
    say,
    user_errors,
)

if TYPE_CHECKING:
    from tokencredit.testbed.audit import TestbedAudit

_GROUPS = {
    "essential or redundant, in correct completions": {
        "AUROC": "essential_auroc",
        "step ranking": "step_ranking",
        "read": "step_ranking_direct",
        "not read": "step_ranking_indirect",
    },
    "first error, in wrong completions": {"AUROC": "error_auroc", "among results": "error_auroc_results"},
    "first error, at the top of the blame": {
        "hit@1": "error_hit_1",
        "hit@5": "error_hit_5",
        "1/rank": "error_reciprocal_rank",
    },
    "the policy's own values": {
        "advantage": "advantage_signed",
        "Pearson": "advantage_linear",
        "its size": "advantage_size",
        "replacement": "replacement",
    },
}


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
        Path | None, typer.Option(help="A folder for audit.json and report.html.", show_default=False)
    ] = None,
) -> None:
    """Score every method's credit against ground truth, beside controls that know nothing.

    Without MODEL: a policy of the testbed, before and after RL, whose truth is known exactly. A star marks what beats,
    by its whole interval, its own values shuffled within the completion, those that it gives the same token elsewhere,
    and position and step length.
    """
    offline_if_local(model)
    with needed_packages("quickstart"):
        from tokencredit.report import write_report
    quiet_libraries()
    with user_errors():
        if (model is None) != (traces is None):
            raise ValueError("MODEL and --traces go together; without both, the testbed is audited")
        if out is not None:
            check_folder(out)
            check_file(out / "audit.json")
        if traces is not None and model is not None:
            found = _of_traces(model, traces, methods, seed)
        else:
            asked = _testbed(methods, task, level, seed, steps, warmup_steps, problems, estimated, samples)
    if traces is None:
        found = _of_testbed(asked)
    for name, policy in found["policies"].items():
        console.print(f"[bold]{escape(name)}[/]: {_about(policy)}")
        for title, columns in _GROUPS.items():
            if any(measure in row["scores"] for row in policy["rows"] for measure in columns.values()):
                console.print(_table(title, columns, policy["rows"]))
        for left, why in policy["left_out"].items():
            say(f"left out: {left}: {why}")
        for sentence in (sentence for sentences in policy["notices"].values() for sentence in sentences):
            say(f"notice: {sentence}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "audit.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        say(f"written: {out / 'audit.json'}\nreport: {write_report(out)}")


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
    from tokencredit.methods.specs import split_specs
    from tokencredit.testbed.arms import ALL_ARMS
    from tokencredit.testbed.audit import TestbedAudit
    from tokencredit.testbed.training import Budget
    from tokencredit.testbed.warmup import recipe_for

    return TestbedAudit(
        arms=ALL_ARMS if methods == "all" else split_specs(methods),
        task=task,
        level=level,
        seed=seed,
        problems=problems,
        estimated=estimated,
        samples=samples,
        budget=Budget(steps=steps, seed=seed),
        warm_up=recipe_for(task, seed=seed, steps=warmup_steps),
    )


def _of_testbed(asked: TestbedAudit) -> dict[str, Any]:
    from tokencredit.testbed.audit import run_audit

    with Bars() as progress:
        return run_audit(asked, progress)


def _of_traces(model: str, path: Path, given: str, seed: int) -> dict[str, Any]:
    """The methods that need nothing but the model, or those that are named, on a user's completions."""
    from tokencredit import method
    from tokencredit.audit.policies import audit_policy
    from tokencredit.audit.traces import load_traces
    from tokencredit.cli.models import load_policy
    from tokencredit.methods.specs import check_specs, needs_heads, parse_spec, split_specs
    from tokencredit.testbed.arms import ALL_ARMS

    specs = ALL_ARMS if given == "all" else split_specs(given)
    check_specs(specs)
    without = {spec: "name its heads: attnpo:heads=heads.json" for spec in specs if needs_heads(*parse_spec(spec))}
    policy, tokenizer = load_policy(model)
    rollouts, truth, _ = load_traces(path, tokenizer)
    built = {
        spec: method(name, **params) for spec in specs if spec not in without for name, params in [parse_spec(spec)]
    }
    found = audit_policy(policy, tokenizer, built, rollouts, truth, batch_size=8, seed=seed)
    found["left_out"] |= without
    return {"config": {"command": "audit", "model": model, "traces": str(path)}, "policies": {model: found}}


def _about(policy: dict[str, Any]) -> str:
    told = f"{policy['completions']} completions, {policy['correct']} correct"
    if "accuracy" in policy:
        told += f", greedy accuracy {policy['accuracy']['value']:.3f}"
    if "values" in policy:
        values = policy["values"]
        if (attainable := values["ceilings"][-1]["attainable"]) is not None:
            told += f"; an exact advantage would reach at most {attainable:.2f} against {values['samples']} samples"
    return told


def _table(title: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    """Methods first, then the controls; of those made from a method's own values only what the stars say."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("credit", no_wrap=True)
    shown = {name: measure for name, measure in columns.items() if any(measure in row["scores"] for row in rows)}
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    kept = [row for row in rows if not row["name"].endswith((", shuffled", ", by token"))]
    for row in sorted(kept, key=lambda row: row["kind"] != "method"):
        style = None if row["kind"] == "method" else "dim"
        cells = [_cell(row["scores"].get(measure)) for measure in shown.values()]
        table.add_row(escape(row["name"]), *cells, style=style)
    return table


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    estimate, star = score["estimate"], "*" if score["informative"] else " "
    if estimate["low"] is None:
        return f"{_short(estimate['value'])}{star}"
    return escape(f"{_short(estimate['value'])} [{_short(estimate['low'])},{_short(estimate['high'])}]") + star


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)
