"""The functions of examples/smollm2.py that need no model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

PATH = Path(__file__).parents[1] / "examples" / "smollm2.py"


def test_traces_may_hold_characters_that_look_like_the_end_of_a_line(tmp_path):
    specification = importlib.util.spec_from_file_location("smollm2_example", PATH)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    rows = [{"prompt": "é", "completion": f"a\u2028b\u0085{n}", "reward": n, "row": n} for n in range(2)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "completions.jsonl").write_text(lines, "utf-8")
    example.write_traces(tmp_path / "completions.jsonl", tmp_path / "traces.jsonl")
    traces = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text("utf-8").split("\n") if line]
    assert [trace["completion"] for trace in traces] == ["a\u2028b\u00850", "a\u2028b\u00851"]
    assert [trace["correct"] for trace in traces] == [False, True]
