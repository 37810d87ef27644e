"""What a model card says about credit, behind what TRL writes."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokencredit.methods.given import described, name_and_parameters
from tokencredit.trainers.trl_config import CreditGRPOConfig

_SECRET = re.compile(r"token$|key$|secret|password", re.IGNORECASE)
_SECRET_PARTS = re.compile(
    r"""hf_\w+|(?<=://)[^/@\s]+@|(?<="|')[^"']*(?:token|key|secret|password)["']\s*:\s*["'][^"']*""", re.IGNORECASE
)
_PACKAGES = ("tokencredit", "trl", "transformers", "torch", "peft", "accelerate", "datasets")


def add_credit_section(card: Path, args: CreditGRPOConfig, rewards: Sequence[str], data: str) -> None:
    """Append to the model card: method, parameters, data, rewards, command and versions."""
    card.write_text(
        f"{card.read_text(encoding='utf-8').rstrip()}\n\n{_section(args, rewards, data)}", "utf-8", "replace"
    )


def _section(args: CreditGRPOConfig, rewards: Sequence[str], data: str) -> str:
    method: Any = args.build_credit_method()
    weights = args.reward_weights or [1.0] * len(rewards)
    rows: dict[str, Any] = {
        "method": method.name,
        **({"class": described(method)[0]} if name_and_parameters(method) is None else {}),
        **{f"`{name}`": value for name, value in _parameters(method).items()},
        "read": f"{args.credit_timing} timing",
        **({} if args.credit_answer == "auto" else {"answer starts at": args.credit_answer}),
        "outcome advantage": f"{args.credit_outcome}, {args.num_generations} completions a prompt",
        "loss": args.loss_type,
        "rewards": ", ".join(f"{name} x {weight:g}" for name, weight in zip(rewards, weights, strict=True)),
        "data": data,
        "seed": args.seed,
        "versions": ", ".join(filter(None, map(_version, _PACKAGES))),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return (
        "## Token-level credit\n\nThe advantages were spread over the tokens by tokencredit.\n\n"
        f"| | |\n|---|---|\n{table}\n\nThe command:\n\n```sh\n{_command(sys.argv)}\n```\n"
    )


def _parameters(method: Any) -> dict[str, Any]:
    """The parameters of a method; one of a user's own need not be a dataclass."""
    return asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def _command(argv: Sequence[str]) -> str:
    """The command line, without the script's folder, and with what looks like a secret left out."""
    shown: list[str] = []
    hidden = False
    for word in [Path(argv[0]).name, *argv[1:]]:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and _SECRET.search(name) is not None
        shown.append("..." if hidden else f"{name}=..." if secret and equals else word)
        hidden = secret and not equals
    return _SECRET_PARTS.sub("...", shlex.join(shown)).replace("```", "")
