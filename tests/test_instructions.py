"""The instruction that is added to questions: the user's, or the default one of the reward."""

from __future__ import annotations

import json

import pytest

from tokencredit.instructions import BOXED, load_instructed

ROWS = [
    {"prompt": "1+1?", "answer": "2"},
    {"prompt": "2+2? Write \\boxed{}.", "answer": "4"},
    {"prompt": "3+3? Write the answer after ####.", "answer": "6"},
]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return str(tmp_path / "problems.jsonl")


def prompts(path, instruction, rewards, **options):
    problems, used = load_instructed(path, "train", instruction, rewards, **options)
    return problems["prompt"][:], used


def test_math_asks_for_a_box_where_the_question_does_not(path):
    plain = [row["prompt"] for row in ROWS]
    for rewards in (["math"], ["format", "math"]):
        instructed, used = prompts(path, None, rewards)
        assert instructed == [plain[0] + BOXED, *plain[1:]]
        assert (used.text, used.added, used.default_of) == (BOXED, 1, "math")
        said = used.sentence(3, '--instruction ""')
        assert repr(BOXED) in said
        assert "1 of 3 questions; the others name" in said
    for instruction, rewards in (("", ["math"]), (None, ["countdown"]), (None, ["format", "own:reward"])):
        instructed, used = prompts(path, instruction, rewards)
        assert instructed == plain
        assert used.sentence(3, "") == "instruction: none"


def test_an_instruction_that_is_given_is_added_to_every_question(path):
    instructed, used = prompts(path, " Be brief.", ["math"])
    assert instructed == [row["prompt"] + " Be brief." for row in ROWS]
    assert used.sentence(3, "") == "instruction: ' Be brief.', added to every question"


def test_a_conversation_gets_it_in_the_users_last_message(tmp_path):
    system = [{"role": "system", "content": "Answer in \\boxed{}."}, {"role": "user", "content": "1+1?"}]
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "1+1?"},
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"prompt": p, "answer": "2"}) for p in (system, talk)))
    (first, second), used = prompts(str(tmp_path / "chat.jsonl"), None, ["math"])
    assert first == system
    assert [m["content"] for m in second] == ["Hello", "Hi", "1+1?" + BOXED]
    assert used.added == 1


def test_text_becomes_a_users_message_with_it(path):
    (first, *_), _ = prompts(path, None, ["math"], chat=True)
    assert first == [{"role": "user", "content": "1+1?" + BOXED}]


@pytest.mark.parametrize(("instruction", "text"), [(None, BOXED), (" Be brief.", " Be brief.")])
def test_only_questions_that_get_it_are_counted(tmp_path, instruction, text):
    system = [{"role": "system", "content": "Solve 1+1."}]
    rows = [{"prompt": prompt, "answer": "2"} for prompt in (system, [*system, {"role": "user", "content": "1+1?"}])]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (first, second), used = prompts(str(tmp_path / "chat.jsonl"), instruction, ["math"])
    assert first == system
    assert second[-1]["content"] == "1+1?" + text
    assert used.added == 1
    said = used.sentence(2, "")
    assert "1 of 2 questions; 1 have no message of the user" in said
    assert "the others" not in said
