"""Can the public package index alone serve what the Makefile and the extras ask for?

    python .ci/resolve.py

Resolves the pinned sets, and each extra without pins, for every Python that is supported. Nothing is installed, and of
packages only the metadata is downloaded. Two resolvers are asked:

- pip, for what `make test` and `make check` install, with the Python that runs this;
- uv, for everything. It resolves for a Python and a platform that are not here, in seconds, and accepts wheels alone.

Neither sees the configuration of this machine, so each uses its default index: no local wheels, no other index, no
constraints. Where the index cannot be reached, that is an error if CI is set in the environment, and a remark
otherwise.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("pip==26.3", "uv==0.13.9")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OTHER_PLATFORMS = ("aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
"""Where the README's commands are to work besides the platform that this runs on."""
EXEMPT = {("verl", "3.14"): "verl requires tensordict 0.10.0, which has no wheels for Python 3.14"}
"""(extra, Python, or "*" for every Python) -> why it need not resolve. It must be an extra of pyproject.toml."""
WITHOUT_WHEELS = ("antlr4-python3-runtime",)
"""Pure Python, published as source: verl takes a release of it that has no wheel."""
OF_TORCH = re.compile(r"triton|cuda-.*|nvidia-.*")
"""What torch pins itself, differently for each of its builds; constraints files must leave it alone."""
KEPT = re.compile(r"PATH|LANG|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY", re.IGNORECASE)
"""Variables that say how the network is reached. Those that say where packages lie are not kept."""


@dataclass(frozen=True)
class Case:
    """One set of requirements to resolve; `extra` is "" for the package without extras."""

    extra: str
    python: str
    constraints: str | None = None
    platform: str | None = None

    def __str__(self) -> str:
        package = f"tokencredit[{self.extra}]" if self.extra else "tokencredit"
        pins = f" -c {self.constraints}" if self.constraints else ""
        return f"Python {self.python}  {package}{pins}{f'  ({self.platform})' if self.platform else ''}"

    @property
    def exempt(self) -> str | None:
        return EXEMPT.get((self.extra, self.python)) or EXEMPT.get((self.extra, "*"))


@dataclass(frozen=True)
class Outcome:
    """`packages`: how many packages the solution has; `problem`: why there is none, or what is wrong with it."""

    packages: int
    problem: str = ""


def cases(extras: list[str]) -> Iterator[Case]:
    for python in PYTHONS:
        yield Case("dev", python, "constraints.txt")
        yield Case("verl", python, "constraints-verl.txt")
        for platform in OTHER_PLATFORMS:
            yield Case("dev", python, "constraints.txt", platform)
        for extra in ("", *extras):
            yield Case(extra, python)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def judged(names: set[str], constraints: str | None) -> Outcome:
    """A solution with a constraints file must be pinned whole, except for what torch pins itself."""
    if constraints is None:
        return Outcome(len(names))
    lines = (ROOT / constraints).read_text("utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    unpinned = sorted(name for name in names - pinned - {"tokencredit"} if not OF_TORCH.fullmatch(name))
    return Outcome(len(names), f"{constraints} does not pin {', '.join(unpinned)}" if unpinned else "")


def clean_environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | {
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_CACHE_DIR": str(folder / "uv"),
        "MACOSX_DEPLOYMENT_TARGET": "14.0",  # the oldest that torch has wheels for
    }


def resolved_by_uv(case: Case, tools: Path, environment: dict[str, str]) -> Outcome:
    command = [tools / "uv", "pip", "compile", ROOT / "pyproject.toml", "--quiet", "--no-annotate", "--no-header"]
    command += ["--no-config", "--no-python-downloads", "--system-certs"]
    command += ["--python", tools / "python", "--python-version", case.python, "--only-binary", ":all:"]
    command += [word for package in WITHOUT_WHEELS for word in ("--no-binary", package)]
    command += ["--extra", case.extra] if case.extra else []
    command += ["--constraints", ROOT / case.constraints] if case.constraints else []
    command += ["--python-platform", case.platform] if case.platform else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return Outcome(0, done.stderr.strip())
    names = re.findall(r"^([\w.-]+)(?:\[.*\])?==", done.stdout, re.MULTILINE)
    return judged(set(map(normal, names)), case.constraints)


def resolved_by_pip(case: Case, tools: Path, environment: dict[str, str]) -> Outcome:
    """fast-deps reads a wheel's metadata alone, where the index does not serve it as a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [tools / "python", "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", report, "--use-feature=fast-deps", "-c", ROOT / str(case.constraints)]
        command += [f"{ROOT}[{case.extra}]"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return Outcome(0, done.stderr.strip())
        names = {normal(package["metadata"]["name"]) for package in json.loads(report.read_text("utf-8"))["install"]}
    return judged(names, case.constraints)


def show(resolver: str, case: Case, outcome: Outcome) -> bool:
    """Print a line; return whether all is well."""
    if outcome.problem and case.exempt:
        print(f"exempt  {resolver:<3}  {case}: {case.exempt}", flush=True)
        return True
    print(f"{'FAILED' if outcome.problem else 'ok':<6}  {resolver:<3}  {case}: {outcome.packages} packages", flush=True)
    if outcome.problem:
        print("        " + outcome.problem.replace("\n", "\n        "), flush=True)
    return not outcome.problem


def unreachable(environment: dict[str, str]) -> str:
    """Why the index cannot be reached; empty where it can."""
    command = [sys.executable, "-m", "pip", "index", "versions", "pip", "--retries", "1", "--timeout", "30"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def main() -> int:
    started = time.monotonic()
    extras = list(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    if unknown := {extra for extra, _ in EXEMPT} - set(extras):
        print(f"EXEMPT names what is no extra: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="resolve-") as folder, ThreadPoolExecutor(6) as pool:
        if reason := unreachable(clean_environment(Path(folder))):
            print(f"the public package index cannot be reached, so nothing was resolved: {reason}", file=sys.stderr)
            return 1 if os.environ.get("CI") else 0
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/tools"], check=True)
        tools, environment = Path(folder) / "tools" / "bin", clean_environment(Path(folder))
        # The tools themselves may come from wherever this machine has its packages.
        subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", *TOOLS], check=True)
        commands = Case("dev", f"{sys.version_info.major}.{sys.version_info.minor}", "constraints.txt")
        by_pip = pool.submit(resolved_by_pip, commands, tools, environment)
        by_uv = [(case, pool.submit(resolved_by_uv, case, tools, environment)) for case in cases(extras)]
        fine = [show("uv", case, outcome.result()) for case, outcome in by_uv]
        fine.append(show("pip", commands, by_pip.result()))
    print(f"{sum(fine)} of {len(fine)} as they should be, in {time.monotonic() - started:.0f} seconds")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
