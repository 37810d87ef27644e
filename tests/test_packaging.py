"""What the Makefile installs, what the pins hold, and what CI asks of the package index. Nothing here downloads."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


resolve = script(".ci/resolve.py")
announce_torch = script("scripts/announce_torch.py")


def pins(file):
    lines = [line.strip() for line in (ROOT / file).read_text("utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-verl.txt"])
def test_pins_leave_alone_what_torch_pins_itself(file):
    names = [resolve.normal(pin.split("==")[0]) for pin in pins(file)]
    assert not [name for name in names if resolve.OF_TORCH.fullmatch(name)]
    assert all(pin.count("==") == 1 for pin in pins(file))
    assert len(set(names)) == len(names) > 50
    assert {"torch", "transformers", "numpy"} <= set(names)


def test_a_solution_with_an_unpinned_package_is_a_problem():
    fine = {"tokencredit", "torch", "triton", "nvidia-cublas", "cuda-toolkit", "typing-extensions"}
    assert resolve.judged(fine, "constraints.txt") == resolve.Outcome(len(fine))
    assert "does not pin new-package" in resolve.judged({*fine, "new-package"}, "constraints.txt").problem
    assert not resolve.judged({*fine, "new-package"}, None).problem


def test_every_extra_is_resolved_for_every_python_and_both_sets_of_pins_are():
    extras = list(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    cases = list(resolve.cases(extras))
    for python in resolve.PYTHONS:
        unpinned = {case.extra for case in cases if case.python == python and case.constraints is None}
        assert unpinned == {"", *extras}
        pinned = {case.constraints for case in cases if case.python == python} - {None}
        assert pinned == {"constraints.txt", "constraints-verl.txt"}
    assert all(reason and extra in extras for (extra, _), reason in resolve.EXEMPT.items())


def test_an_exempt_extra_is_no_failure_and_says_why(capsys, monkeypatch):
    monkeypatch.setattr(resolve, "EXEMPT", {("math", "*"): "its wheel is late"})
    failed = resolve.Outcome(0, "no solution")
    assert resolve.show("uv", resolve.Case("math", "3.12"), failed)
    assert "its wheel is late" in capsys.readouterr().out
    assert not resolve.show("uv", resolve.Case("eval", "3.12"), failed)
    assert "no solution" in capsys.readouterr().out


def test_the_resolvers_see_nothing_of_this_machines_configuration(tmp_path, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "UV_INDEX", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, "/local")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text("[global]\nextra-index-url = file:///local\n", encoding="utf-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    environment = resolve.clean_environment(tmp_path / "home")
    assert environment["HTTPS_PROXY"] == "http://proxy"
    assert "/local" not in environment.values()
    listed = [sys.executable, "-m", "pip", "config", "list"]
    configured = subprocess.run(listed, env=environment, capture_output=True, text=True, check=True).stdout
    names = {line.split("=")[0] for line in configured.splitlines()}
    assert names <= {":env:.config-file"}


@pytest.mark.parametrize(("in_ci", "status"), [(True, 1), (False, 0)])
def test_an_index_out_of_reach_fails_in_ci_alone_and_is_named(in_ci, status, capsys, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CI", "true") if in_ci else monkeypatch.delenv("CI", raising=False)
    assert resolve.main() == status
    assert "the public package index cannot be reached" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the public index has no CUDA build")
@pytest.mark.parametrize(
    ("wheels", "requirement", "announced"),
    [
        (["torch-2.13.0-py3-none-any.whl", "torch-2.14.0-py3-none-any.whl"], "torch==2.13.0", True),
        (["torch-2.13.0-py3-none-any.whl", "torch-2.13.0+cpu-py3-none-any.whl"], "torch==2.13.0", False),
        (["torch-2.13.0+cpu-py3-none-any.whl"], "torch==2.13.0", False),
        (["torch-2.13.0-py3-none-any.whl"], "torch==2.13.0+cpu", False),
        (["torch-2.13.0-py3-none-any.whl"], "torch>=2.6", False),
    ],
)
def test_the_big_download_is_announced_where_pip_would_take_it(
    wheels, requirement, announced, tmp_path, capsys, monkeypatch
):
    """Real pip, on a folder of wheels of which it reads the names alone."""
    for name in wheels:
        (tmp_path / name).touch()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(announce_torch.importlib.util, "find_spec", lambda _: None)  # the tests' environment has torch
    announce_torch.main(requirement, "--no-index", "--find-links", str(tmp_path))
    said = capsys.readouterr().out
    assert ("2.7 GB" in said) == announced
    assert (f'TORCH="torch==2.13.0 --index-url {announce_torch.CPU_INDEX}"' in said) == announced


def test_nothing_is_announced_where_torch_is_installed(capsys):
    announce_torch.main("torch==2.13.0", "--no-index")
    assert capsys.readouterr().out == ""


def commands(folder, target, *variables):
    """What `make TARGET` would run in a fresh clone: a list of words for each command."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-verl.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCH", "PYTHON", "MAKEFLAGS")}
    command = ["make", "--dry-run", target, *variables]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("target", "extra"), [("quickstart", "quickstart"), ("test", "test"), ("check", "dev"), ("results", "dev")]
)
def test_a_target_installs_its_own_extra_alone(target, extra, tmp_path):
    installed = [word for words in commands(tmp_path, target) for word in words if word.startswith(".[")]
    assert installed == [f".[{extra}]"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert extra in extras


def test_torch_is_installed_first_with_the_options_that_it_is_given(tmp_path):
    chosen = "torch>=2.13 --index-url https://download.pytorch.org/whl/cpu"
    installs = [words for words in commands(tmp_path, "quickstart", f"TORCH={chosen}") if "install" in words]
    assert installs[0][-3:] == ["torch>=2.13", "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert installs[1][-3:] == ["constraints.txt", "-e", ".[quickstart]"]
    assert len(installs) == 2


def test_another_python_is_refused_before_anything_is_installed(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    old = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info = (3, 10, 1); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(pretend)} "$2"\n', encoding="utf-8")
    old.chmod(0o755)
    command = ["make", ".venv/.torch", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Python 3.11 to 3.14 is needed" in done.stderr
    assert "is 3.10" in done.stderr
    assert not (tmp_path / ".venv").exists()


def ci_run(folder, failing=""):
    """Run .ci/run with a stand-in for make, which names its target and fails for one of them."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    tools = folder / "tools"
    tools.mkdir()
    make = f'#!/bin/sh\necho "output of $1"\necho "$1" >>"{folder}/ended"\ntest "$1" != "{failing}"\n'
    for name, text in {"make": make, "chromium": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text, "utf-8")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(folder)}
    done = subprocess.run([folder / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    return done, (folder / "ended").read_text("utf-8").split()


def test_continuous_integration_runs_every_target_and_the_tests_last(tmp_path):
    done, targets = ci_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(targets[:-1]) == ["check", "package", "resolve"]
    assert targets[-1] == "test"
    assert [line for line in done.stdout.splitlines() if line.startswith("output")] == [
        f"output of {target}" for target in ("check", "resolve", "package", "test")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ci", "ended", "tools"]


@pytest.mark.parametrize("failing", ["check", "resolve", "package", "test"])
def test_continuous_integration_fails_with_any_of_its_targets(failing, tmp_path):
    done, targets = ci_run(tmp_path, failing)
    assert done.returncode != 0
    assert ("test" in targets) == (failing == "test")
    assert failing == "check" or f"output of {failing}" in done.stdout


def test_the_tests_are_spread_over_processes_and_arguments_come_last(tmp_path):
    """The last -n counts, so ARGS="-n 0 --pdb" debugs in pytest's own process."""
    run = [words for words in commands(tmp_path, "test", "WORKERS=3", "ARGS=-x tests/cli") if "pytest" in words]
    assert run == [
        [".venv/bin/python", "-m", "pytest", "-n", "3", "--dist", "worksteal", "-x", "tests/cli"],
    ]
