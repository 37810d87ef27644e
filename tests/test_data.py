"""Problems in the layouts that people have."""

from __future__ import annotations

import csv
import json

import datasets
import pytest

from tokencredit.data import load_problems

CHAT = [{"role": "user", "content": "1+1?"}]
TRL = [{"prompt": CHAT, "answer": "2", "level": 1}, {"prompt": CHAT, "answer": "2", "level": 3}]
VERL = [
    {
        "data_source": "sums",
        "prompt": [{"content": "1+1?", "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 0, "split": "test"},
    }
]
GSM8K = [{"question": "1+1?", "answer": "It is two.\n#### 2"}]
MATH = [{"problem": "1+1?", "solution": "It is $\\boxed{2}$."}]


def as_cell(value):
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(params=[".parquet", ".jsonl", ".json", ".csv"])
def write(request, tmp_path):
    def write(rows):
        path = tmp_path / f"problems{request.param}"
        if request.param == ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        elif request.param == ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows))
        elif request.param == ".csv":
            cells = [
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items() if v is not None} for row in rows
            ]
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(cells)
        else:
            path.write_text(json.dumps(rows, indent=1))
        return path

    return write


@pytest.mark.parametrize(
    ("rows", "prompt", "answer"),
    [
        (TRL, CHAT, "2"),
        (VERL, CHAT, "2"),
        (GSM8K, "1+1?", "It is two.\n#### 2"),
        (MATH, "1+1?", "It is $\\boxed{2}$."),
        ([{"prompt": "1+1?", "answer": 2}], "1+1?", "2"),
    ],
)
def test_each_layout_from_each_kind_of_file(write, rows, prompt, answer):
    found = load_problems(write(rows), "train")
    assert len(found) == len(rows)
    assert found[0]["prompt"] == prompt
    assert found[0]["answer"] == answer
    others = set(rows[0]) - {"prompt", "question", "problem", "answer", "solution"}
    assert set(found.column_names) == {"prompt", "answer"} | others
    assert {name: found[0][name] for name in others} == {name: rows[0][name] for name in others}


def test_columns_by_name_and_a_limit(write):
    rows = [{"q": f"{n}?", "extra": {"truth": str(n)}, "answer": "no"} for n in range(5)]
    found = load_problems(write(rows), "train", prompt_column="q", answer_column="extra.truth", limit=3)
    assert found["prompt"][:] == ["0?", "1?", "2?"]
    assert found["answer"][:] == ["0", "1", "2"]
    assert len(load_problems(write(rows), "train", prompt_column="q", limit=99)) == 5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (GSM8K, [{"role": "user", "content": "1+1? Box it."}]),
        (VERL, [{"role": "user", "content": "1+1? Box it."}]),
        (
            [{"prompt": [*CHAT, {"role": "assistant", "content": "<think>"}], "answer": "2"}],
            [{"role": "user", "content": "1+1? Box it."}, {"role": "assistant", "content": "<think>"}],
        ),
    ],
)
def test_an_instruction_and_chat_messages(write, rows, expected):
    assert load_problems(write(rows), "train", instruction=" Box it.", chat=True)["prompt"] == [expected]
    asked = load_problems(write(rows), "train", instruction=" Box it.")["prompt"][0]
    assert asked == (expected[0]["content"] if rows is GSM8K else expected)


