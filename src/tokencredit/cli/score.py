"""`tokencredit score`: where credit goes in your own traces, under your own model."""

from __future__ import annotations

import json
from datetime import datetime
from functools import reduce
from importlib.metadata import version
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokencredit.cli.outcomes import check_outcome, known_outcomes, outcome_advantages
from tokencredit.cli.outputs import Overwrite, check_claim, claim_folder, explained_interruption
from tokencredit.cli.score_tables import summary_table, trace_table
from tokencredit.cli.terminal import Bars, console, offline_if_local, quiet_libraries, say, user_errors
from tokencredit.cli.trace_options import Answer, Chat, EndOfReasoning, LongTraces, Splitter

if TYPE_CHECKING:
    from torch import Tensor

    from tokencredit.completions import Completions
    from tokencredit.methods import Method

PICTURES = 24
"""Traces with a picture of what their answer attends to: the first ones."""


def score(
    model: Annotated[str, typer.Argument(help="The model that wrote or reads the traces: a folder or a hub name.")],
    traces: Annotated[
        Path, typer.Option(help="Completions, as text or in labelled steps: a file of any format of docs/formats.md.")
    ],
    methods: Annotated[
        str, typer.Option(help="Methods, NAME or NAME:PARAMETER=VALUE, separated by commas, or 'all'.")
    ] = "atpo,rhythm,surprisal",
    outcome: Annotated[
        str,
        typer.Option(
            help="Outcome advantages: sign (+1 for correct, -1 for wrong), or grpo, dr_grpo, rloo of the rewards."
        ),
    ] = "sign",
    correct_threshold: Annotated[
        float | None,
        typer.Option(
            help="With sign: a reward of this or more is correct, where a trace has a reward but no correct.",
            show_default="rewards of 0 and 1 only",
        ),
    ] = None,
    splitter: Splitter = "phrases",
    end_of_reasoning: EndOfReasoning = "</think>",
    answer: Answer = "auto",
    chat: Chat = False,
    long_traces: LongTraces = "refuse",
    reward_model: Annotated[
        str | None, typer.Option(help="A classifier that p2t reads: a folder or a hub name.", show_default=False)
    ] = None,
    attention: Annotated[
        bool, typer.Option(help="Show WAAD, FAI and what the answer attends to; they read the model's attention.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions a forward pass; it changes no credit.")] = 4,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/score-TIME")] = None,
    overwrite: Overwrite = False,
    table: Annotated[
        bool,
        typer.Option(
            "--table", help="Print a trace: its first ten tokens, those around the end of its reasoning, its last ten."
        ),
    ] = False,
    trace: Annotated[int | None, typer.Option(min=1, help="The trace of --table.", show_default="1")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Assign credit to completions of any model, and write it down and as a page, token by token.

    Prints one row per method: how concentrated its credit is, and what the answer and labelled steps get of it.
    """
    offline_if_local(model, reward_model)
    from tokencredit.assignment import assignable
    from tokencredit.cli.models import load_policy
    from tokencredit.completions import load_completions
    from tokencredit.files import write_text
    from tokencredit.long_traces import check_rule, context_of
    from tokencredit.methods.specs import build_specs, files_of
    from tokencredit.paths import existing_file
    from tokencredit.report import write_report
    from tokencredit.report.sources.score import ROWS
    from tokencredit.signals import RewardModel
    from tokencredit.steps import check_span_options

    quiet_libraries()
    folder = out or Path("runs") / f"score-{datetime.now():%Y%m%d-%H%M%S}"
    settings = {
        "command": "score",
        "tokencredit": version("tokencredit"),
        "model": model,
        "traces": str(traces),
        "methods": methods,
        "advantages": outcome,
        "correct_threshold": correct_threshold,
        "splitter": splitter,
        "end_of_reasoning": end_of_reasoning,
        "answer": answer,
        "chat": chat,
        "long_traces": long_traces,
        "reward_model": reward_model,
    }
    with user_errors(), explained_interruption("Nothing has been written."):
        if trace is not None and not table:
            raise ValueError("--trace is the trace that --table prints: give --table as well")
        inputs = (model, traces, reward_model, *files_of(methods))
        check_claim(folder, settings, overwrite=overwrite, inputs=inputs)
        existing_file(traces)
        check_rule(long_traces)
        check_outcome(outcome, correct_threshold)
        check_span_options(splitter, end_of_reasoning, answer)
        built, needing = build_specs(methods)
        policy, tokenizer = load_policy(model)
        completions = load_completions(
            traces,
            tokenizer,
            splitter,
            end_of_reasoning=end_of_reasoning,
            answer=answer,
            chat=chat,
            context=context_of(policy.config),
            long_traces=long_traces,
        )
        notes: list[str] = []
        if outcome == "sign":
            completions, notes = known_outcomes(completions, correct_threshold)
        long = completions.long
        shown = _place(trace or 1, completions) if table else 0
        scorer = None if reward_model is None else RewardModel.from_pretrained(reward_model, tokenizer)
        able, left_out = assignable(built, policy, scorer)
        left_out |= needing
        if not able:
            raise ValueError(f"no method is left: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
        advantages = outcome_advantages(outcome, completions)
        rows, notices = _scored(policy, tokenizer, able, completions, advantages, scorer, attention, batch_size)
    with user_errors():
        config = {**settings, "left_out": left_out, "notes": notes, "notices": notices}
        config["too_long"] = {**long.as_json(), "notes": long.notes}
        claim_folder(folder, config, overwrite=overwrite, inputs=inputs)
        write_text(folder / ROWS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        page = write_report(folder)
    console.print(summary_table(rows))
    for name, why in left_out.items():
        say(f"left out: {name}: {why}")
    for note in [*long.notes, *notes]:
        say(f"note: {note}")
    for sentence in (sentence for sentences in notices.values() for sentence in sentences):
        say(f"notice: {sentence}")
    if table:
        for name in rows[shown]["credit"]:
            console.print(trace_table(rows[shown], name))
    say(f"written: {folder / ROWS}\nreport: {page}")
    if open_page:
        typer.launch(str(page))


def _place(trace: int, completions: Completions) -> int:
    """Where a trace of the file, counted from 1, is among those that were not left out.

    Raises:
        ValueError: there is no such trace, or it was left out.
    """
    skipped = {long.number for long in completions.long.skipped}
    total = len(completions.labels) + len(skipped)
    if trace > total or trace in skipped:
        why = "is longer than the model's context and left out" if trace in skipped else f"there are {total} traces"
        raise ValueError(f"--trace {trace}: {why}")
    return trace - 1 - sum(number < trace for number in skipped)


def _scored(
    policy: Any,
    tokenizer: Any,
    methods: dict[str, Method],
    completions: Completions,
    advantages: Tensor,
    scorer: Any,
    attention: bool,
    batch_size: int,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The rows of `trace_rows`, with their labels and pictures; and where a method left completions uniform."""
    from tokencredit.analysis.traces import VIEW, attention_pictures, trace_rows
    from tokencredit.notices import notices_of
    from tokencredit.signals import Needs, collect

    rollouts = completions.rollouts
    needs = reduce(or_, (method.needs for method in methods.values()), VIEW if attention else Needs(logits=True))
    pictured = min(PICTURES, len(rollouts)) if attention else 0
    pictures = []
    with Bars() as bars:
        bars.stage("completions", len(rollouts))
        signals = collect(policy, rollouts, needs, scorer, batch_size=batch_size, on_progress=bars.advance)
        credits = {name: method(rollouts, advantages, signals) for name, method in methods.items()}
        if pictured:
            bars.stage("attention", pictured)
        for i in range(pictured):
            pictures += attention_pictures(policy, rollouts.rows(slice(i, i + 1)))
            bars.advance(i + 1)
    rows = trace_rows(tokenizer, rollouts, credits, signals)
    for i, (row, labels) in enumerate(zip(rows, completions.labels, strict=True)):
        row |= {**labels, "attention": pictures[i] if i < len(pictures) else None}
    return rows, notices_of(methods, credits)
