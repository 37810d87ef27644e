"""`tokencredit train --help` and the page of its settings: both are made from the dataclasses, and complete."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

from trl import GRPOConfig, ModelConfig
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.train_help import own_settings, trl_groups, with_tables
from tokencredit.trainers.trl_arguments import TrainArguments
from tokencredit.trainers.trl_config import CreditGRPOConfig

PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
OF_TRL = {f.name for f in fields(GRPOConfig)}
OURS = [f.name for f in (*fields(TrainArguments), *fields(CreditGRPOConfig)) if f.name not in OF_TRL]


def test_our_settings_are_explained_and_those_of_trl_stand_in_a_group_each():
    assert [setting.name for settings in own_settings().values() for setting in settings] == OURS
    assert all(setting.help for settings in own_settings().values() for setting in settings)
    listed = Counter(name for names in trl_groups().values() for name in names)
    assert listed == Counter(f.name for f in (*fields(ModelConfig), *fields(GRPOConfig)) if f.init)
    assert {"use_peft", "lora_r"} <= set(trl_groups()["LoRA"])
    assert "temperature" in trl_groups()["Generation"]
    assert "learning_rate" not in trl_groups().get("Other", [])


def test_nothing_of_the_help_is_cut_off_at_80_columns():
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output
    words = set(result.output.replace(",", " ").split())
    assert {*OURS, "--overwrite", "--dry-run", "--config"} <= words
    assert {name for names in trl_groups().values() for name in names} <= words
    text = " ".join(result.output.split())
    for settings in own_settings().values():
        for setting in settings:
            assert setting.help.split(". ")[0].rstrip(".") in text


def test_the_page_holds_every_setting_as_it_is():
    """`python -m tokencredit.cli.train_help docs/trl.md` brings the page up to date."""
    page = PAGE.read_text("utf-8")
    assert with_tables(page) == page
    assert all(f"| `{name}` |" in page for name in OURS)
