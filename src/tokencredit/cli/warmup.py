"""`tokencredit warmup`: supervised fine-tuning, until reinforcement learning has something to improve.

The folder of the model appears when the model is complete. Until then the run has a folder of its own beside it,
`NAME.unfinished`, which holds its settings and its last checkpoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tokencredit.cli.outputs import (
    MODEL_VERSION,
    Overwrite,
    Resume,
    check_claim,
    check_folder,
    claim_folder,
    explained_interruption,
    is_inside,
)
from tokencredit.cli.terminal import Bars, needed_packages, offline, quiet_libraries, say, user_errors
from tokencredit.files import replacing_directory

_CHECKPOINT = "checkpoint.pt"
_REPLACES = "replaces"
"""An empty file: the run was started with --overwrite, so that it may replace a model when it is resumed, too."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SAVED = (
    *_WEIGHTS,
    *("*.safetensors.index.json", "pytorch_model*.bin.index.json", "config.json", "generation_config.json"),
    *("*tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates"),
    *("vocab*", "merges.txt", "*.model"),
)
"""What the folder of a saved model may hold: the whole folder is replaced, so that anything else would be lost."""


def warmup(
    model: Annotated[str, typer.Argument(help="A model's folder or hub name.")],
    data: Annotated[
        Path,
        typer.Option(help="Prompts and completions to learn: a file of any format of docs/formats.md."),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the model, which is made.")],
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
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Teach a causal LM to write completions like the given ones, before `tokencredit train`."""
    if Path(model).exists():
        offline()
    with needed_packages("trl"):
        import peft  # noqa: F401 - named here, before anything is loaded

        from tokencredit.cli.models import load_policy, model_version
        from tokencredit.paths import existing_file
        from tokencredit.supervised import Supervision, fine_tune, load_lessons
    quiet_libraries()
    with user_errors():
        recipe = Supervision(steps, batch_size, learning_rate, seed, bf16)
        settings = {"command": "warmup", "model": model, "data": str(data), "chat": chat, "lora_rank": lora_rank}
        settings |= {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        settings |= {"bf16": bf16}
        _check_place(out)
        unfinished = out.with_name(f"{out.name}.unfinished")
        replace = overwrite or (resume and (unfinished / _REPLACES).exists())
        _check_inputs((out, unfinished), (model, data))
        _check_model_folder(out, replace=replace)
        check_claim(unfinished, settings, overwrite=overwrite, resume=resume)
        existing_file(data)
        policy, tokenizer = load_policy(model)
        settings[MODEL_VERSION] = model_version(model, policy)
        lessons = load_lessons(data, tokenizer, chat=chat)
        claim_folder(unfinished, settings, overwrite=overwrite, resume=resume)
        if overwrite:
            (unfinished / _REPLACES).touch()
        with _explained(unfinished, overwrite=overwrite, resume=resume):
            trained = _with_adapter(policy.float(), lora_rank, seed)
            with Bars() as bars:
                bars.stage("warm-up", steps)
                fine_tune(trained, lessons, recipe, checkpoint=unfinished / _CHECKPOINT, on_step=_shown(bars))
            _save(trained.merge_and_unload() if lora_rank else trained, tokenizer, out)
    shutil.rmtree(unfinished)
    say(f"saved: {out}")


def _check_place(out: Path) -> None:
    """Raise a ValueError where no complete folder could be put in the place of `out` at the end."""
    check_folder(out)
    if out.name in ("", ".."):
        raise ValueError(f"--out {out} cannot be replaced by the new model's folder: name a folder, such as model")
    if out.is_symlink() or out.is_mount():
        kind = "a link" if out.is_symlink() else "a place where a file system is mounted"
        raise ValueError(
            f"--out {out} is {kind}, which cannot be replaced by the new model's folder: choose a folder in it, "
            f"such as {out / 'model'}"
        )
    check_folder(out.parent)


def _check_inputs(written: Sequence[Path], read: Sequence[str | Path]) -> None:
    """Raise a ValueError where a file or folder that is read lies in one that is replaced or removed at the end."""
    for folder in written:
        for source in read:
            if is_inside(source, folder):
                raise ValueError(f"{source} lies in {folder}, which this run would replace: choose another --out")


def _check_model_folder(out: Path, *, replace: bool) -> None:
    """Raise a ValueError where what is in `out` may not be replaced."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not replace:
        raise ValueError(f"{out} exists: choose another --out, or --overwrite to replace it")
    if not any(path for pattern in _WEIGHTS for path in out.glob(pattern)):
        raise ValueError(
            f"--overwrite: {out} holds no model, which is all that a warm-up replaces: choose another --out"
        )
    others = sorted(path.name for path in out.iterdir() if not any(path.match(pattern) for pattern in _SAVED))
    if others:
        raise ValueError(
            f"--overwrite: {out} holds more than a saved model ({', '.join(others[:5])}), which would be lost: choose "
            "another --out"
        )


@contextmanager
def _explained(unfinished: Path, *, overwrite: bool, resume: bool) -> Iterator[None]:
    """Around training: Ctrl-C ends the command with exit code 130, and says how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        how = "--resume in place of --overwrite" if overwrite else "--resume"
        advice = (
            f"{unfinished / _CHECKPOINT} holds the training so far: the same command with {how} goes on from there."
        )
        if not (unfinished / _CHECKPOINT).exists():
            advice = "There is no checkpoint yet: the same command starts from the beginning."
            if not resume:  # the same command finds with --resume what it found this time
                shutil.rmtree(unfinished)
        with explained_interruption(advice):
            raise


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
    """The folder appears, or is replaced, when it is complete."""
    with replacing_directory(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
