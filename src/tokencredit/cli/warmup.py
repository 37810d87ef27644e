"""`tokencredit warmup`: supervised fine-tuning, until reinforcement learning has something to improve."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape

from tokencredit.cli.terminal import Bars, console, needed_packages, offline, quiet_libraries, user_errors


def warmup(
    model: Annotated[str, typer.Argument(help="A model's folder or hub name.")],
    data: Annotated[
        Path,
        typer.Option(help='Lines of {"prompt": ..., "completion": "..."}, JSONL.', exists=True, dir_okay=False),
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the model; a run that was interrupted goes on.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Make text prompts a user's message, for models with a chat template.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples an update.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Its peak; all weights need about a tenth of it.")] = 1e-3,
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of a LoRA adapter, merged at the end; 0 trains all weights.")
    ] = 32,
    bf16: Annotated[
        bool | None, typer.Option(help="Compute in bfloat16.", show_default="where the hardware is fast at it")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the adapter and the order of the examples.")] = 0,
) -> None:
    """Teach a causal LM to write completions like the given ones, before `tokencredit train`."""
    if Path(model).exists():
        offline()
    with needed_packages("trl"):
        import peft  # noqa: F401 - named here, before anything is loaded

        from tokencredit.cli.models import load_policy
        from tokencredit.supervised import Supervision, fine_tune, load_lessons
    quiet_libraries()
    checkpoint = out.with_name(f".{out.name}.checkpoint")
    with user_errors():
        if out.exists():
            raise ValueError(f"{out} exists: choose another --out, or remove it")
        recipe = Supervision(steps, batch_size, learning_rate, seed, bf16)
        policy, tokenizer = load_policy(model)
        lessons = load_lessons(data, tokenizer, chat=chat)
        out.parent.mkdir(parents=True, exist_ok=True)
        trained = _with_adapter(policy.float(), lora_rank, seed)
        with Bars() as bars:
            bars.stage("warm-up", steps)
            fine_tune(trained, lessons, recipe, checkpoint=checkpoint, on_step=_shown(bars))
    _save(trained.merge_and_unload() if lora_rank else trained, tokenizer, out)
    checkpoint.unlink(missing_ok=True)
    console.print(f"saved: {escape(str(out))}")


def _with_adapter(policy: Any, rank: int, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    if rank == 0:
        return policy
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(policy, adapter)


def _shown(bars: Bars) -> Any:
    def on_step(step: int, loss: float) -> None:
        bars.advance(step, "resumed" if math.isnan(loss) else f"loss {loss:.3f}")

    return on_step


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """The folder appears when it is complete."""
    partial = out.with_name(f".{out.name}-{uuid4().hex[:12]}")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
