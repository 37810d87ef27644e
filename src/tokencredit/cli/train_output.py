"""The folder of a training run: what it holds, whether a run may use it, and how an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokencredit.cli.outputs import check_folder

_STATE = "trainer_state.json"
"""What transformers writes into a checkpoint last."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "adapter_model.bin")
_OF_A_MODEL = ("config.json", "generation_config.json", "adapter_config.json")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in the folder of a run, the last one last."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    complete = [path for path, step in steps.items() if step.isdecimal() and _is_complete(path)]
    return sorted(complete, key=lambda path: int(steps[path]))


def _is_complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / _STATE).read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False


def checkpoint_named(given: Any, folder: Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, None where the run starts anew.

    Args:
        given: None, True or False, one of these as text, or the path of a checkpoint.
        folder: the output folder, in which True finds the last complete checkpoint.

    Raises:
        ValueError: there is no such checkpoint, or it is not complete.
    """
    text = str(given).strip()
    if given is None or text.lower() in ("false", "none", "null", ""):
        return None
    there = checkpoints(folder)
    listed = f"; {folder} holds {', '.join(path.name for path in there)}" if there else ""
    if text.lower() == "true":
        if not there:
            raise ValueError(
                f"resume_from_checkpoint is true, and there is no complete checkpoint in {folder} (output_dir): "
                "leave it out to start anew"
            )
        return str(there[-1])
    if not Path(text).is_dir():
        raise ValueError(
            f"resume_from_checkpoint: there is no folder {text}{listed}. It must be a checkpoint, or true for the last "
            "one in output_dir"
        )
    if not _is_complete(Path(text)):
        raise ValueError(f"resume_from_checkpoint: {text} is no complete checkpoint, since it has no {_STATE}{listed}")
    return text


def check_steps_left(checkpoint: str | None, max_steps: int) -> None:
    """Raise a ValueError where the run that is to go on has made all its steps: the trainer would make one more.

    Args:
        max_steps: the setting; not positive where the number of epochs decides.
    """
    if checkpoint is None or max_steps <= 0:
        return
    done = json.loads((Path(checkpoint) / _STATE).read_text("utf-8")).get("global_step", 0)
    if done >= max_steps:
        raise ValueError(
            f"{checkpoint} has made {done} steps, and max_steps is {max_steps}: raise max_steps to train on"
        )


def check_output(folder: Path, *, overwrite: bool, checkpoint: str | None, read: Mapping[str, str | None]) -> None:
    """Check that a run may use its output folder. Nothing is made or removed yet.

    Args:
        overwrite: the run that is in the folder may be replaced.
        checkpoint: the checkpoint that the run goes on from, if any.
        read: setting -> the model or file that the run reads.

    Raises:
        ValueError: there can be no such folder, it holds a run and neither is given, or it holds what the run reads.
    """
    check_folder(folder, "output_dir")
    if overwrite and checkpoint is not None:
        raise ValueError("--overwrite and resume_from_checkpoint exclude each other")
    if overwrite:
        _check_read(folder, read)
    elif checkpoint is None and (content := _content(folder)):
        ways = ["choose another output_dir", "--overwrite to replace it"]
        ways += ["--resume_from_checkpoint true to go on from its last checkpoint"] * bool(checkpoints(folder))
        raise ValueError(f"output_dir {folder} holds {content}: {', '.join(ways[:-1])}, or {ways[-1]}")


def _content(folder: Path) -> str:
    """What the folder holds of a run, in words; empty where it holds nothing of one."""
    content = [f"a run with checkpoints up to {path.name}" for path in checkpoints(folder)[-1:]]
    if _saved(folder):
        content.append("a saved model")
    return " and ".join(content)


def _saved(folder: Path) -> list[Path]:
    """The files of the model that is saved in the folder itself."""
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        return []
    return [path for pattern in (*_WEIGHTS, *_OF_A_MODEL) for path in folder.glob(pattern)]


def _check_read(folder: Path, read: Mapping[str, str | None]) -> None:
    whole = folder.resolve()
    for name, source in read.items():
        place = Path(source).resolve() if source and Path(source).exists() else None
        if place is not None and (place == whole or whole in place.parents):
            raise ValueError(f"{name} {source} lies in output_dir {folder}, which --overwrite would replace")


def clear(folder: Path) -> None:
    """Remove the run that the folder holds: checkpoints, the saved model, tables of completions.

    Other files may be the user's, and stay.
    """
    for path in folder.glob("checkpoint-*"):
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal():
            shutil.rmtree(path)
    for path in (*_saved(folder), *folder.glob("completions/completions_*.parquet")):
        path.unlink()


def how_to_go_on(folder: Path, *, overwrite: bool, save_steps: float) -> str:
    """What an interrupted run says: which checkpoint there is, and the option that goes on from it."""
    there = checkpoints(folder)
    if not there:
        return (
            f"There is no checkpoint in {folder} yet (save_steps is {save_steps:g}), so the same command starts from "
            "the beginning."
        )
    without = " and without --overwrite" if overwrite else ""
    return (
        f"The last checkpoint is {there[-1]}. To go on from it, give the same command with "
        f"--resume_from_checkpoint true{without}."
    )
