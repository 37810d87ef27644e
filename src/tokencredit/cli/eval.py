"""`tokencredit eval`: how well a model solves problems, and whether the reward knows their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.models import load_policy
from tokencredit.cli.outputs import check_file
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
    from tokencredit.evaluation import Estimate, EvaluationReport, Scored


def evaluate(
    data: Annotated[
        str, typer.Option(help="Problems: a .parquet, .jsonl or .json file, or a hub's dataset, NAME or NAME:CONFIG.")
    ],
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or hub name; not needed with --gold.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Of a hub's dataset.")] = "test",
    prompt_column: Annotated[
        str | None, typer.Option(help="By default prompt, question or problem.", show_default=False)
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="By default answer, verl's ground truth or solution.", show_default=False)
    ] = None,
    instruction: Annotated[
        str, typer.Option(help="Text behind each question, such as where to write the answer.", show_default=False)
    ] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="Make text prompts a user's message, for models with a chat template.")
    ] = False,
    reward: Annotated[
        str,
        typer.Option(
            help="math, format, chain, countdown, length_penalty, or package.module:function, which is imported and so "
            "run."
        ),
    ] = "math",
    samples: Annotated[int, typer.Option(min=1, help="Completions a problem; several give avg@n and pass@k.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer completions are cut off.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Seeds the sampling.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first problems only.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results, JSON.", show_default=False)] = None,
    completions: Annotated[
        Path | None,
        typer.Option(
            help="Write every completion, its reward and whether it is correct, JSONL for score --traces.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        bool, typer.Option("--gold", help="Score the problems' own answers instead: does the reward accept them?")
    ] = False,
) -> None:
    """Measure a model on problems with known answers: accuracy, avg@n and pass@k, with 95 % intervals."""
    offline_if_local(data, model)
    with needed_packages("eval"), user_errors():
        from tokencredit import rewards
        from tokencredit.data import load_problems

        scorer = rewards.find(reward)
    quiet_libraries()
    with user_errors():
        _check_outputs(data, out, completions)
        if gold == (model is not None):
            raise ValueError("expected either a MODEL, or --gold to score the problems' own answers")
        problems = load_problems(
            data,
            split,
            prompt_column=prompt_column,
            answer_column=answer_column,
            instruction=instruction,
            chat=chat,
            limit=limit,
        )
        if model is None:
            found = _gold(problems, scorer)
        else:
            rewards.check(scorer, problems[:])
            settings = {
                "samples": samples,
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
                "batch_size": batch_size,
                "seed": seed,
            }
            report = _evaluate(model, problems, scorer, settings, completions)
            say(f"{data}: {len(problems)} problems, reward {reward}, 95 % intervals")
            console.print(_table(report))
            if report.unanswered:
                say(
                    f"note: {report.unanswered:.1%} of the completions state no answer that the reward {reward} can "
                    "read; --instruction can ask for one, such as ' Put your final answer in \\boxed{}.'"
                )
            found = {"model": model, **report.as_json()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"data": data, "reward_name": reward, **found}, indent=2) + "\n", encoding="utf-8")
        say(f"written: {out}")


def _check_outputs(data: str, out: Path | None, completions: Path | None) -> None:
    for path, option in ((out, "--out"), (completions, "--completions")):
        if path is not None:
            check_file(path, option)
            if path.absolute() == Path(data).absolute():
                raise ValueError(
                    f"{option} names the file of the problems, {path}, and would replace it: choose another"
                )
    if out is not None and completions is not None:
        one, other = out.absolute(), completions.absolute()
        if one == other or one in other.parents or other in one.parents:
            raise ValueError(f"--out {out} and --completions {completions} cannot both be written: choose another file")


def _evaluate(
    model: str, problems: Any, reward: Any, settings: dict[str, Any], completions: Path | None
) -> EvaluationReport:
    """Evaluate under a bar, writing each completion as it comes, and at the end which of them are correct."""
    from tokencredit.evaluation import evaluate as run
    from tokencredit.files import write_text
    from tokencredit.rewards.base import known_correct

    scored: list[Scored] = []
    policy, tokenizer = load_policy(model)
    with ExitStack() as stack:
        bars = stack.enter_context(Bars())
        bars.stage("evaluate", len(problems))
        if completions is not None:
            completions.parent.mkdir(parents=True, exist_ok=True)
        lines = None if completions is None else stack.enter_context(completions.open("w", encoding="utf-8"))

        def progress(done: int, new: Sequence[Scored]) -> None:
            bars.advance(done)
            scored.extend(new)
            if lines is not None:
                lines.writelines(_line(one, problems[one.row], None) for one in new)
                lines.flush()

        report = run(policy, tokenizer, problems, reward, on_progress=progress, **settings)
    if completions is not None:
        # Whether a reward of 1 means correct is known once all rewards are.
        correct = known_correct([one.reward for one in scored])
        write_text(
            completions,
            "".join(_line(one, problems[one.row], right) for one, right in zip(scored, correct, strict=True)),
        )
        say(f"written: {completions}")
    return report


def _line(scored: Scored, problem: dict[str, Any], correct: bool | None) -> str:
    record = {"prompt": problem["prompt"], "answer": problem["answer"], **asdict(scored), "correct": correct}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _gold(problems: Any, reward: Any) -> dict[str, Any]:
    """Score the problems' own answers under a bar, and say which the reward refuses."""
    from tokencredit.rewards.gold import gold_misses

    with Bars() as bars:
        bars.stage("gold", len(problems))
        missed = gold_misses(problems, reward, on_progress=bars.advance)
    right = len(problems) - len(missed)
    console.print(f"gold: {right} of {len(problems)} answers score 1 ({right / len(problems):.1%})")
    for miss in missed:
        say(f"  row {miss.row}: {miss.answer!r:.60}: {miss.why}")
    return {"gold": right / len(problems), "problems": len(problems), "missed": [asdict(miss) for miss in missed]}


def _table(report: EvaluationReport) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    mean = f"avg@{report.samples}" if report.samples > 1 else "accuracy" if report.pass_at_k else "mean reward"
    table.add_row(mean, _interval(report.reward))
    for k, estimate in report.pass_at_k.items():
        if report.samples > 1:
            table.add_row(f"pass@{k}", _interval(estimate))
    table.add_row("tokens", f"{report.tokens:,.1f}")
    table.add_row("cut off", f"{report.truncated:.1%}")
    if report.unanswered is not None:
        table.add_row("no answer", f"{report.unanswered:.1%}")
    return table


def _interval(estimate: Estimate) -> str:
    bounds = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return escape(f"{estimate.value:.3f}{bounds}")
