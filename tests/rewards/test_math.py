"""The math reward: equal answers, hostile answers, threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokencredit import rewards
from tokencredit.rewards import math_answers
from tokencredit.rewards.math import math_reward


def scores(truth, *answers, column="answer"):
    return math_reward([f"so \\boxed{{{answer}}}" for answer in answers], **{column: [truth] * len(answers)})


@pytest.mark.parametrize(
    ("truth", "same", "different"),
    [
        ("025", "25", "52"),
        ("27.0", "27", "28"),
        ("70,000", "70000", "70"),
        (r"\frac{1}{2}", "0.5", "0.4"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{1}{2}\pi)", r"(3, \pi)"),
        ("p - q", "-q + p", "q - p"),
        (r"\text{Evelyn}", r"\text{Evelyn}", r"\text{Carla}"),
        ("#### 18", r"\$18", "19"),
        (r"Thus $\boxed{4}$.", "4", "5"),
    ],
)
def test_the_same_value_in_other_words(truth, same, different):
    assert scores(truth, same, different) == [1.0, 0.0]


def test_where_the_ground_truth_is_looked_for():
    assert math_reward(["\\boxed{4}"], solution=["\\boxed{4}"]) == [1.0]
    assert math_reward(["\\boxed{4}"], reward_model=[{"style": "rule", "ground_truth": "4"}]) == [1.0]
    with pytest.raises(ValueError, match=r"expected a column answer, solution or reward_model.*there are extra"):
        math_reward(["\\boxed{4}"], extra=["4"])
    with pytest.raises(ValueError, match="must be text; row 0 has None"):
        math_reward(["\\boxed{4}"], answer=[None])


def test_the_marker_of_gsm8k_states_an_answer_where_there_is_no_box():
    completions = ["3*6=18\n#### 18", "#### 17\n#### 18\nDone.", "#### 17", "\\boxed{18} #### 17", "####", "####\n18"]
    assert math_reward(completions, answer=["18"] * 6) == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]


def test_no_box_no_reward():
    assert math_reward(["4", "\\boxed{4", ""], answer=["4"] * 3) == [0.0] * 3


@pytest.mark.parametrize("truth", ["1+", "", "x" * 501, "The answer is 5", "\\begin{tabular}"])
def test_a_ground_truth_that_cannot_be_read_is_an_error(truth):
    columns = {"prompt": ["a", "b"], "answer": ["5", truth]}
    with pytest.raises(ValueError, match="1 of 2 ground truths cannot be read as mathematics: row 1"):
        rewards.check(math_reward, columns)
    with pytest.raises(ValueError, match="row 1"):
        math_reward(["", ""], answer=columns["answer"])


def test_words_within_text_are_no_sentence():
    assert scores(r"x \text{ or } y \text{ is not } z", "5") == [0.0]


def test_answers_are_never_run_as_python(tmp_path):
    target = tmp_path / "written"
    hostile = f"__import__('pathlib').Path('{target}').touch()"
    assert scores("5", hostile, "5") == [0.0, 1.0]
    assert not target.exists()


HANGS = [f"9^{{9^{{9^{{9^{{{n}}}}}}}}}" for n in range(2, 6)]


@pytest.fixture
def impatient(monkeypatch):
    """Workers that give an answer two seconds, and that no other test uses."""
    monkeypatch.setattr(math_answers, "SECONDS", 2.0)
    monkeypatch.setattr(math_answers, "_IDLE", workers := [])
    yield workers
    for worker in workers:
        if worker._process is not None:
            math_answers._end(worker._process)


def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_is_scored(impatient):
    with pytest.warns(UserWarning, match="1 of 2 answers count as wrong because comparing them .* took too long"):
        assert scores("1/2", HANGS[0], "0.50") == [0.0, 1.0]


def test_answers_that_hang_do_not_wait_for_each_other(impatient):
    with pytest.warns(UserWarning, match="4 of 5 answers"):
        assert scores("1/2", *HANGS, "0.50") == [0.0] * 4 + [1.0]
    assert 1 < len(impatient) <= math_answers.WORKERS


def test_an_answer_that_a_batch_had_no_time_for_is_wrong_there_and_read_again_later():
    pair = ("1/3", "2/6")
    with pytest.warns(UserWarning, match=r"1 of 1 answers count as wrong .*0 per batch"):
        assert math_answers.are_right([pair], seconds=0) == [False]
    assert math_answers.are_right([pair]) == [True]


def test_worker_threads_get_the_same_scores():
    pairs = [(str(n), str(n + n % 2)) for n in range(1000, 1040)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: scores(*pair)[0], pairs))
    assert found == [float(truth == answer) for truth, answer in pairs]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="CPU time cannot be limited here")
@pytest.mark.parametrize(("work", "ends"), [("time.sleep(1)", False), ("9**9**9", True)])
def test_an_answer_may_wait_for_a_busy_machine_and_no_longer_compute(work, ends):
    """The limit is CPU time: a process that only waits is not ended, and one inside a long multiplication is."""
    worker = Path(math_answers.__file__).with_name("math_worker.py")
    script = f"import runpy, time; limited = runpy.run_path({str(worker)!r})['limited']\nwith limited(0.3):\n    {work}"
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert (done.returncode == -signal.SIGPROF) == ends
    assert (done.returncode == 0) != ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_share_the_worker():
    worker = math_answers._Worker()
    assert worker.ask("2", "2")
    mine = worker._process
    child = os.fork()
    if child == 0:
        fine = worker.ask("3", "3") and worker._process is not mine
        worker._process.kill()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.ask("2", "2")
    math_answers._end(worker._process)
