"""`tokencredit heads`: which heads read the essential steps, whether they keep doing so, and what rhythm they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.models import load_model, load_policy
from tokencredit.cli.outputs import check_file
from tokencredit.cli.rhythm import print_rhythm
from tokencredit.cli.terminal import console, needed_packages, offline_if_local, quiet_libraries, say, user_errors

if TYPE_CHECKING:
    from tokencredit.head_files import HeadRank
    from tokencredit.heads import HeadStability
    from tokencredit.labelled import Labelled


def heads(
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or hub name.", show_default="the testbed's warmed-up policy")
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Your labelled completions, JSONL (see `tokencredit.labelled`); by default MODEL is a testbed policy.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="Without --traces: gather, long_gather, two_hop, chain, countdown.")
    ] = "gather",
    level: Annotated[int | None, typer.Option(help="Its difficulty, 1 to 3.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seeds the warmed-up policy and the sampling.")] = 0,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of its warm-up.", show_default=False)] = None,
    completions: Annotated[int, typer.Option(min=1, help="How many to sample, one a held-out problem.")] = 300,
    labels: Annotated[
        str, typer.Option(help="Essential steps: exact (of the task or the file), or by ablation.")
    ] = "exact",
    threshold: Annotated[
        float, typer.Option(help="Ablation: nats that the answer's log-prob loses without an essential step.")
    ] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="How many heads to keep.")] = 3,
    against: Annotated[
        str | None, typer.Option(help="Another checkpoint: do heads keep their role?", show_default=False)
    ] = None,
    rhythm: Annotated[bool, typer.Option("--rhythm", help="Look for the preplan-and-anchor rhythm as well.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a head file, and a picture (.svg) beside it.", show_default=False)
    ] = None,
) -> None:
    """Rank attention heads by how well they tell essential from redundant steps (AttnPO's key-focus heads).

    The head file serves training: credit_params={"heads": "heads.json"}.
    """
    offline_if_local(model, against)
    with needed_packages("quickstart"):
        from tokencredit.ablation import ablate_steps
        from tokencredit.heads import head_stability, rank_heads
        from tokencredit.notices import unranked
    quiet_libraries()
    with user_errors():
        if labels not in ("exact", "ablation"):
            raise ValueError(f"labels must be exact or ablation; got {labels!r}")
        if out is not None and (out.suffix == ".svg" or not out.absolute().parent.is_dir()):
            raise ValueError(f"--out must name a .json file in a folder that exists; got {out}")
        if out is not None:
            check_file(out)
            check_file(out.with_suffix(".svg"))
        policy, tokenizer, found = _read(model, traces, task, level, seed, warmup_steps, completions)
        if labels == "ablation":
            drop, mask = ablate_steps(policy, found.rollouts)
            found = found._replace(essential=drop > threshold, mask=mask)
        ranks = rank_heads(policy, *found, batch_size=64)
        console.print(_table(ranks[:top]))
        for sentence in unranked(*found):
            console.print(f"[yellow]notice:[/] {escape(sentence)}")
        if out is not None:
            source = f"{labels} labels of {traces or task}"
            _write(out, policy, ranks, top, found, source)
        if against is not None:
            stability = head_stability(policy, load_model(against), found.rollouts, batch_size=64)
            console.print(_stability_table(stability, ranks[:top]))
        if rhythm:
            print_rhythm(policy, tokenizer, found.rollouts, seed)


def _read(
    model: str | None,
    traces: Path | None,
    task: str,
    level: int | None,
    seed: int,
    warmup_steps: int | None,
    completions: int,
) -> tuple[Any, Any, Labelled]:
    """The policy, its tokenizer, and its labelled completions."""
    from tokencredit.labelled import load_labelled
    from tokencredit.testbed.heads import labelled_completions
    from tokencredit.testbed.policy import build_tokenizer
    from tokencredit.testbed.problems import generate_problems
    from tokencredit.testbed.tasks import task as find_task
    from tokencredit.testbed.warmup import recipe_for, warmed_up_policy

    if traces is not None:
        if model is None:
            raise ValueError("--traces needs the MODEL that reads them")
        users_own, tokenizer = load_policy(model)
        return users_own, tokenizer, load_labelled(traces, tokenizer).labelled
    chosen, tokenizer = find_task(task, level=level), build_tokenizer()
    recipe = recipe_for(task, seed=seed, steps=warmup_steps)
    policy: Any = warmed_up_policy(chosen, recipe)[0] if model is None else load_model(model)
    if policy.config.vocab_size != len(tokenizer):
        raise ValueError(f"{model} is not a policy of the testbed: give its labelled completions, --traces FILE")
    problems = generate_problems(chosen, completions, held_out=True, seed=seed)
    return policy, tokenizer, labelled_completions(policy, tokenizer, chosen, problems, seed=seed)


def _table(ranks: Sequence[HeadRank]) -> Table:
    table = Table(title="heads by step ranking accuracy", title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("layer", "head", "accuracy", "pairs"):
        table.add_column(name, justify="right")
    for rank in ranks:
        table.add_row(str(rank.layer), str(rank.head), f"{rank.sra:.3f}", f"{rank.pairs:,}")
    return table


def _write(out: Path, policy: Any, ranks: Sequence[HeadRank], top: int, found: Labelled, labels: str) -> None:
    from tokencredit.head_files import HeadFile
    from tokencredit.report.charts import heat_map
    from tokencredit.signals import model_signature

    count = int(found.rollouts.has_answer.sum())
    HeadFile(model_signature(policy), tuple(ranks[:top]), completions=count, labels=labels).write(out)
    grid = [[0.0] * (1 + max(r.head for r in ranks)) for _ in range(1 + max(r.layer for r in ranks))]
    for rank in ranks:
        grid[rank.layer][rank.head] = rank.sra
    picture = out.with_suffix(".svg")
    picture.write_text(heat_map(grid, xlabel="head", ylabel="layer", label="step ranking accuracy"), encoding="utf-8")
    say(f"written: {out} and {picture}")


def _stability_table(stability: Sequence[HeadStability], ranks: Sequence[HeadRank]) -> Table:
    correlation = {(s.layer, s.head): s.correlation for s in stability}
    lowest = min(stability, key=lambda s: s.correlation)
    table = Table(title="stability of step scores", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("head", justify="right")
    table.add_column("Pearson", justify="right")
    for rank in ranks:
        table.add_row(str(rank.layer), str(rank.head), f"{correlation[rank.layer, rank.head]:.3f}")
    table.caption = (
        f"lowest of all {len(stability)}: {lowest.correlation:.3f} (layer {lowest.layer} head {lowest.head})"
    )
    table.caption_justify = "left"
    return table
