"""`tokencredit train`: GRPO with credit, from a YAML file or arguments, as TRL's own commands take them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tokencredit.cli.outputs import check_folder
from tokencredit.cli.terminal import needed_packages, say, user_errors


def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file of arguments. Rewards in it as package.module:function are imported, and so run.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load and check everything, take one step, save nothing.")
    ] = False,
) -> None:
    """Train a causal LM with TRL's GRPO and token-level credit.

    Any argument of CreditGRPOConfig, TRL's ModelConfig or tokencredit's TrainArguments, in the file or behind it:
    `tokencredit train --config examples/atpo.yaml --learning_rate 2e-6`.
    """
    with needed_packages("trl"):
        from trl import ModelConfig

        from tokencredit.cli.train_config import Parser, check_config
        from tokencredit.prompts import check_texts
        from tokencredit.trainers.trl import CreditGRPOConfig
        from tokencredit.trainers.trl_checks import RunError
        from tokencredit.trainers.trl_script import TrainArguments, build_trainer
    given = [*([] if config is None else ["--config", str(config)]), *context.args]
    with ExitStack() as cleanup:
        with needed_packages("math"), user_errors():
            arguments: Any = (TrainArguments, CreditGRPOConfig, ModelConfig)
            parser = Parser(arguments, prog="tokencredit train")
            if config is not None:
                check_config(config, parser)
            script, args, model = parser.parse_args_and_config(given)
            check_folder(Path(args.output_dir), "output_dir")
            if dry_run:
                args.output_dir = cleanup.enter_context(TemporaryDirectory(prefix="tokencredit-"))
                args.max_steps, args.save_strategy, args.report_to, args.push_to_hub = 1, "no", [], False
                args.resume_from_checkpoint = None
            try:
                trainer = build_trainer(script, args, model)
                problems: Any = trainer.train_dataset
            except OSError as error:  # a file or a model that cannot be read
                raise ValueError(f"the run cannot be prepared: {error}") from None
            check_texts(problems["prompt"], trainer.processing_class)
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        except RunError:
            with user_errors():
                raise
        if dry_run:
            _report_step(trainer)
            return
    trainer.save_model(args.output_dir)
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    say(f"saved: {args.output_dir}")


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
