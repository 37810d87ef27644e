"""Chat messages in files of traces and lessons."""

from __future__ import annotations

import json

import pytest
from byte_tokenizers import chat_tokenizer

from tokencredit.audit.traces import load_traces
from tokencredit.completions import load_completions
from tokencredit.labelled import load_labelled
from tokencredit.supervised import load_lessons

USER = [{"role": "user", "content": "1+1?"}]
RENDERED = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
STEPS = {"steps": ["1+1=2. "], "answer": "2", "correct": True}
PROCESSBENCH = {"problem": "1+1?", "steps": ["1+1=2.", "2"], "label": -1, "final_answer_correct": True}
LOADERS = {
    "score": lambda *args, **options: load_completions(*args, **options).rollouts,
    "heads": lambda *args, **options: load_labelled(*args, **options).labelled.rollouts,
    "audit": lambda *args, **options: load_traces(*args, **options).rollouts,
}


def write(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_labelled_traces_take_chat_messages_and_text_as_a_users_message(tmp_path, load):
    tokenizer = chat_tokenizer()
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}], "name": None}
    ]
    for row, chat in (
        ({"prompt": USER, **STEPS}, False),
        ({"prompt": parts, **STEPS}, False),
        ({"prompt": "1+1?", **STEPS}, True),
        (PROCESSBENCH, True),
    ):
        rollouts = load(write(tmp_path, row), tokenizer, chat=chat)
        assert tokenizer.decode(rollouts.prompt_ids[0]) == RENDERED
    assert tokenizer.decode(load(write(tmp_path, PROCESSBENCH), tokenizer).prompt_ids[0]) == "1+1?"


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("prompt", [USER, "1+1?"])
def test_what_is_missing_is_the_chat_template_and_not_the_layout(tmp_path, load, prompt):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="line 1: .*has no chat template") as error:
        load(write(tmp_path, {"prompt": prompt, **STEPS}), tokenizer, chat=True)
    assert "expected" not in str(error.value)


def test_a_completion_that_is_a_message_is_its_content_and_the_end_of_the_turn(tmp_path):
    """What the template writes behind the end, and around the content, is not what the model wrote."""
    tokenizer = chat_tokenizer()
    row = {"prompt": USER, "completion": [{"role": "assistant", "content": " 2 "}], "math_reward": 1.0}
    rows = [row, {**row, "truncated": True}, {**row, "completion": " 2 "}]
    rollouts = load_completions(write(tmp_path, *rows), tokenizer).rollouts
    texts = [tokenizer.decode(ids[mask]) for ids, mask in zip(rollouts.completion_ids, rollouts.completion_mask)]
    assert texts == [" 2 <|im_end|>", " 2 ", " 2 "]
    assert tokenizer.decode(rollouts.prompt_ids[0]) == RENDERED
    whole = tokenizer.apply_chat_template([*USER, *row["completion"]], tokenize=False)
    assert whole.startswith(RENDERED + texts[0])
    assert load_completions(write(tmp_path, *rows), tokenizer).columns == [
        "prompt",
        "completion",
        "math_reward",
        "truncated",
    ]


def test_a_template_that_ends_no_turn_adds_no_token(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path = write(tmp_path, {"prompt": USER, "completion": [{"role": "assistant", "content": "2"}]})
    assert tokenizer.decode(load_completions(path, tokenizer).rollouts.completion_ids[0]) == "2"
    assert tokenizer.decode(load_lessons(path, tokenizer)[0].completion) == "2<|endoftext|>"


def test_a_lesson_that_is_a_message_ends_with_the_turn(tmp_path):
    tokenizer = chat_tokenizer()
    message = {"prompt": USER, "completion": [{"role": "assistant", "content": "2"}]}
    lessons = load_lessons(write(tmp_path, message, {"question": "1+1?", "output": "2"}), tokenizer)
    assert [tokenizer.decode(lesson.completion) for lesson in lessons] == ["2<|im_end|>", "2<|endoftext|>"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"completion": [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]},
            "2 .assistant, tool.",
        ),
        ({"completion": [{"role": "user", "content": "a"}]}, "one message of the assistant; it has 1 .user."),
        (
            {"completion": [{"role": "assistant", "content": "a", "tool_calls": [1]}]},
            "has tool_calls beside its content",
        ),
        ({"completion": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}, "has reasoning_content"),
        ({"completion": [{"role": "assistant"}]}, "message 1 has no content"),
        ({"completion": []}, "expected chat messages"),
        ({"completion": [{"role": "assistant", "content": "a"}], "prompt": "1+1?"}, "but the prompt is text"),
        ({"completion": "a", "prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}, "it holds image_url"),
        ({"completion": "a", "prompt": [{"role": "user", "content": " "}]}, "all empty"),
        ({"completion": None, "response": "a", "output": "b"}, "response and output may each be the completion"),
        ({"reply": "a", "promt": "b"}, "the row has prompt, reply, promt; completion is missing"),
        ({"completion": "a", "steps": ["b"], "answer": "c"}, "both a completion and steps"),
    ],
)
def test_what_cannot_be_read_as_the_model_wrote_it_is_refused_by_name(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"mine.jsonl, line 1: .*{message}"):
        load_completions(write(tmp_path, {"prompt": USER, **row}), chat_tokenizer())


def test_a_file_of_two_layouts_is_refused_at_the_row_that_differs(tmp_path):
    plain, steps = {"prompt": USER, "completion": "a"}, {"prompt": USER, **STEPS}
    for rows in ([plain, steps], [steps, plain]):
        with pytest.raises(ValueError, match="line 2: the row has .*split the file in two"):
            load_completions(write(tmp_path, *rows), chat_tokenizer())


def test_the_table_that_trl_saves_is_read(tmp_path):
    """As its trainer writes it, by pandas: a reward that a function did not give is missing."""
    import pandas

    tokenizer = chat_tokenizer()
    table = {
        "step": [1, 1],
        "prompt": [USER, USER],
        "completion": [[{"role": "assistant", "content": text}] for text in ("2", "3")],
        "reward": [1.0, None],
        "advantage": [0.7, -0.7],
    }
    pandas.DataFrame(table).to_parquet(tmp_path / "completions_00001.parquet")
    rollouts, labels, _, columns = load_completions(tmp_path / "completions_00001.parquet", tokenizer)
    assert [label["reward"] for label in labels] == [1.0, None]
    assert rollouts.group.tolist() == [0, 0]
    assert tokenizer.decode(rollouts.prompt_ids[0]) == RENDERED
    assert columns == list(table)
