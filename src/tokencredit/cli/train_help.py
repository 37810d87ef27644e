"""What `tokencredit train` can be told: our own settings with their meaning, TRL's by group.

Everything comes from the dataclasses, so that the help and the tables of docs/trl.md cannot fall behind them:

    python -m tokencredit.cli.train_help docs/trl.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig

from tokencredit.cli.terminal import console
from tokencredit.trainers.trl_arguments import TrainArguments
from tokencredit.trainers.trl_config import CreditGRPOConfig

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
"""What stands around the tables in the page. They are written by this module."""

TRL_PAGE = "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig"
_MODEL_GROUPS = (("LoRA", "lora|peft|dora"), ("Quantization of the model", "load_in_|bnb_"), ("Model", ""))
_OTHER = "Other"


@dataclass(frozen=True)
class Setting:
    """A setting of ours: its name, its default as it is written in a YAML file, and what it means."""

    name: str
    default: str
    help: str


def own_settings() -> dict[str, list[Setting]]:
    """Our settings by group, in the order of the dataclasses."""
    of_trl = {f.name for f in fields(GRPOConfig)}
    return {
        "Problems and rewards": [_setting(f) for f in fields(TrainArguments)],
        "Credit": [_setting(f) for f in fields(CreditGRPOConfig) if f.name not in of_trl],
    }


def _setting(f: Field[Any]) -> Setting:
    default = f.default if f.default_factory is MISSING else f.default_factory()
    return Setting(f.name, "unset" if default is None else json.dumps(default), f.metadata["help"])


def trl_groups() -> dict[str, list[str]]:
    """The names of TRL's settings by group; the groups are the sections of their classes' docstrings."""
    groups: dict[str, list[str]] = {}
    for f in fields(ModelConfig):
        groups.setdefault(next(title for title, names in _MODEL_GROUPS if re.search(names, f.name)), []).append(f.name)
    sections = dict([*_sections(TrainingArguments), *_sections(GRPOConfig)])
    for f in fields(GRPOConfig):
        if f.init:
            groups.setdefault(sections.get(f.name, _OTHER), []).append(f.name)
    return groups


def _sections(kind: type) -> Iterator[tuple[str, str]]:
    """The parameters that a docstring documents, each with the section that it stands in."""
    title = _OTHER
    for line in cleandoc(kind.__doc__ or "").splitlines():
        if section := re.match(r" {4}> (\w.*)", line):
            words = re.sub(r"^Parameters that control (the )?| \(.*", "", section[1])
            title = words[0].upper() + words[1:]
        elif parameter := re.match(r" {4}(\w+) ?\(", line):
            yield parameter[1], title


def show_settings() -> None:
    """Print our settings with their meaning, and the names of TRL's."""
    console.print(
        "Every setting is given as --NAME VALUE, or as NAME: VALUE in the file. The command line takes precedence over "
        "the file.\n",
        markup=False,
    )
    for title, settings in own_settings().items():
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for setting in settings:
            table.add_row(setting.name, escape(f"{setting.help} (default: {setting.default})"))
        console.print(f"[bold]{title}[/]")
        console.print(table)
        console.print()
    console.print(f"Settings of TRL and transformers, by group; their meaning: {TRL_PAGE}", markup=False)
    for title, names in trl_groups().items():
        console.print(f"[bold]{escape(title)}[/]: {', '.join(names)}")


def tables() -> str:
    """Our settings as tables for docs/trl.md."""
    lines: list[str] = []
    for title, settings in own_settings().items():
        lines += [f"### {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [f"| `{s.name}` | `{s.default}` | {_cell(s.help)} |" for s in settings]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def with_tables(page: str) -> str:
    """The page with the present tables between the marks."""
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text("utf-8")), "utf-8")
