"""`tokencredit heads`: which heads read the essential steps, whether they keep doing so, and what rhythm they show."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokencredit.cli import trace_options
from tokencredit.cli.heads_tables import print_ranking, print_stability
from tokencredit.cli.heads_traces import ABLATION, EXACT, Least, Traces, for_ablation, label_by_ablation, read_traces
from tokencredit.cli.models import load_model, load_policy
from tokencredit.cli.outputs import Overwrite, claim_file
from tokencredit.cli.rhythm import print_rhythm
from tokencredit.cli.terminal import Bars, needed_packages, offline_if_local, quiet_libraries, say, user_errors

if TYPE_CHECKING:
    from tokencredit.head_files import HeadRank, HeldOut
    from tokencredit.head_ranking import StepPairs
    from tokencredit.labelled import Labelled

_MORE = (
    "Use more completions (`tokencredit eval --samples` draws several of each problem), a finer --splitter, or, with "
    "labels by ablation, another --threshold"
)
_OF_TRACES = {
    "splitter": "phrases",
    "end_of_reasoning": "</think>",
    "answer": "auto",
    "chat": False,
    "long_traces": "refuse",
    "correct_threshold": None,
}
_OF_TESTBED = {"task": "gather", "level": None, "warmup_steps": None, "completions": 300}


def heads(
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or hub name.", show_default="the testbed's warmed-up policy")
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Your completions, as text or in labelled steps: a file of any format of docs/formats.md; by default "
            "MODEL is a testbed policy.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Essential steps: exact (of the testbed's task or the file), or by ablation.")
    ] = EXACT,
    threshold: Annotated[
        float, typer.Option(help="Ablation: nats that the answer's log-prob loses without an essential step.")
    ] = 1.0,
    splitter: trace_options.Splitter = "phrases",
    end_of_reasoning: trace_options.EndOfReasoning = "</think>",
    answer: trace_options.Answer = "auto",
    chat: trace_options.Chat = False,
    long_traces: trace_options.LongTraces = "refuse",
    correct_threshold: Annotated[
        float | None,
        typer.Option(
            help="A reward of this or more is correct, where a completion has a reward but no correct.",
            show_default="rewards of 0 and 1 only",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N completions that can be used.", show_default=False)
    ] = None,
    min_pairs: Annotated[int, typer.Option(min=1, help="Refuse to rank heads on fewer pairs of steps.")] = 20,
    min_completions: Annotated[int, typer.Option(min=1, help="Refuse to rank heads on fewer completions.")] = 8,
    top: Annotated[int, typer.Option(min=1, help="How many heads to keep.")] = 3,
    against: Annotated[
        str | None, typer.Option(help="Another checkpoint: do heads keep their role?", show_default=False)
    ] = None,
    rhythm: Annotated[bool, typer.Option("--rhythm", help="Look for the preplan-and-anchor rhythm as well.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a forward pass; it changes no result.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="Write a head file, and a picture (.svg) beside it.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    task: Annotated[
        str, typer.Option(help="Without --traces: gather, long_gather, two_hop, chain, countdown.")
    ] = "gather",
    level: Annotated[int | None, typer.Option(help="Its difficulty, 1 to 3.", show_default=False)] = None,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of its warm-up.", show_default=False)] = None,
    completions: Annotated[
        int, typer.Option(min=1, help="Without --traces: how many to sample, one per held-out problem.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Seeds the testbed, and the halves that heads are checked on.")] = 0,
) -> None:
    """Rank attention heads by how well they tell essential from redundant steps (AttnPO's key-focus heads).

    The head file serves training: credit_params={"heads": "heads.json"}.
    """
    offline_if_local(model, against)
    from tokencredit.heads import head_stability
    from tokencredit.paths import existing_file

    quiet_libraries()
    spans = {"splitter": splitter, "end_of_reasoning": end_of_reasoning, "answer": answer}
    of_traces: dict[str, Any] = {
        **spans,
        "chat": chat,
        "long_traces": long_traces,
        "correct_threshold": correct_threshold,
    }
    of_testbed = {"task": task, "level": level, "warmup_steps": warmup_steps, "completions": completions}
    with user_errors():
        _check_options(labels, threshold, model, traces, of_traces, of_testbed)
        if traces is not None:
            existing_file(traces)
        _check_outputs(out, traces, overwrite)
        least = Least(min_pairs, min_completions)
        if traces is None or model is None:
            policy, tokenizer, read = _testbed(model, task, level, seed, warmup_steps, completions)
        else:
            policy, tokenizer = load_policy(model)
            read = read_traces(traces, policy, tokenizer, **of_traces, needs_correct=labels == ABLATION)
        other = None if against is None else load_model(against)
        for note in read.notes:
            say(f"note: {note}")
        if labels == ABLATION:
            usable = for_ablation(read, limit, least)
            labelled = label_by_ablation(policy, usable, threshold, batch_size)
        else:
            labelled = read.labelled(traces)
        labelled = _enough(labelled, least, limit)
        pairs = _order(policy, labelled, batch_size)
        kept = [pairs.with_interval(rank) for rank in pairs.ranks()[:top]]
        held_out = pairs.held_out(top, seed)
        print_ranking(pairs, kept, held_out)
        if out is not None:
            source = f"{_described(labels, threshold, read, spans)} of {traces or task}"
            _write(out, policy, pairs, kept, held_out, source)
        if other is not None:
            print_stability(head_stability(policy, other, labelled.rollouts, batch_size=batch_size), kept)
        if rhythm:
            print_rhythm(policy, tokenizer, labelled.rollouts, seed, batch_size)
        if out is not None:
            _say_next(out, read, spans)


def _check_options(
    labels: str,
    threshold: float,
    model: str | None,
    traces: Path | None,
    of_traces: Mapping[str, Any],
    of_testbed: Mapping[str, Any],
) -> None:
    """Raise a ValueError where options are unknown, exclude each other, or would have no effect."""
    from tokencredit.long_traces import check_rule
    from tokencredit.steps import check_span_options

    if labels not in (EXACT, ABLATION):
        raise ValueError(f"labels must be {EXACT} or {ABLATION}; got {labels!r}")
    correct_threshold = of_traces["correct_threshold"]
    for name, value in (("--threshold", threshold), ("--correct-threshold", correct_threshold)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number; got {value}")
    if traces is not None and model is None:
        raise ValueError("--traces needs the MODEL that reads them")
    check_rule(of_traces["long_traces"])
    check_span_options(of_traces["splitter"], of_traces["end_of_reasoning"], of_traces["answer"])
    if labels != ABLATION and correct_threshold is not None:
        raise ValueError(f"--correct-threshold goes with --labels {ABLATION}, which takes correct completions only")
    usual, given = (_OF_TRACES, of_traces) if traces is None else (_OF_TESTBED, of_testbed)
    if changed := [f"--{name.replace('_', '-')}" for name, value in given.items() if value != usual[name]]:
        with_or_without = "with" if traces is None else "without"
        raise ValueError(f"{' and '.join(changed)} can be given {with_or_without} --traces only")


def _check_outputs(out: Path | None, traces: Path | None, overwrite: bool) -> None:
    if out is None:
        return
    if traces is not None and out.resolve() == traces.resolve():
        raise ValueError(f"--out {out} is the file of --traces, which would be lost: choose another file")
    if out.suffix == ".svg" or not out.absolute().parent.is_dir():
        raise ValueError(f"--out must name a .json file in a folder that exists; got {out}")
    claim_file(out, overwrite=overwrite)
    claim_file(out.with_suffix(".svg"), overwrite=overwrite)


def _testbed(
    model: str | None, task: str, level: int | None, seed: int, warmup_steps: int | None, completions: int
) -> tuple[Any, Any, Traces]:
    """A policy of the testbed, its tokenizer, and completions of it whose steps are labelled exactly."""
    with needed_packages("quickstart"):
        from tokencredit.testbed.heads import labelled_completions
        from tokencredit.testbed.policy import build_tokenizer
        from tokencredit.testbed.problems import generate_problems
        from tokencredit.testbed.tasks import task as find_task
        from tokencredit.testbed.warmup import recipe_for, warmed_up_policy

    problem_task, tokenizer = find_task(task, level=level), build_tokenizer()
    recipe = recipe_for(task, seed=seed, steps=warmup_steps)
    policy: Any = warmed_up_policy(problem_task, recipe)[0] if model is None else load_model(model)
    if policy.config.vocab_size != len(tokenizer):
        raise ValueError(f"{model} is not a policy of the testbed: give its completions, --traces FILE")
    problems = generate_problems(problem_task, completions, held_out=True, seed=seed)
    labelled = labelled_completions(policy, tokenizer, problem_task, problems, seed=seed)
    # Wrong completions have lost their answer, so they count as completions without one.
    return policy, tokenizer, Traces(labelled.rollouts, True, labelled, [None] * len(labelled.rollouts), [])


def _enough(labelled: Labelled, least: Least, limit: int | None) -> Labelled:
    """The completions to rank heads on; raises a ValueError where there are too few."""

    from tokencredit.head_ranking import count_pairs
    from tokencredit.notices import unranked

    counts = count_pairs(*labelled)
    least.check(counts, "The labels give", _MORE)
    for sentence in unranked(*labelled):
        say(f"note: {sentence}")
    rows = counts.nonzero().flatten()
    if limit is None or len(rows) <= limit:
        return labelled
    say(f"note: {limit} of them are used (--limit)")
    rows = rows[:limit]
    least.check(counts[rows], f"With --limit {limit}, the labels give", _MORE)
    on_device = rows.to(labelled.rollouts.completion_ids.device)
    return type(labelled)(labelled.rollouts.rows(on_device), labelled.essential[rows], labelled.mask[rows])


def _order(policy: Any, labelled: Labelled, batch_size: int) -> StepPairs:
    from tokencredit.head_ranking import count_pairs, order_steps

    with Bars() as bars:
        bars.stage("ranking", int((count_pairs(*labelled) > 0).sum()))
        return order_steps(policy, *labelled, batch_size=batch_size, on_progress=lambda done, _: bars.advance(done))


def _described(labels: str, threshold: float, read: Traces, spans: Mapping[str, str]) -> str:
    """What said which steps are essential, and what found the steps, for the head file."""
    by = f"ablation labels, threshold {threshold:g} nats" if labels == ABLATION else f"{EXACT} labels"
    return by if read.has_steps else f"{by}, splitter {spans['splitter']}"


def _write(
    out: Path, policy: Any, pairs: StepPairs, kept: Sequence[HeadRank], held_out: HeldOut | None, labels: str
) -> None:
    from tokencredit.files import write_text
    from tokencredit.head_files import HeadFile
    from tokencredit.signals import model_signature

    count = int((pairs.pairs > 0).sum())
    HeadFile(model_signature(policy), tuple(kept), completions=count, labels=labels, held_out=held_out).write(out)
    try:
        from tokencredit.report.charts import heat_map
    except ModuleNotFoundError as error:
        say(f'written: {out}; a picture beside it needs {error.name}: pip install "tokencredit[quickstart]"')
        return
    ranks = pairs.ranks()
    grid = [[0.0] * (1 + max(r.head for r in ranks)) for _ in range(1 + max(r.layer for r in ranks))]
    for rank in ranks:
        grid[rank.layer][rank.head] = rank.sra
    picture = out.with_suffix(".svg")
    write_text(picture, heat_map(grid, xlabel="head", ylabel="layer", label="step ranking accuracy"))
    say(f"written: {out} and {picture}")


def _say_next(out: Path, read: Traces, spans: Mapping[str, str]) -> None:
    """How to train with the head file; the steps must be found there as they were here."""
    changed = [] if read.has_steps else [name for name, value in spans.items() if value != _OF_TRACES[name]]
    options = "".join(f" --credit_{name} {shlex.quote(spans[name])}" for name in changed)
    params = shlex.quote(json.dumps({"heads": str(out)}))
    say(f"to train with them: tokencredit train ... --credit_method attnpo --credit_params {params}{options}")
