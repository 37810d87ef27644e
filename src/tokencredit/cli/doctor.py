"""`tokencredit doctor`: what is installed, which trainer adapters load, which commands can run, and why not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

import typer
from packaging.requirements import Requirement
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from tokencredit.cli.doctor_commands import COMMANDS, WITHOUT_EXTRAS, readiness
from tokencredit.cli.terminal import console

_PACKAGES = (
    "tokencredit",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "verl",
    "ray",
    "TransferQueue",
    "vllm",
)
_POLICY = "VERL_USE_EXTERNAL_PLUGINS"
_VALUE_HEAD = """
try:
    from trl.experimental.ppo import AutoModelForCausalLMWithValueHead
except ImportError:
    from trl import AutoModelForCausalLMWithValueHead
"""


@dataclass(frozen=True)
class Adapter:
    """A trainer adapter: the package it is for, which is also the extra that brings it, and its module."""

    package: str
    module: str


ADAPTERS = (Adapter("trl", "tokencredit.trainers.trl"), Adapter("verl", "tokencredit.trainers.verl.plugin"))


@dataclass(frozen=True)
class Finding:
    """`state`: loads, fails, or missing (the package is not installed). `why`: in words, empty where it loads."""

    state: str
    why: str = ""


def doctor() -> None:
    """Say what is installed, which trainer adapters load, which commands can run, and why not.

    The exit code is 1 where an adapter fails.
    """
    console.print(_installed())
    findings = {adapter: examine(adapter) for adapter in ADAPTERS}
    for adapter, found in findings.items():
        colour = {"loads": "green", "fails": "bold red", "missing": "dim"}[found.state]
        why = f": {escape(found.why)}" if found.why else ""
        console.print(f"[{colour}]{adapter.package:<5} {found.state}[/]{why}", soft_wrap=True)
    _report_commands()
    if any(found.state == "fails" for found in findings.values()):
        raise typer.Exit(1)


def _report_commands() -> None:
    """Print which commands can run here, and how to install what the others lack."""
    console.print("\ncommands")
    for command, extras in COMMANDS.items():
        try:
            ready = readiness(command, extras)
        except PackageNotFoundError:
            console.print("tokencredit is importable but not installed, so that what its commands need is not known")
            return
        arguments = WITHOUT_EXTRAS.get(command)
        exception = f", except with {arguments}" if arguments else ""
        needs = f" (needs {', '.join(ready.needs)}{exception})" if ready.needs else ""
        if ready.lacking:
            why = f"{', '.join(ready.lacking)}: {ready.remedy}"
            state = f"can run only with {arguments}" if arguments else "cannot run"
            console.print(f"[yellow]{command:<13} {state}[/]: {escape(why)}", soft_wrap=True)
        else:
            console.print(f"[green]{command:<13} can run[/]{needs}", soft_wrap=True)


def examine(adapter: Adapter) -> Finding:
    """Whether an adapter can be used here."""
    if _version(adapter.package) is None:
        return Finding("missing", f'pip install "tokencredit[{adapter.package}]"')
    why = _out_of_range(adapter.package) or _import_error(adapter.module)
    if not why and adapter.package == "verl":
        why = _hidden_from_verl() or _broken_by_trl()
    return Finding("fails", why) if why else Finding("loads")


def _installed() -> Table:
    table = Table(box=SIMPLE, pad_edge=False, show_header=False)
    table.add_row("python", sys.version.split()[0], escape(sys.executable))
    for package in _PACKAGES:
        supported = _supported(package)
        asked = f"supported: {supported.specifier}" if supported else ""
        table.add_row(package, _version(package) or "not installed", asked)
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _supported(package: str) -> Requirement | None:
    """What tokencredit itself asks of a package, in whichever extra."""
    try:
        requirements = [Requirement(line) for line in requires("tokencredit") or ()]
    except PackageNotFoundError:  # importable without being installed
        return None
    return next((r for r in requirements if r.name == package and r.specifier), None)


def _out_of_range(package: str) -> str:
    found, supported = _version(package), _supported(package)
    if found is None or supported is None or supported.specifier.contains(found, prereleases=True):
        return ""
    return (
        f'{package} {found} is outside the supported range {supported.specifier}: pip install "tokencredit[{package}]"'
    )


def _import_error(module: str) -> str:
    """What importing a module raises; empty where nothing. verl swallows it."""
    error = _error_of(f"import {module}")
    return f"importing {module} failed: {error}" if error else ""


def _error_of(code: str) -> str:
    """The last line of what Python says of some code, in a process of its own; empty where it runs."""
    env = {**os.environ, _POLICY: "none"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines() or ["no message"]
    return lines[-1] if done.returncode else ""


def _hidden_from_verl() -> str:
    """Why verl does not look for a plugin that would load; empty where it does."""
    if not entry_points(group="verl.plugins", name="tokencredit"):
        return "tokencredit is importable but not installed, so that verl cannot find its plugin: pip install it"
    policy = os.environ.get(_POLICY, "auto").strip().lower()
    if policy != "auto" and "tokencredit" not in [name.strip() for name in policy.split(",")]:
        return f"{_POLICY}={policy} keeps verl from loading the plugin: unset it, or add tokencredit to it"
    return ""


def _broken_by_trl() -> str:
    """Why verl could build no model beside the TRL that is installed; empty where it can, or there is none."""
    if _version("trl") is None or not _error_of(_VALUE_HEAD):
        return ""
    return (
        f"when verl builds a model it looks for a class that trl {_version('trl')} has no more: keep TRL out of "
        "verl's environment (pip uninstall trl)"
    )
