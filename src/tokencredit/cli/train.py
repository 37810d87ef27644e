"""`tokencredit train`: GRPO with credit, from a YAML file or arguments, as TRL's own commands take them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.markup import escape

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
        from tokencredit.trainers.trl_checks import RunError
        from tokencredit.trainers.trl_script import TrainArguments, build_trainer
    given = [*([] if config is None else ["--config", str(config)]), *context.args]
    with ExitStack() as cleanup:
        with needed_packages("math"), user_errors():
            if config is not None:
                _check_yaml(config)
            arguments: Any = (TrainArguments, CreditGRPOConfig, ModelConfig)
            parser = TrlParser(arguments, prog="tokencredit train")
            script, args, model = parser.parse_args_and_config(given)
            if dry_run:
                args.output_dir = cleanup.enter_context(TemporaryDirectory(prefix="tokencredit-"))
                args.max_steps, args.save_strategy, args.report_to, args.push_to_hub = 1, "no", [], False
                args.resume_from_checkpoint = None
            trainer = build_trainer(script, args, model)
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
    console.print(f"saved: {args.output_dir}")


def _check_yaml(path: Path) -> None:
    """Raise a ValueError where a file is no YAML. That it holds a mapping is checked by TRL."""
    import yaml

    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None


def _report_step(trainer: Any) -> None:
    """Print the reward of a dry run's step, how many completions carry loss, and which the method leaves uniform."""
    from tokencredit.notices import inactive
    from tokencredit.trainers.trl_log import SHARE

    row = next(row for row in trainer.state.log_history if "reward" in row)
    method = trainer.credit_method
    console.print(f"dry run: one step of {method.name}, reward {float(row['reward']):.3f}")
    diagnostics = trainer.credit_logs["train"].step_diagnostics()
    carrying = diagnostics[SHARE]
    console.print(f"{int(carrying.sum())} of {len(carrying)} completions carry loss (have tokens and an advantage)")
    for sentence in inactive(method, diagnostics):
        console.print(escape(sentence))
