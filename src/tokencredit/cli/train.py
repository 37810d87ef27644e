"""`tokencredit train`: GRPO with credit, from a YAML file or arguments, as TRL's own commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokencredit.cli.terminal import console, needed_packages, user_errors


def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file of arguments.", show_default=False, exists=True, dir_okay=False),
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
        from trl import ModelConfig, TrlParser

        from tokencredit.trainers.trl import CreditGRPOConfig
        from tokencredit.trainers.trl_script import TrainArguments, build_trainer
    given = [*([] if config is None else ["--config", str(config)]), *context.args]
    with needed_packages("math"), user_errors():
        arguments: Any = (TrainArguments, CreditGRPOConfig, ModelConfig)
        parser = TrlParser(arguments, prog="tokencredit train")
        script, args, model = parser.parse_args_and_config(given)
        if dry_run:
            args.max_steps, args.save_strategy, args.report_to, args.push_to_hub = 1, "no", [], False
            args.resume_from_checkpoint = None
        trainer = build_trainer(script, args, model)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if dry_run:
        row = next(row for row in trainer.state.log_history if "reward" in row)
        console.print(f"dry run: one step of {args.credit_method}, reward {float(row['reward']):.3f}")
        return
    trainer.save_model(args.output_dir)
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    console.print(f"saved: {args.output_dir}")
