"""`tokencredit train`: GRPO with credit, from a YAML file or arguments, as TRL's own commands take them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tokencredit.cli.outputs import explained_interruption
from tokencredit.cli.terminal import needed_packages, say, user_errors


class TrainCommand(TyperCommand):
    """Its help lists the settings, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        with needed_packages("trl"):
            from tokencredit.cli.train_help import show_settings
        show_settings()


def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file of settings. Rewards in it as package.module:function are imported and so executed, and "
            "its env sets environment variables.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load and check everything, take one step, save nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that output_dir holds: checkpoints and saved model.")
    ] = False,
) -> None:
    """Train a causal LM with TRL's GRPO and token-level credit.

    The settings below stand in the file or on the command line:
    `tokencredit train --config examples/atpo.yaml --learning_rate 2e-6`.
    """
    with needed_packages("trl"):
        from tokencredit.cli.train_config import parse_settings
        from tokencredit.cli.train_output import check_output, check_steps_left, checkpoint_named, clear
        from tokencredit.trainers.trl_checks import RunError
    with ExitStack() as cleanup:
        with needed_packages("math"), user_errors():
            script, args, model = parse_settings(config, context.args)
            output = Path(args.output_dir or "trainer_output")
            checkpoint = checkpoint_named(args.resume_from_checkpoint, output)
            read = {"model_name_or_path": model.model_name_or_path, "data": script.data}
            read["reward_model"] = script.reward_model
            check_output(output, overwrite=overwrite, checkpoint=checkpoint, read=read)
            if dry_run:
                args.output_dir = cleanup.enter_context(TemporaryDirectory(prefix="tokencredit-"))
                args.max_steps, args.save_strategy, args.report_to, args.push_to_hub = 1, "no", [], False
                checkpoint = None
            check_steps_left(checkpoint, args.max_steps)
            args.resume_from_checkpoint = checkpoint
            trainer = _prepared(script, args, model)
        if overwrite and not dry_run:
            if args.should_save:
                clear(output)
            trainer.accelerator.wait_for_everyone()
        try:
            with _explained(output, args, overwrite, dry_run):
                trainer.train(resume_from_checkpoint=checkpoint)
        except RunError:
            with user_errors():
                raise
        if dry_run:
            _report_step(trainer)
            return
    with _explained(output, args, overwrite, dry_run):
        trainer.save_model(args.output_dir)
        trainer.create_model_card(model_name=output.name)
    _say(f"saved: {args.output_dir}")


def _prepared(script: Any, args: Any, model: Any) -> Any:
    """The trainer, once its settings, its model and its problems have been checked."""
    with needed_packages("trl"):
        from tokencredit.prompts import check_texts
        from tokencredit.trainers.trl_script import build_trainer
    try:
        trainer = build_trainer(script, args, model, report=_say)
    except OSError as error:  # a file or a model that cannot be read
        raise ValueError(f"the run cannot be prepared: {error}") from None
    problems: Any = trainer.train_dataset
    check_texts(problems["prompt"], trainer.processing_class)
    return trainer


@contextmanager
def _explained(output: Path, args: Any, overwrite: bool, dry_run: bool) -> Iterator[None]:
    """Around training: Ctrl-C ends the command with exit code 130, and says how the run goes on."""
    from tokencredit.cli.train_output import how_to_go_on

    try:
        yield
    except KeyboardInterrupt:
        if not _is_first_process():
            raise typer.Exit(130) from None
        if dry_run:
            sentence = "It was a dry run, which leaves nothing behind."
        else:
            sentence = how_to_go_on(output, overwrite=overwrite, save_steps=args.save_steps)
        with explained_interruption(sentence):
            raise


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    """Once, where several processes train."""
    if _is_first_process():
        say(text)


def _report_step(trainer: Any) -> None:
    """Print the reward of a dry run's step, how many completions carry loss, and which the method leaves uniform."""
    from tokencredit.diagnostics import WITH_LOSS
    from tokencredit.notices import inactive

    row = next(row for row in trainer.state.log_history if "reward" in row)
    method = trainer.credit_method
    say(f"dry run: one step of {method.name}, reward {float(row['reward']):.3f}")
    diagnostics = trainer.credit_logs["train"].step_diagnostics()
    carrying = diagnostics[WITH_LOSS]
    say(f"{int(carrying.sum())} of {len(carrying)} completions carry loss (have tokens and an advantage)")
    for sentence in inactive(method, diagnostics):
        say(sentence)
