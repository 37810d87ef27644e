"""Is an answer the ground truth? Asked of math-verify in processes of their own, from any thread."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic

if find_spec("math_verify") is None:
    raise ModuleNotFoundError("the math reward needs math-verify", name="math-verify")

MAX_LENGTH = 500
"""Characters of an answer; longer ones are wrong unread."""
SECONDS = 5.0
"""CPU time of an answer; one that takes longer is wrong, and usual ones take milliseconds."""
BATCH_SECONDS = 60.0
"""After this time no further answer of a batch is read: the rest are wrong, and a warning says how many."""
WORKERS = 4
"""Processes that share a batch with slow answers; a batch without any needs one."""

_PATIENCE = 2.0
_MAX_KNOWN = 1 << 16

Question = tuple[str, str | None]
"""A ground truth and an answer; None for the answer asks whether the ground truth can be read."""


def are_right(pairs: Sequence[tuple[str, str]], *, seconds: float = BATCH_SECONDS) -> list[bool]:
    """Which answers say the same as their ground truths, (ground truth, answer) each.

    What takes longer than `SECONDS`, and what is not read within `seconds` for the whole batch, is False. A UserWarning
    then says how many answers that concerns.
    """
    short = [pair for pair in pairs if len(pair[1]) <= MAX_LENGTH]
    replies = _ask(short, seconds)
    unread = sum(replies.get(pair) is None for pair in short)
    if unread:
        warnings.warn(
            f"{unread} of {len(pairs)} answers count as wrong because comparing them with the ground truth took too "
            f"long ({SECONDS:g} seconds of CPU time per answer, {seconds:g} per batch)",
            UserWarning,
            stacklevel=2,
        )
    return [bool(replies.get(pair)) for pair in pairs]


def are_readable(truths: Sequence[str]) -> list[bool]:
    """Which ground truths math-verify reads as mathematics."""
    replies = _ask([(truth, None) for truth in truths if 0 < len(truth) <= MAX_LENGTH], math.inf)
    return [bool(replies.get((truth, None))) for truth in truths]


_KNOWN: dict[Question, bool | None] = {}


def _ask(questions: Sequence[Question], seconds: float) -> dict[Question, bool | None]:
    """The replies; None for a question that took too long, nothing for one that was not asked in time.

    One worker starts. Every two seconds another one joins in, so that answers that hang do not wait for each other.
    """
    replies = {question: _KNOWN[question] for question in questions if question in _KNOWN}
    new = list(dict.fromkeys(question for question in questions if question not in replies))
    waiting: SimpleQueue[Question] = SimpleQueue()
    for question in new:
        waiting.put(question)
    deadline = monotonic() + seconds

    def work() -> None:
        with _worker() as worker:
            while monotonic() < deadline:
                try:
                    question = waiting.get_nowait()
                except Empty:
                    return
                replies[question] = worker.ask(*question)

    if new:
        with ThreadPoolExecutor(WORKERS) as pool:
            tasks = [pool.submit(work)]
            while len(tasks) < WORKERS and wait(tasks, timeout=_PATIENCE).not_done:
                tasks.append(pool.submit(work))
            for task in tasks:
                task.result()
    if len(_KNOWN) > _MAX_KNOWN:
        _KNOWN.clear()
    _KNOWN.update((question, replies[question]) for question in new if question in replies)
    return replies


_IDLE: list[_Worker] = []
_IDLE_LOCK = Lock()


@contextmanager
def _worker() -> Iterator[_Worker]:
    """A worker that nobody else uses meanwhile; started ones first."""
    with _IDLE_LOCK:
        worker = _IDLE.pop() if _IDLE else _Worker()
    try:
        yield worker
    finally:
        with _IDLE_LOCK:
            _IDLE.append(worker)


class _Worker:
    """The process that runs `math_worker`: started when first asked, and again after an answer was its end."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = SECONDS if seconds is None else seconds
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, truth: str, answer: str | None) -> bool | None:
        """Whether the answer is the ground truth; None where it takes too long to find out."""
        with self._lock:
            # After a fork, two processes would read each other's replies.
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = _start(self._seconds), os.getpid()
            reply = _exchange(self._process, json.dumps([truth, answer]))
            if not reply:
                _end(self._process)
                self._process = None
            return reply == "true" if reply else None


def _start(seconds: float) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("math_worker.py")
    # -P: the modules beside the script must not hide those of the standard library.
    process = subprocess.Popen(
        [sys.executable, "-P", str(script), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        _end(process)
        raise RuntimeError(f"math-verify does not start; `{sys.executable} -P {script} {seconds}` says why")
    return process


def _exchange(process: subprocess.Popen[str], request: str) -> str:
    """The reply to a request; empty where the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()
    except BrokenPipeError:
        return ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
