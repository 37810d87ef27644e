"""The report says what the run measured, and shows hostile tokens without running them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from conftest import tiny_policy

from tokencredit.report import write_report
from tokencredit.report.render import visible
from tokencredit.testbed.runs import RunFolder

CONFIG = {
    "command": "quickstart",
    "task": "gather",
    "seed": 0,
    "tokencredit": "0.1.0",
    "budget": {"steps": 3, "prompts": 4, "group_size": 8},
    "methods": ["uniform"],
}
ACCURACY = {"value": 0.456, "low": 0.4, "high": 0.5, "count": 300, "tokens": 30.0}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}",
    "</span></article></body>",
    "\u202egnp.exe",
    "\u200b",
    "\ud83d",
    "\x00\x1b[31m",
    "javascript:alert(1)",
    "x" * 100_000,
]


def trace(tokens, **changed):
    n = len(tokens)
    return {
        "method": "uniform",
        "prompt": "<b>Q:</b>\n",
        "tokens": tokens,
        "weights": [1.0] * n,
        "advantages": [0.5] * n,
        "reward": 1.0,
        "step_index": [0] * n,
        "essential": [True],
        "first_error": None,
        "answer_start": -1,
        "group": 0,
        "diagnostics": {},
        **changed,
    }


@pytest.fixture
def report(tmp_path):
    def report(*traces):
        folder = RunFolder.create(tmp_path / "run", CONFIG, overwrite=True)
        folder.record_before({"greedy": ACCURACY, "sampled": ACCURACY})
        folder.record_step({"method": "uniform", "step": 1, "reward": 0.5, "accuracy": 0.5, "credit/gini": 0.125})
        after = {**ACCURACY, "value": 0.812}
        result = {"after": {"greedy": after, "sampled": after}, "seconds": 12.3, "tokens": 98765, "adapter": False}
        folder.record_method("uniform", result, traces, tiny_policy())
        return write_report(folder.path).read_text("utf-8")

    return report


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def test_it_tells_what_was_measured(report):
    html = report(trace(["a", "b"]))
    for told in ("0.456", "0.812", "[0.40, 0.50]", "98,765", "n = 300", "0.125", "held out"):
        assert told in html
    assert html.count("<svg") == 2


def test_hostile_tokens_are_shown_and_nothing_runs(report):
    html = report(trace(HOSTILE))
    page, clean = Elements(html), Elements(report(trace(["a"] * len(HOSTILE))))
    assert page.tags == clean.tags
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on") or "javascript:" in a[2]]
    assert not re.search(r'(?:src|href)="https?://', re.sub(r'xmlns(?::\w+)?="[^"]*"', "", html))
    shown = Elements(html).text
    assert "<script>alert(1)</script>" in shown
    assert "⟨U+202E⟩gnp.exe" in shown
    assert "⟨U+200B⟩" in shown
    assert "⟨U+D83D⟩" in shown
    assert "{{·7·*·7·}}" in shown
    assert "<b>Q:</b>" in shown


def test_the_page_forbids_what_it_does_not_need(report):
    assert "default-src 'none'; style-src 'unsafe-inline'" in report(trace(["a"]))


def test_credit_and_truth_are_on_the_tokens(report):
    html = report(trace(["a", "b", "c"], advantages=[1.0, -0.5, 0.0], step_index=[0, -1, 0], first_error=1))
    spans = re.findall(r'<span class="t ([^"]*)" style="--s:(\d+)" title="([^"]*)">', html)[-3:]
    assert [(c, s) for c, s, _ in spans] == [("plus essential", "100"), ("minus error", "50"), ("zero essential", "0")]
    assert spans[0][2] == "token 0 · weight 1.000 · advantage +1.000 · step 0, essential"
    assert spans[1][2].endswith("first error")


def test_of_each_problem_the_first_right_and_wrong_trace_is_shown(report):
    rows = [
        trace([f"{kind}{group}{i}"], group=group, reward=float(kind == "r"))
        for group in range(5)
        for i in range(2)
        for kind in "wr"
    ]
    assert re.findall(r">([rw]\d\d)</span>", report(*rows)) == ["r00", "w00", "r10", "w10", "r20", "w20"]


def test_traces_without_credit_are_not_shown(report):
    assert "dull" not in report(trace(["dull"], advantages=[0.0]), trace(["b"]))


def test_visible_keeps_what_shows():
    assert visible("a+é🙂") == "a+é🙂"
    assert visible("\n") == "⏎\n"


def test_what_is_no_finished_run(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)
    RunFolder.create(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="no finished method"):
        write_report(tmp_path / "run")
