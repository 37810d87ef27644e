"""The blocks of docs/python.md run in order, as they stand, with a tiny model in place of the one that is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_run import policy_that_answers

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.filterwarnings("ignore:the credit of", "ignore:.* completions uniform")
def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    policy_that_answers().save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 10
    monkeypatch.chdir(tmp_path)
    page = ModuleType("python_page")  # where the page defines a class, its module can be found
    monkeypatch.setitem(sys.modules, page.__name__, page)
    names = vars(page)
    for block in blocks:
        exec(compile(block.replace("Qwen/Qwen3-0.6B", str(model)), str(PAGE), "exec"), names)  # noqa: S102 - our page
    assert (names["rollouts"].answer_start > 0).all()
    assert names["rollouts"].step_index.max() == 1
    assert names["trainer"].credit_method == tc.method("atpo", floor=0.5)
    assert names["trainer"].state.global_step == 1
    assert len(names["method"].heads) == 3
    assert torch.isfinite(names["credit"].advantages).all()
    assert "<span" in names["html"]
    assert "['math_reward', 'format_reward']\n[1.0, 0.0, 1.0, 0.0]" in capsys.readouterr().out


def test_the_page_is_linked():
    assert "python.md" in (PAGE.parent / "trl.md").read_text("utf-8")
