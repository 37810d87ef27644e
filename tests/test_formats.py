"""The examples of docs/formats.md, read by the commands' own loaders; and rows that are close to a layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from byte_tokenizers import chat_tokenizer

from tokencredit.completions import load_completions
from tokencredit.data import load_problems
from tokencredit.labelled import load_labelled
from tokencredit.layouts import PROCESSBENCH, STEPS, TEXT, mismatch
from tokencredit.supervised import load_lessons
from tokencredit.tables import read_rows
from tokencredit.testbed.tasks import task

PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
EXAMPLES = re.findall(r"```(json|csv) (\w+)\n(.*?)```", PAGE, re.DOTALL)


def load(content, path):
    tokenizer = chat_tokenizer()
    if content == "problems":
        return load_problems(path, "train")["answer"][:]
    if content == "traces":
        return load_completions(path, tokenizer).labels
    if content == "labelled":
        return load_labelled(path, tokenizer).labelled.mask.tolist() and load_completions(path, tokenizer).labels
    if content == "lessons":
        return load_lessons(path, tokenizer)
    return [task(content).parse(row) for row in read_rows(path, typed=("nums", "target"))]


@pytest.mark.parametrize(("language", "content", "text"), EXAMPLES)
def test_every_example_of_the_page_is_read(tmp_path, language, content, text):
    path = tmp_path / f"mine.{ {'json': 'jsonl', 'csv': 'csv'}[language] }"
    path.write_text(text, "utf-8")
    rows = len(text.strip().splitlines()) - (language == "csv")
    assert len(load(content, path)) == rows


def test_the_page_has_an_example_of_every_layout():
    assert {content for _, content, _ in EXAMPLES} == {
        "problems",
        "traces",
        "labelled",
        "lessons",
        "countdown",
        "chain",
    }
    for page in ("audit", "report", "trl"):
        assert "(formats.md" in (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("promt completion", '{"prompt": "...", "completion": "..."}: the closest layout; .*rename promt to prompt$'),
        ("Prompt Completion", "rename Prompt to prompt; rename Completion to completion$"),
        ("question text", "the row has question, text; rename text to completion$"),
        ("question", '{"prompt": "...", "completion": "..."}: .*; completion is missing$'),
        ("question steps", "steps.*answer.*: the closest layout; .*; answer is missing$"),
        ("question steps solution", "rename solution to answer$"),
        ("problem steps labels", '"label": 1}: the closest layout; .*rename labels to label$'),
        ("", "the row has nothing; "),
    ],
)
def test_an_error_names_the_closest_layout_and_what_is_missing(names, expected):
    assert re.search(expected, mismatch(dict.fromkeys(names.split(), "..."), (TEXT, STEPS, PROCESSBENCH)))
