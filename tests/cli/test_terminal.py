"""What commands do to the terminal and to the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from tokencredit.cli.terminal import Bars, _is_local, say, user_errors
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

STRANGE = "runs/[red]x[/]/:bug: [bold" + "a long name " * 12 + "]"
LOADS = """
import os, socket, sys

def refuse(*_, **__):
    os._exit(7)  # nothing can catch this

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import tokencredit.cli
from tokencredit.cli.models import load_policy
from tokencredit.cli.terminal import offline_if_local
import huggingface_hub.constants
assert not huggingface_hub.constants.HF_HUB_OFFLINE
offline_if_local(sys.argv[1], None)
import datasets.config
assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
load_policy(sys.argv[1])
print("loaded")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_a_local_model_is_loaded_without_a_word_to_the_hub(model):
    """In a process of its own, since importing tokencredit is what makes the variable alone come too late."""
    own = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", LOADS, str(model)], env=own, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "loaded"), done.stderr[-2000:]


def test_what_is_local(model, tmp_path):
    assert _is_local(model)
    assert not _is_local(tmp_path / "nowhere")
    for base, local in ((str(model), True), ("somebody/model", False), (None, False)):
        content = "{}" if base is None else f'{{"base_model_name_or_path": "{base}"}}'
        (tmp_path / "adapter_config.json").write_text(content)
        assert _is_local(tmp_path) == local


def printed(run):
    app = typer.Typer()
    app.command()(run)
    return CliRunner().invoke(app, [])


def test_paths_and_names_are_printed_as_they_are():
    """No markup, no emoji, and not broken where the terminal ends."""

    def run():
        say(f"written: {STRANGE}")
        with Bars() as bars:
            bars.stage(STRANGE, 10)
            bars.advance(10, STRANGE)
            bars.message(STRANGE)

    assert printed(run).output.splitlines() == [
        f"written: {STRANGE}",
        f"{STRANGE}: 0/10",
        f"{STRANGE}: 10/10 {STRANGE}",
        STRANGE,
    ]


def test_bars_fold_names_and_cut_no_number_off(monkeypatch):
    """On a terminal of 80 columns."""
    output = StringIO()
    terminal = Console(width=80, force_terminal=True, color_system=None, highlight=False, emoji=False, file=output)
    monkeypatch.setattr("tokencredit.cli.terminal.console", terminal)
    name = "rhythm:strategy=coupled,q=0.3,amplification=1.7"
    with Bars() as bars:
        bars.stage(name, 12000)
        bars.advance(11999, f"reward 0.53 {name}")
    last = output.getvalue().rpartition("\x1b[2K")[2]
    lines = last.replace("\x1b[?25h", "").splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in last
    (first,) = (line for line in lines if "━" in line)
    assert " 11999/12000 " in first
    bar = first.index("━")
    assert name in "".join(line[:bar].strip() for line in lines)
    note = first.index("reward")
    assert f"0.53{name}" in "".join(line[note:].strip() for line in lines).replace(" ", "")


def test_an_error_is_one_line_with_its_text_as_it_is():
    def run():
        with user_errors():
            raise ValueError(f"{STRANGE}\n  and what to do\n")

    result = printed(run)
    assert (result.exit_code, result.output) == (2, f"error: {STRANGE} and what to do\n")
