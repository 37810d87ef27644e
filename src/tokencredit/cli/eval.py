"""`tokencredit eval`: how well a model solves problems, and whether the reward knows their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.models import load_policy, model_version
from tokencredit.cli.outputs import MODEL_VERSION, check_file, claim_file, explained_interruption, real_path
from tokencredit.cli.partial import Partial
from tokencredit.cli.terminal import (
    Bars,
    console,
    needed_packages,
    offline_if_local,
    quiet_libraries,
    say,
    user_errors,
)
from tokencredit.files import write_text

if TYPE_CHECKING:
    from tokencredit.evaluation import Estimate, EvaluationReport, Scored

_FLOAT32 = 4
"""Bytes of a number."""


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="Problems: a file of any format of docs/formats.md, or a dataset of the Hub, NAME or NAME:CONFIG."
        ),
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
        str | None,
        typer.Option(
            help="Text that is added to each question. By default the reward math asks for the answer in \\boxed{} "
            'where a question does not ask for it already; "" adds nothing.',
            show_default=False,
        ),
    ] = None,
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
    seed: Annotated[int, typer.Option(help="With the problem's row it decides a sampled completion.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first problems only.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results, JSON.", show_default=False)] = None,
    completions: Annotated[
        Path | None,
        typer.Option(
            help="Write every completion, its reward and whether it is correct, JSONL for score --traces.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files that are already there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted, given the same settings.")
    ] = False,
    gold: Annotated[
        bool, typer.Option("--gold", help="Score the problems' own answers instead: does the reward accept them?")
    ] = False,
) -> None:
    """Measure a model on problems with known answers: accuracy, avg@n and pass@k, with 95 % intervals.

    With --out or --completions, completions are kept as they are scored, and an evaluation that is interrupted goes on
    with the same command and --resume.
    """
    offline_if_local(data, model)
    with needed_packages("eval"), user_errors():
        from tokencredit import rewards
        from tokencredit.instructions import asks_itself, load_instructed

        scorer = rewards.find(reward)
    quiet_libraries()
    with user_errors():
        _check_what_is_asked(model, completions, out, gold=gold, resume=resume)
        _check_outputs(data, out, completions, replace=overwrite or resume)
        problems, instructed = load_instructed(
            data,
            split,
            instruction or "" if gold else instruction,
            [reward],
            prompt_column=prompt_column,
            answer_column=answer_column,
            chat=chat,
            limit=limit,
        )
        if model is None:
            _write_results(out, data, reward, _gold(problems, scorer))
        else:
            rewards.check(scorer, problems[:])
            sampling: dict[str, Any] = {
                "samples": samples,
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
                "seed": seed,
            }
            decisive: dict[str, Any] = {"tokencredit": version("tokencredit"), "model": model, "reward": reward}
            decisive |= {"instruction": instructed.text, "chat": chat, **sampling}
            kept = _kept(out, completions, decisive, problems)
            if kept is not None:
                replace = kept.check(overwrite=overwrite, resume=resume)
                _check_outputs(data, out, completions, replace=replace)
            say(f"{data}: {len(problems)} problems, reward {reward}, 95 % intervals")
            say(instructed.sentence(len(problems), '--instruction ""'))
            loaded = load_policy(model)
            if kept is not None:
                kept.add_settings(_of_the_loaded(model, loaded[0], batch_size), resume=resume)
            with _explained(kept, overwrite):
                settings = {**sampling, "batch_size": batch_size}
                report, scored = _evaluate(loaded, problems, scorer, settings, kept, overwrite, resume)
                if kept is not None:
                    kept.release_outputs()
                if completions is not None:
                    _write_completions(completions, scored, problems)
                results = {"model": model, "instruction": instructed.text, "instructed": instructed.added}
                results |= report.as_json()
                _write_results(out, data, reward, results)
            if kept is not None:
                kept.remove()
            console.print(_table(report))
            asked_for = bool(instructed.text) or all(map(asks_itself, problems["prompt"]))
            _note_unanswered(report, reward, asked_for)


def _write_results(out: Path | None, data: str, reward: str, results: dict[str, Any]) -> None:
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({"data": data, "reward_name": reward, **results}, indent=2) + "\n")
    say(f"written: {out}")


def _of_the_loaded(name: str, policy: Any, batch_size: int) -> dict[str, Any]:
    """In lower precision than float32, completions depend on which others they are padded with: on `batch_size`."""
    exact = next(policy.parameters()).dtype.itemsize >= _FLOAT32
    return {MODEL_VERSION: model_version(name, policy), "batch_size": None if exact else batch_size}


def _check_what_is_asked(
    model: str | None, completions: Path | None, out: Path | None, *, gold: bool, resume: bool
) -> None:
    if gold == (model is not None):
        raise ValueError("expected either a MODEL, or --gold to score the problems' own answers")
    if gold and (completions is not None or resume):
        raise ValueError("--gold generates no completions: leave out --completions and --resume")
    if resume and out is None and completions is None:
        raise ValueError("--resume needs the --out or --completions of the evaluation that was interrupted")


def _check_outputs(data: str, out: Path | None, completions: Path | None, *, replace: bool) -> None:
    for path, option in ((out, "--out"), (completions, "--completions")):
        if path is not None:
            check_file(path, option)
            if real_path(path) == real_path(data):
                raise ValueError(
                    f"{option} names the file of the problems, {path}, and would replace it: choose another"
                )
            claim_file(path, overwrite=replace, option=option)
    if out is not None and completions is not None:
        one, other = real_path(out), real_path(completions)
        if one == other or one in other.parents or other in one.parents:
            raise ValueError(f"--out {out} and --completions {completions} cannot both be written: choose another file")


def _kept(out: Path | None, completions: Path | None, settings: dict[str, Any], problems: Any) -> Partial | None:
    """The file of what has been scored, beside the results; None where no results are written."""
    beside = out or completions
    if beside is None:
        return None
    # A reward may read any column. What JSON has no form for counts as its text.
    content = json.dumps({name: problems[name][:] for name in sorted(problems.column_names)}, default=str)
    return Partial(beside, {**settings, "problems": sha256(content.encode()).hexdigest()})


def _evaluate(
    loaded: tuple[Any, Any],
    problems: Any,
    reward: Any,
    settings: dict[str, Any],
    kept: Partial | None,
    overwrite: bool,
    resume: bool,
) -> tuple[EvaluationReport, list[Scored]]:
    """Evaluate a model and its tokenizer under a bar, keeping each completion as it comes."""
    from tokencredit.evaluation import evaluate as run

    scored: list[Scored] = []
    if kept is not None and resume:
        scored += kept.completions(settings["samples"])
    elif kept is not None:
        kept.remove()  # of a run that is to be replaced
    with Bars() as bars:
        bars.stage("evaluate", len(problems))

        def progress(done: int, new: Sequence[Scored]) -> None:
            bars.advance(done)
            if kept is not None:
                kept.add(new, overwrite=overwrite)
            scored.extend(new)

        report = run(*loaded, problems, reward, done=tuple(scored), on_progress=progress, **settings)
    return report, scored


@contextmanager
def _explained(kept: Partial | None, overwrite: bool) -> Iterator[None]:
    """Around an evaluation: Ctrl-C ends the command with exit code 130, and says how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        advice = "Nothing had been scored yet: the same command starts again."
        if kept is None:
            advice = "Nothing is kept without --out or --completions: the same command starts again."
        elif kept.path.exists():
            how = "--resume in place of --overwrite" if overwrite else "--resume"
            advice = f"{kept.path} holds what has been scored: the same command with {how} goes on from there."
        with explained_interruption(advice):
            raise


def _write_completions(path: Path, scored: Sequence[Scored], problems: Any) -> None:
    """Whether a reward of 1 means correct is known once all rewards are."""
    from tokencredit.rewards.base import known_correct

    correct = known_correct([one.reward for one in scored])
    lines = [_line(one, problems[one.row], right) for one, right in zip(scored, correct, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    say(f"written: {path}")


def _note_unanswered(report: EvaluationReport, reward: str, asked_for: bool) -> None:
    """Where every question asks for a box already, another instruction is no remedy."""
    if not report.unanswered:
        return
    remedy = (
        "--completions shows what they say"
        if asked_for
        else "--instruction can ask for one, such as ' Put your final answer in \\boxed{}.'"
    )
    say(f"note: {report.unanswered:.1%} of the completions state no answer that the reward {reward} can read; {remedy}")


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
