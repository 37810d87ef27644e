"""How soon a report is there, in a real browser: `python benchmarks/report.py`.

A page of 200 traces, of a given number of tokens each under three methods, opened from disk: its size, the time to the
first paint, and to the page being ready, from the start of the navigation. Then one trace of 16,000 tokens: the time
from a click to the page having been drawn again.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import arguments, finish, spread
from playwright.sync_api import sync_playwright

from tokencredit.report.page import MOST_TRACES, Page, write_page

METHODS = ("atpo", "rhythm", "surprisal")
QUICK: dict[str, Any] = {"lengths": [40], "long": 1000, "rounds": 2}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def trace(rng: random.Random, length: int) -> dict:
    """Values as a run has them: four significant digits that do not repeat."""

    def values() -> list[float]:
        return [float(f"{rng.random():.4g}") for _ in range(length)]

    diagnostics = {"gini": 0.2, "effective_ratio": 0.8}
    return {
        "source": "policy",
        "prompt": "What is the sum of the first numbers?",
        "tokens": [rng.choice(["the ", "sum ", "of ", "x ", "= ", "17", ",", "\n"]) for _ in range(length)],
        "reward": 1.0,
        "correct": True,
        "answer_start": length - 10,
        "step_index": [t // 20 for t in range(length - 10)] + [-1] * 10,
        "signals": {name: values() for name in ("logprob", "entropy", "waad", "fai")},
        "peaks": {},
        "credit": {name: {"weights": values(), "advantages": values(), "diagnostics": diagnostics} for name in METHODS},
    }


def figures(lengths: Sequence[int] = (40, 200, 1000), long: int = 16_000, rounds: int = 7) -> dict[str, Any]:
    """Of pages of `MOST_TRACES` traces of each length, and of one with one long trace; times in milliseconds."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        pages = []
        for length in lengths:
            path = write_page(Page("bench", [], [trace(rng, length) for _ in range(MOST_TRACES)], []), Path(folder))
            times = [opening(browser, path) for _ in range(rounds)]
            pages.append({"tokens": length, "megabytes": path.stat().st_size / 1e6, **_spreads(times)})
        path = write_page(Page("bench", [], [trace(rng, long)], []), Path(folder))
        clicks = [interactions(browser, path) for _ in range(rounds)]
        found = {
            "chromium": browser.version,
            "traces": MOST_TRACES,
            "methods": len(METHODS),
            "rounds": rounds,
            "pages": pages,
            "long": {"tokens": long, "interactions": _spreads(clicks)},
        }
        browser.close()
    return found


def _spreads(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([times[name] for times in rounds]) for name in rounds[0]}


def interactions(browser: Any, path: Path) -> dict[str, float]:
    tab = browser.new_page()
    tab.goto(f"file://{path}#methods=atpo")
    tab.wait_for_selector("body[data-ready]")
    times = {"ready": tab.evaluate("performance.now()")}
    drawn = """async act => {
        const start = performance.now();
        act();
        await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
        return performance.now() - start;
    }"""
    button = "() => document.querySelectorAll('#methods button')[1].click()"
    key = "() => document.querySelector('.tokens').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    times["second method"] = tab.evaluate(f"({drawn})({button})")
    times["next token"] = tab.evaluate(f"({drawn})({key})")
    tab.close()
    return times


def opening(browser: Any, path: Path) -> dict[str, float]:
    tab = browser.new_page()
    tab.goto(f"file://{path}")
    tab.wait_for_selector("body[data-ready]")
    ready = tab.evaluate("performance.now()")
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.close()
    return {"paint": paint, "ready": ready}


def main() -> None:
    asked = arguments(__doc__).parse_args()
    finish("report", figures(**(QUICK if asked.quick else {})), asked)


if __name__ == "__main__":
    main()
