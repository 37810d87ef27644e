"""How soon a report is there, in a real browser: `python benchmarks/report.py`.

A page of 200 traces, of a given number of tokens each under three methods, opened from disk: its size, the time to the
first paint, and to the page being ready, from the start of the navigation. Then one trace of 16,000 tokens: the time
from a click to the page having been drawn again.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from tokencredit.report.page import MOST_TRACES, Page, write_page

ROUNDS = 7
METHODS = ("atpo", "rhythm", "surprisal")
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


def main() -> None:
    rng = random.Random(0)
    print(f"{MOST_TRACES} traces, {len(METHODS)} methods; medians of {ROUNDS} rounds [least, greatest], milliseconds")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        print(f"Chromium {browser.version}")
        for length in (40, 200, 1000):
            path = write_page(Page("bench", [], [trace(rng, length) for _ in range(MOST_TRACES)], []), Path(folder))
            rounds = [measure(browser, path) for _ in range(ROUNDS)]
            size = path.stat().st_size / 1e6
            paint, ready = (
                f"{median(found):.0f} [{min(found):.0f}, {max(found):.0f}]" for found in zip(*rounds, strict=True)
            )
            print(f"{length:5} tokens each: {size:.2f} MB, first paint {paint}, ready {ready}")
        path = write_page(Page("bench", [], [trace(rng, 16_000)], []), Path(folder))
        rounds = [interactions(browser, path) for _ in range(ROUNDS)]
        for name in rounds[0]:
            found = [times[name] for times in rounds]
            print(f"16,000 tokens, {name}: {median(found):.0f} [{min(found):.0f}, {max(found):.0f}]")
        browser.close()


def interactions(browser, path: Path) -> dict[str, float]:
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


def measure(browser, path: Path) -> tuple[float, float]:
    tab = browser.new_page()
    tab.goto(f"file://{path}")
    tab.wait_for_selector("body[data-ready]")
    ready = tab.evaluate("performance.now()")
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.close()
    return paint, ready


if __name__ == "__main__":
    main()
