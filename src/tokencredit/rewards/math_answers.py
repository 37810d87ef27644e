"""Is an answer the ground truth? Asked of math-verify in a process of its own, from any thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

if find_spec("math_verify") is None:
    raise ModuleNotFoundError("the math reward needs math-verify", name="math-verify")

MAX_LENGTH = 500
"""Characters of an answer; longer ones are wrong unread."""
SECONDS = 5
"""An answer that takes longer is wrong; usual ones take milliseconds."""


@lru_cache(maxsize=1 << 16)
def is_right(truth: str, answer: str) -> bool:
    """Does `answer` say the same as `truth`? False for what takes too long to find out."""
    return len(answer) <= MAX_LENGTH and _worker.ask(truth, answer)


@lru_cache(maxsize=1 << 16)
def is_readable(truth: str) -> bool:
    return 0 < len(truth) <= MAX_LENGTH and _worker.ask(truth, None)


class _Worker:
    """The process that runs `math_worker`: started when first asked, and again after an answer was its end."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, truth: str, answer: str | None) -> bool:
        with self._lock:
            # After a fork, two processes would read each other's replies.
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = _start(self._seconds), os.getpid()
            reply = _exchange(self._process, json.dumps([truth, answer]))
            if not reply:
                _end(self._process)
                self._process = None
            return reply == "true"


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


_worker = _Worker()
