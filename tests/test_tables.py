"""Rows of a file are the same whatever its format, compression, encoding and line endings."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencredit.tables import FORMATS, read_each, read_rows, read_table

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() and not text.lstrip().startswith("[")
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": TEXTS,
            "completion": TEXTS | st.none(),
            "steps": st.lists(TEXTS, min_size=1, max_size=3) | st.none(),
            "reward": st.integers(-9, 9) | st.none(),
            "correct": st.booleans() | st.none(),
        }
    ),
    min_size=1,
    max_size=4,
)
TYPED = ("steps", "reward", "correct")


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    cell = {name: json.dumps if name in TYPED else str for name in rows[0]}
    for row in rows:
        writer.writerow("" if row[name] is None else cell[name](row[name]) for name in rows[0])
    return text.getvalue()


def as_parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def as_text(rows, suffix):
    if suffix == ".csv":
        return as_csv(rows)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False, indent=1)


@settings(max_examples=60)
@given(
    rows=ROWS,
    suffix=st.sampled_from(FORMATS),
    compressed=st.booleans(),
    mark=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
    blank=st.booleans(),
)
def test_rows_read_back_as_they_were_written(tmp_path_factory, rows, suffix, compressed, mark, ending, blank):
    path = tmp_path_factory.mktemp("rows") / f"mine{suffix}{'.gz' * compressed}"
    if suffix == ".parquet":
        content = as_parquet(rows)
    else:
        text = as_text(rows, suffix)
        if suffix != ".csv" or not any("\n" in str(v) or "\r" in str(v) for row in rows for v in row.values()):
            text = text.replace("\n", ending * (1 + (blank and suffix != ".json")))
        content = text.encode("utf-8-sig" if mark else "utf-8")
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert read_rows(path, typed=TYPED) == rows


@pytest.mark.parametrize(
    "content", ['[{"a": 1}, {"a": 2}]', '{"data": [{"a": 1}, {"a": 2}], "version": 1}', '{"a": 1}\n\n{"a": 2}\n']
)
def test_a_json_file_is_an_array_or_an_object_with_one_or_json_lines(tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    assert read_rows(tmp_path / "mine.json") == [{"a": 1}, {"a": 2}]


def test_an_object_whose_array_is_chat_messages_is_a_row(tmp_path):
    row = {"prompt": [{"role": "user", "content": "a"}], "answer": "1"}
    (tmp_path / "mine.json").write_text(json.dumps(row))
    assert read_rows(tmp_path / "mine.json") == [row]


def test_places_are_lines_where_there_are_lines(tmp_path):
    (tmp_path / "mine.csv").write_text('a,b\n"1\n1",2\n\n3,4\n')
    (tmp_path / "mine.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}')
    (tmp_path / "mine.json").write_text('[\n\n{"a": 1},\n {"a": 2}]')
    assert read_table(tmp_path / "mine.csv").place(1) == f"{tmp_path / 'mine.csv'}, line 5"
    assert read_table(tmp_path / "mine.jsonl").place(1) == f"{tmp_path / 'mine.jsonl'}, line 4"
    assert read_table(tmp_path / "mine.json").place(1) == f"{tmp_path / 'mine.json'}, row 2"


def test_cells_of_a_csv_file(tmp_path):
    messages = [{"role": "user", "content": "a"}]
    cells = {"prompt": json.dumps(messages), "completion": "[1, 2]", "steps": '["a"]', "correct": "True", "label": "-1"}
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *cells, ""])
        writer.writeheader()
        writer.writerow({**cells, "": "0"})
    assert read_rows(tmp_path / "mine.csv", typed=("steps", "correct", "label")) == [
        {"prompt": messages, "completion": "[1, 2]", "steps": ["a"], "correct": True, "label": -1}
    ]


def test_a_cell_may_be_longer_than_the_csv_module_takes_by_itself(tmp_path):
    before, text = csv.field_size_limit(), "a" * 200_000
    (tmp_path / "mine.csv").write_text(f"completion\n{text}\n")
    assert read_rows(tmp_path / "mine.csv") == [{"completion": text}]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \xe9}', "line 2: the text is not UTF-8"),
        ("a.json", '[{"a": "é"}]\n'.encode("latin-1"), "the text is not UTF-8 .byte 0xe9 in its line 1.: save"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "it seems to be UTF-16: save the file as UTF-8"),
        ("a.jsonl", b'{"a": "\\ud83d"}', "line 1: half of a surrogate pair is no text"),
        ("a.jsonl", b'{"a": 1}\n\n{"a" 1}', "line 3: not JSON: Expecting ':' delimiter, at character 6"),
        ("a.jsonl", b'[{"a": 1}]', "line 1: expected a JSON object, one a row; an array of rows belongs into a .json"),
        ("a.json", b'[{"a": 1},\n {"a" 1}]', "line 2: Expecting ':' delimiter, at character 7"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', "several arrays of rows .train, test."),
        ("a.jsonl", b'{"a": 1}\n{"b": 1, "b": 2}', "line 2: an object has the key b twice"),
        ("a.jsonl", b'{"a": [{"b": 1, "b": 1}]}', "line 1: an object has the key b twice"),
        ("a.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "row 2: an object has the key a twice"),
        ("a.json", b'{"a": [{"b": 1}], "a": [{"b": 2}]}', "an object has the key a twice"),
        (
            "a.csv",
            b'prompt\n"[{""role"": ""user"", ""role"": ""user""}]"\n',
            "line 2: an object has the key role twice",
        ),
        ("a.json", b'{"a": 1}{"a": 2}', "line 1: not JSON: Extra data"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: the row has 3 cells, but the header has 2"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the header names a column twice: a"),
        ("a.csv", b"a;b\n1;2\n", "separated by ';': expected commas"),
        ("a.csv", b'a,b\n1,2\n1,"2\n', "line 3: unexpected end of data"),
        (
            "a.csv",
            b"steps\n\"['a']\"\n",
            "line 2: column steps: .'a'. is not JSON: it is written as Python",
        ),
        (
            "a.csv",
            b"prompt\n\"[{'role': 'user', 'content': 'a'}]\"\n",
            "line 2: column prompt: .*as Python",
        ),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.jsonl", b"PAR1....", "is a Parquet file: give it the suffix .parquet"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is compressed with gzip: name it a.jsonl.gz"),
        ("a.jsonl.gz", b"{}", "cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "cannot be decompressed"),
        ("a.txt", b"{}", "the suffix .txt, which is not known: expected .jsonl, .json, .csv, .parquet, each also with"),
        ("a", b"{}", "the suffix .none., which is not known"),
        ("a.zst", b"{}", "the suffix .zst, which is not known"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_rows(tmp_path / name, typed=("steps",))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_file_and_a_folder(tmp_path):
    for name in ("gold.json", "traces.jsonl", "zebra.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"there is no file .*trace.json; in that folder are: traces.jsonl, gold.json"):
        read_rows(tmp_path / "trace.json")
    with pytest.raises(ValueError, match=r"is a folder: name a file in it: gold.json, traces.jsonl, zebra.csv"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file .*there is no folder .*deeper$"):
        read_rows(tmp_path / "deeper" / "still" / "a.jsonl")


def test_a_file_without_rows(tmp_path):
    for name, content in (("a.jsonl", "\n \n"), ("a.json", ""), ("b.json", "[]"), ("a.csv", ""), ("b.csv", "a,b\n")):
        (tmp_path / name).write_text(content)
        assert read_rows(tmp_path / name) == []
        with pytest.raises(ValueError, match="holds no lesson"):
            read_each(tmp_path / name, dict, content="lesson")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(as_parquet([{"a": 1}]))
    assert read_rows(tmp_path / "a.parquet") == [{"a": 1}]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read_rows(tmp_path / "a.parquet")
