"""A user's model, by folder or hub name."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

_FILES = frozenset(
    (
        ".jsonl",
        ".json",
        ".csv",
        ".parquet",
        ".gz",
        ".yaml",
        ".yml",
        ".txt",
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".gguf",
    )
)
"""Endings of files. A hub name may hold a dot as well, as in Qwen2.5-0.5B, but does not end in one of these."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_NAMED = 5
_WEIGHTS = ("*.safetensors", "*.bin", "adapter_*")
"""Files of weights, and an adapter's config, which scales them."""


def load_policy(name: str) -> tuple[Any, Any]:
    """A causal LM, in evaluation mode, and its tokenizer, with a pad token.

    Raises:
        ValueError: one of them cannot be loaded, or the model's checkpoint lacks some of its weights.
    """
    from transformers import AutoTokenizer

    model = load_model(name)
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
        raise ValueError(
            f"the folder {name} holds a model but no tokenizer ({_TOKENIZERS[0]}): save its tokenizer there as well, "
            "with tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer of {name} cannot be loaded: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def load_model(name: str) -> Any:
    """A causal LM in evaluation mode, in its own precision, on a GPU where there is one.

    Raises:
        ValueError: it cannot be loaded, or its checkpoint lacks some of its weights.
    """
    check_model_name(name)
    import torch
    from transformers import AutoModelForCausalLM

    from tokencredit.checkpoints import load_complete

    try:
        model = load_complete(AutoModelForCausalLM, name, dtype="auto")
    except ValueError as error:
        if Path(name).exists():
            raise
        # Where the folder's parent exists, the folder was meant; what the hub says would lead away from the cause.
        why = "" if Path(name).parent.is_dir() and "/" in name else f": {error}"
        raise ValueError(f"{_no_folder(name)}, and the hub gave no model of that name either{why}") from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def model_version(name: str, model: Any) -> str:
    """A text that changes when the weights behind `name` do: a run is not continued with other ones.

    For a folder it is a digest of the names, sizes and times of its files of weights, and of those of an adapter's
    base; for a model of the hub the commit that `model` was loaded from, where transformers knows it.
    """
    version = folder_version(name)
    return version if version is not None else _commit_version(name, model)


def folder_version(name: str) -> str | None:
    """The version of a model whose weights all lie in folders; None if some come from the hub."""
    records: list[list[Any]] = []
    seen: set[Path] = set()
    while True:
        folder = Path(name)
        if not folder.is_dir():
            return None
        if folder.resolve() in seen:
            break
        seen.add(folder.resolve())
        records += _weights(folder)
        base = _base_of(folder)
        if base is None:
            break
        name = base
    return sha256(json.dumps(records).encode()).hexdigest()


def _commit_version(name: str, model: Any) -> str:
    own = _weights(Path(name)) if Path(name).is_dir() else []
    content = [name, own, getattr(model.config, "_commit_hash", None)]
    return sha256(json.dumps(content).encode()).hexdigest() if own else str(content[2])


def _weights(folder: Path) -> list[list[Any]]:
    paths = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(paths)]


def _base_of(folder: Path) -> str | None:
    """The base that an adapter's folder names."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) else None


def check_model_name(name: str) -> None:
    """Refuse a folder that is not there, before the hub is asked for a model of that name.

    Raises:
        ValueError: there is a file or a folder of that name, but no model in it; or there is none, and the name cannot
            be one of the hub's.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{name} is a file: expected a model's folder or its name on the hub")
    if path.is_dir():
        _check_folder(path)
    elif _is_path(name):
        raise ValueError(_no_folder(name))


def _check_folder(folder: Path) -> None:
    if _holds_model(folder):
        return
    below = [path.parent for pattern in ("*/", "*/*/") for path in sorted(folder.glob(f"{pattern}*config.json"))]
    models = [str(path) for path in dict.fromkeys(below) if _holds_model(path)]
    more = f" and {len(models) - _NAMED} more" if len(models) > _NAMED else ""
    hint = f"; these folders in it hold one: {', '.join(models[:_NAMED])}{more}" if models else ""
    raise ValueError(f"the folder {folder} holds no model (no config.json of one, and no adapter_config.json){hint}")


def _holds_model(folder: Path) -> bool:
    """The folder is a model's, or that of an adapter. A run of tokencredit has a config.json too."""
    if (folder / "adapter_config.json").is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except OSError:
        return False
    except ValueError:
        return True  # what is wrong with it is for transformers to say
    return isinstance(config, dict) and "command" not in config


def _is_path(name: str) -> bool:
    """No model of the hub has this name: those are NAME or OWNER/NAME, and do not end as a file does."""
    path = Path(name)
    parts = name.split("/")
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or len(parts) > 2
        or parts[-1] == ""
        or path.suffix.lower() in _FILES
    )


def _no_folder(name: str) -> str:
    """Says that the folder is not there, and which of its parents is."""
    path = Path(name)
    parent = next((str(folder) for folder in path.parents if folder.is_dir()), ".")
    others = sorted(entry.name for entry in Path(parent).iterdir() if entry.is_dir()) if parent != "." else []
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    holds = f" ({parent} holds {', '.join(others[:_NAMED])}{more})" if others else ""
    return f"there is no folder {name}{holds}"
