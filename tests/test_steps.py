import functools
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tokencredit as tc
from tokencredit.phrases import PHRASES, split_phrases
from tokencredit.steps import TokenPieces, find_answer, split_newline, split_paragraph


@functools.cache
def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that merges `words`, as GPT-2's and Qwen's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1)
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def rollouts_of(tokenizer, *texts):
    ids = [tokenizer(text).input_ids for text in texts]
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    mask = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
    return tc.Rollouts(torch.ones(len(ids), 1).long(), torch.ones(len(ids), 1), padded, mask)


@pytest.mark.parametrize("words", [("</think>",), ("</", "think"), ("</think>\n\n",), ("x",)], ids=repr)
def test_the_end_of_reasoning_is_found_however_it_is_tokenized(words):
    tokenizer = byte_level(*words)
    text = "<think>a b</think>\n\nso 4"
    r = tc.mark_spans(rollouts_of(tokenizer, text), tokenizer, "newline")
    pieces = TokenPieces(tokenizer)(r.completion_ids[0].tolist())
    answer = r.answer_start.item()
    assert "".join(pieces) == text
    assert "</think>" in "".join(pieces[:answer])
    assert "</think>" not in "".join(pieces[: answer - 1])


def test_no_end_or_nothing_behind_it_leaves_the_completion_unmarked():
    tokenizer = byte_level("x")
    r = tc.mark_spans(rollouts_of(tokenizer, "<think>no end", "<think>a</think>", "</think>a"), tokenizer)
    assert r.answer_start.tolist() == [-1, -1, 8]
    assert (r.step_index[:2] == -1).all()


def test_only_the_first_end_counts():
    tokenizer = byte_level("</think>")
    r = tc.mark_spans(rollouts_of(tokenizer, "a</think>b</think>c"), tokenizer)
    assert r.answer_start.item() == 2


def test_a_character_spread_over_tokens_does_no_harm():
    tokenizer = byte_level("x")
    r = tc.mark_spans(rollouts_of(tokenizer, "<think>🙂é</think>ü"), tokenizer)
    assert r.answer_start.item() == len("<think>") + 4 + 2 + len("</think>")


def test_steps_tile_the_reasoning():
    tokenizer = byte_level("two", "\n\n")
    r = tc.mark_spans(rollouts_of(tokenizer, "one\ntwo\n\nthree</think>4"), tokenizer, "newline")
    answer = r.answer_start.item()
    steps = r.step_index[0]
    assert (steps[answer:] == -1).all()
    assert steps[:answer].tolist() == sorted(steps[:answer].tolist())
    pieces = TokenPieces(tokenizer)(r.completion_ids[0, :answer].tolist())
    texts = ["".join(p for p, k in zip(pieces, steps, strict=False) if k == step) for step in range(3)]
    assert texts == ["one\n", "two\n\n", "three</think>"]


def test_a_users_splitter():
    tokenizer = byte_level("x")
    r = tc.mark_spans(rollouts_of(tokenizer, "a;b;</think>c"), tokenizer, lambda text: [2, 4])
    assert r.step_index[0].tolist() == [0, 0, 1, 1] + [2] * 8 + [-1]


def test_splitters_cut_where_they_say():
    assert split_newline("a\nb\n\nc") == [2, 5]
    assert split_paragraph("a\nb\n \nc\n\n\nd") == [6, 10]


def test_bad_splitters():
    tokenizer = byte_level("x")
    r = rollouts_of(tokenizer, "a</think>c")
    with pytest.raises(ValueError, match="newline, paragraph, phrases"):
        tc.mark_spans(r, tokenizer, "sentences")
    with pytest.raises(ValueError, match="outside the text"):
        tc.mark_spans(r, tokenizer, lambda text: [99])


def test_find_answer_without_a_delimiter():
    assert find_answer(["a", "b"]) == -1
    assert find_answer([]) == -1


LONG = "This sentence is long enough to stand as a step of its own, whatever comes before it or after."


def steps(text, **kwargs):
    starts = [*split_phrases(text, **kwargs), len(text)]
    return [text[a:b].strip() for a, b in pairwise(starts)]


def test_a_phrase_opens_a_step_at_a_line_or_sentence_only():
    first, second = f"First, {LONG}", f"Wait, {LONG}"
    assert steps(f"{first} {second}") == [first, second]
    assert steps(f"{first}\n{second}") == [first, second]
    inside = f"First, {LONG[:-1]}, but wait, {LONG}"
    assert steps(inside) == [inside]
    assert steps(f"{first} Sorting {LONG}") == [f"{first} Sorting {LONG}"]  # "so" inside a word


def test_short_steps_merge_by_kind():
    first = f"First, {LONG}"
    assert steps(f"{first} Wait, no. Then {LONG}") == [first, f"Wait, no. Then {LONG}"]
    assert steps(f"{first} Now two. Next, {LONG}") == [first, f"Now two. Next, {LONG}"]
    assert steps(f"{first} Now two. Wait, {LONG}") == [f"{first} Now two.", f"Wait, {LONG}"]
    assert steps(f"{first} So 4. Next, {LONG}") == [f"{first} So 4.", f"Next, {LONG}"]


def test_what_stands_before_the_first_phrase_joins_the_first_step():
    assert steps(f"<think>\nWait, {LONG}") == [f"<think>\nWait, {LONG}"]
    assert steps("<think>\nFinal answer: 4") == ["<think>", "Final answer: 4"]


def test_nothing_merges_into_the_final_answer():
    first = f"First, {LONG}"
    assert steps(f"{first} Wait, no.\nFinal answer: 4") == [f"{first} Wait, no.", "Final answer: 4"]
    assert steps(f"{first}\nFinal answer: 4\nSo yes.") == [first, "Final answer: 4", "So yes."]


def test_the_phrases_are_data():
    own = {"doubt": ("moment",), "forward": ("go",)}
    assert steps(f"Go {LONG} Moment, {LONG} Wait, {LONG}", phrases=own) == [
        f"Go {LONG}",
        f"Moment, {LONG} Wait, {LONG}",
    ]
    assert set(PHRASES) == {"doubt", "forward", "summary", "final"}


def test_the_longest_phrase_decides():
    assert steps(f"Let me check {LONG} Let me check.", min_length=1) == [f"Let me check {LONG}", "Let me check."]
    forward = f"First, {LONG}"
    assert steps(f"{forward} Let me check. {LONG}")[0] == forward


@pytest.mark.parametrize(
    ("text", "answer", "start"),
    [
        ("2+2=4. So \\boxed{4}.", "auto", "\\boxed{4}."),
        ("\\boxed{3}? No. \\boxed{4}", "auto", "\\boxed{4}"),
        ("2+2=4</think>It is \\boxed{4}", "auto", "It is \\boxed{4}"),
        ("\\boxed{4}</think>", "auto", None),
        ("It is \\boxed{4}", "end_of_reasoning", None),
        ("Answer: 3? Answer: 4", r"Answer:", "Answer: 4"),
        ("no such text", r"Answer:", None),
    ],
)
def test_where_the_answer_starts(text, answer, start):
    expected = -1 if start is None else text.rindex(start)
    assert find_answer(list(text), answer=answer) == expected
