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


def test_a_group_may_be_split_over_processes(tmp_path):
    """The script asserts that the fraction of correct completions is that of the whole group."""
    credit = {
        "credit_method": "attnpo",
        "credit_params": {"heads": [[1, 0]], "incorrect": True, "beta": 8},
        "credit_correct_threshold": 0.2,
    }
    given = ("--processes", "2", "--group", "16", "--credit", json.dumps(credit))
    done = launch(tmp_path, *given, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_table_of_two_processes_holds_the_rows_of_both(tmp_path):
    """Columns are in the order of the completions: digits, which are rewarded, tell which advantage is whose."""
    credit = {"credit_method": "atpo", "log_completions": True, "credit_outcome": "dr_grpo"}
    done = launch(tmp_path, "--processes", "2", "--credit", json.dumps(credit), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    told = result(tmp_path)
    assert {len(values) for values in (*told["table"].values(), told["advantages"], told["completions"])} == {16}
    rewards = torch.tensor([sum(map(str.isdigit, text)) / max(1, len(text)) for text in told["completions"]])
    outcome = (rewards.view(-1, 4) - rewards.view(-1, 4).mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(torch.tensor(told["advantages"]), outcome)
    least, greatest = (torch.tensor(told["table"][f"credit_advantage_{name}"]) for name in ("min", "max"))
    # The weights of the answer are 1, the others at most, so each outcome advantage is the extreme of its completion.
    torch.testing.assert_close(torch.where(outcome > 0, greatest, least), outcome)
    assert all(0 < share <= 1 for share in told["with_loss"])


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