def test_rows_of_json_may_differ_in_their_fields(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2", "note": "n"}\n')
    assert load_problems(path, "train")["note"][:] == [None, "n"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"text": "a", "answer": "1"}],
            {},
            "no prompt column: looked for prompt, question, problem; there are text, answer",
        ),
        ([{"prompt": "a", "label": "1"}], {}, "no answer column.*there are prompt, label.*answer_column"),
        (TRL, {"prompt_column": "nope"}, "looked for nope"),
        (TRL, {"answer_column": "level.nope"}, "looked for level.nope"),
        (
            [*TRL, {**TRL[0], "answer": None}],
            {},
            r"column answer must hold text or a number.*(row|line) [34] must",
        ),
        (
            [{"prompt": " ", "answer": "1"}] * 12,
            {},
            r"column prompt.*12 (row|line)s: [12], .*1[01]?, \.\.\. must",
        ),
        ([{"prompt": [{"role": "user"}], "answer": "1"}], {}, "text or chat messages.*(row|line) [12]"),
        (
            [{"prompt": [], "answer": "1"}, {"prompt": CHAT, "answer": "1"}],
            {},
            "column prompt .*(row|line) [12]",
        ),
        (TRL, {"limit": 0}, "limit must be at least 1"),
    ],
)
def test_what_is_missing_is_named(write, rows, options, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(rows), "train", **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "holds no problem"),
        ("p.jsonl", '{"prompt": "a"}\n{', "line 2: not JSON"),
        ("p.jsonl", "3\n", "line 1: expected a JSON object"),
        ("p.json", "[1, {}]", "row 1: expected a JSON object"),
        ("p.parquet", "no parquet", "cannot be read"),
        ("p.csv", 'prompt,answer,extra\na,1,"{""b"": 1, ""b"": 2}"\n', "line 2: an object has the key b twice"),
        (
            "p.jsonl",
            '{"prompt": 1, "answer": "2"}\n{"prompt": "a", "answer": "2"}',
            "cannot be read: column prompt holds a number in line 1 and text in line 2",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / name, "train")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_problems(tmp_path / "absent.json", "train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine.jsnol", "there is no file .*in that folder are: mine.jsonl, mine.txt, other.csv"),
        ("here/mine.json", "there is no file .*there is no folder .*here"),
        ("mine.txt", "the suffix .txt, which is not known: expected .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_name_that_is_a_path_is_never_looked_for_on_the_hub(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(datasets, "load_dataset", None)  # not to be called
    for name in ("other.csv", "mine.jsonl", "mine.txt"):
        (tmp_path / name).write_text("prompt,answer\na,1\n")
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / source, "train")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match=message):
        load_problems(f"./{tmp_path.name}/{source}", "train")


def test_a_name_that_may_be_either_is_told_of_as_both(tmp_path, monkeypatch):
    def load_dataset(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("not on the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"there is no file data/mine; in that folder are: mine.jsonl.*not on the hub"):
        load_problems("data/mine", "train")
    with pytest.raises(ValueError, match=r"data is a folder: name a file in it: mine.jsonl.*not on the hub"):
        load_problems("data", "train")


def test_answers_as_text_and_as_numbers_may_stand_in_one_column(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "1/2"}\n{"prompt": "b", "answer": 2}\n')
    assert load_problems(path, "train")["answer"][:] == ["1/2", "2"]


def test_columns_of_a_csv_file_have_the_types_that_all_their_cells_have(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,answer,nums,target,id,note\n7,007,"[1, 2]",3,4,"[1"\n8,9,"[5]",,x,\n')
    found = load_problems(path, "train")
    assert found["prompt"][:] == ["7", "8"]
    assert found["answer"][:] == ["007", "9"]
    assert found["nums"][:] == [[1, 2], [5]]
    assert found["target"][:] == [3, None]
    assert found["id"][:] == ["4", "x"]
    assert found["note"][:] == ["[1", None]


def test_whole_numbers_of_more_than_64_bits_are_text(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,answer,id\na,1,12345678901234567890\nb,2,7\n")
    assert load_problems(tmp_path / "p.csv", "train")["id"][:] == ["12345678901234567890", "7"]
    huge = 10**23 + 1
    rows = [{"prompt": "a", "answer": huge, "id": -huge}, {"prompt": "b", "answer": 2, "id": None}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = load_problems(tmp_path / "p.jsonl", "train")
    assert problems["answer"][:] == [str(huge), "2"]
    assert problems["id"][:] == [str(-huge), None]
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0] | {"nums": [huge]}))
    with pytest.raises(ValueError, match="column nums holds a list or an object with a whole number of more than 64"):
        load_problems(tmp_path / "p.jsonl", "train")


@pytest.mark.parametrize("parts", [[{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}], "1+1?"])
def test_content_in_parts_is_read_if_it_is_text(write, parts):
    rows = [{"prompt": [{"role": "user", "content": parts}], "answer": "2"}]
    assert load_problems(write(rows), "train")["prompt"] == [CHAT]


def test_what_a_message_says_beside_its_content_is_not_dropped_in_silence(write):
    message = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    with pytest.raises(ValueError, match="message 2 has tool_calls beside its content"):
        load_problems(write([{"prompt": [*CHAT, message], "answer": "2"}]), "train")
    image = [{"role": "user", "content": [{"type": "image", "text": None}]}]
    with pytest.raises(ValueError, match="message 1 must be text; it holds image"):
        load_problems(write([{"prompt": image, "answer": "2"}]), "train")


def test_data_of_the_hub_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if args[0] == "absent":
            raise datasets.exceptions.DatasetNotFoundError("not on the hub")
        return datasets.Dataset.from_list(GSM8K)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:main", "test")[0]["prompt"] == "1+1?"
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    with pytest.raises(ValueError, match="absent, split 'train', cannot be loaded: not on the hub"):
        load_problems("absent", "train")
