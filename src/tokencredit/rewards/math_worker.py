"""Compares answers by math-verify, in a process of its own: a script that `math_answers` runs.

A request is a line of JSON, [ground truth, answer]; the reply is `true` or `false`. With null for the answer: can the
ground truth be read at all? Answers are hostile: a tower of powers keeps Python inside one multiplication, where Python
handles no signal. So the operating system ends the process when a request takes too long, and its memory is limited.
The limit is CPU time, because on a busy machine an easy answer may wait for long.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

BYTES = 4 << 30

# LaTeX goes through a grammar. math-verify's other reader, of plain expressions, evaluates Python: it stays out.
_LATEX = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]


@lru_cache(maxsize=4096)
def read(text: str) -> list[Any]:
    """What math-verify makes of an answer: an expression, where it can be read, and the text."""
    return parse(f"\\boxed{{{text}}}", _LATEX, parsing_timeout=None)


def reply(truth: str, answer: str | None) -> bool:
    if answer is None:
        return not all(isinstance(found, str) for found in read(truth))
    return verify(read(truth), read(answer), timeout_seconds=None)


def main(seconds: float) -> None:
    """Answer requests until there are no more; one that takes longer than `seconds` is the end of the process."""
    logging.disable()
    limit_memory()
    reply("1/2", "0.5")  # math-verify imports its grammar at the first answer, which should not count against that one
    print("ready", flush=True)
    for line in sys.stdin:
        with limited(seconds):
            try:
                equal = reply(*json.loads(line))
            # Whatever a hostile answer makes the parser raise, it is not the ground truth.
            except Exception:  # noqa: BLE001
                equal = False
        print(json.dumps(equal), flush=True)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """The process ends if the block takes more CPU time than that; on Windows, more time."""
    if hasattr(signal, "setitimer"):
        # The signal's default action, by the operating system, is to end the process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        return
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        yield
        faulthandler.cancel_dump_traceback_later()


def limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (BYTES if hard == resource.RLIM_INFINITY else min(BYTES, hard), hard))


if __name__ == "__main__":
    main(float(sys.argv[1]))
