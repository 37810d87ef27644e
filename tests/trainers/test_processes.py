"""Training in processes of its own: two of them together, and one that is killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("run_training.py")


def launch(out, *options, processes=1):
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *runner, str(SCRIPT), str(out), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )


def result(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("credit", [{"credit_method": "atpo"}, {"credit_method": "atpo", "credit_timing": "loss"}])
def test_two_processes_train_one_policy(tmp_path, credit):
    """The script itself asserts the world size, equal weights, and credit equal to that of one process."""
    done = launch(tmp_path, "--processes", "2", "--credit", json.dumps(credit), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(result(tmp_path)["gini"]) >= 3


@pytest.mark.parametrize("credit", [{"credit_method": "atpo"}, {"credit_method": "rhythm", "credit_timing": "loss"}])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, credit):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = ("--credit", json.dumps(credit))
    assert launch(whole, *given).returncode == 0
    killed = launch(broken, *given, "--kill-at", "5")
    assert killed.returncode == -signal.SIGKILL
    assert not (broken / "result.json").exists()
    assert (broken / "checkpoint-4").is_dir()
    resumed = launch(broken, *given, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    a, b = (torch.tensor(result(out)["weights"]) for out in (whole, broken))
    assert torch.equal(a, b)
    if "credit_timing" not in credit:
        # A schedule, such as AttnPO's delay, goes on where it stood.
        assert (result(whole)["steps"], result(broken)["steps"]) == ([0, 2, 4], [4])
