import functools
import re
import string
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tokencredit as tc
from tokencredit.phrases import PHRASES, split_phrases
from tokencredit.steps import (
    TokenPieces,
    find_answer,
    find_spans,
    split_newline,
    split_paragraph,
    split_sentence,
    token_offsets,
)


@functools.cache
def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that merges `words`, as GPT-2's and Qwen's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1)
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def sentencepiece(*words: str) -> PreTrainedTokenizerFast:
    """A BPE tokenizer whose pieces start with "\u2581" where a space was, as Llama 2's and Gemma's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(initial_alphabet=["\u2581", *string.printable], min_frequency=1)
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
    for sentences in (
        ["At first: 6 * 2 = 12. ", "That is 1.5 times 8! ", "Is it?\n", "The answer is "],
        ["1. Add 4 and 5.\n", " 2. Take 3.\n\n", "3) Is that\n", "all?\n", "Yes. "],
        [" No end"],
    ):
        text = "".join(sentences)
        starts = [0, *(start for start in split_sentence(text) if start < len(text))]
        assert [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)] == sentences


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


def parts_of(tokenizer, text, **options):
    """The text of each step, and of the answer."""
    r = tc.mark_spans(rollouts_of(tokenizer, text), tokenizer, **options)
    steps = [r.step_index == k for k in range(int(r.step_index.max()) + 1)]
    return [tokenizer.decode(r.completion_ids[mask]) for mask in [*steps, r.answer_mask]]


THOUGHT = "one. Wait no. Wait yes</think>two"
AT_WAIT = {"splitter": lambda text: [m.start() for m in re.finditer("Wait", text)]}


@pytest.mark.parametrize("tokenizer", [byte_level(" Wait"), sentencepiece(" Wait")], ids=["Ġ", "▁"])
def test_the_space_before_a_word_belongs_to_the_words_step(tokenizer):
    assert " Wait" in TokenPieces(tokenizer)(tokenizer(THOUGHT).input_ids)
    steps = [part.lstrip() for part in parts_of(tokenizer, THOUGHT, **AT_WAIT)]
    assert steps == ["one.", "Wait no.", "Wait yes</think>", "two"]


def test_a_word_that_begins_with_a_line_break_belongs_to_the_line_that_it_begins():
    tokenizer = byte_level("\nb", "\n\nThe")
    assert parts_of(tokenizer, "a\nb</think>\n\nThe 4", splitter="newline") == ["a", "\nb</think>", "\n\nThe 4"]


def test_spaces_alone_belong_to_the_step_before_them():
    """Whichever side of them the splitter cuts."""
    for cut in (1, 2, 3):
        options = {"splitter": lambda text, cut=cut: [cut]}
        assert parts_of(byte_level("x"), "a  b</think>4", **options) == ["a  ", "b</think>", "4"]


def test_a_word_that_begins_in_the_end_of_reasoning_belongs_to_the_answer():
    tokenizer = byte_level(" 4")
    assert parts_of(tokenizer, "2+2\nAnswer: 4", splitter="newline", end_of_reasoning="Answer: ")[-1] == " 4"


@pytest.mark.parametrize("words", [("x",), (" \\",), (" $\\",), ("$\\boxed{",), (" $\\boxed{4}",)], ids=repr)
@pytest.mark.parametrize("dollar", ["", "$"])
def test_the_whole_box_is_in_the_answer_however_it_is_tokenized(words, dollar):
    text = f"3? No.\nSo {dollar}\\boxed{{4}}{dollar}."
    *reasoning, answer = parts_of(byte_level(*words), text, splitter="newline")
    assert answer.lstrip(" $") == f"\\boxed{{4}}{dollar}."
    assert "".join([*reasoning, answer]) == text


@pytest.mark.parametrize("tokenizer", [byte_level("x"), byte_level(".\n"), byte_level("\n答")], ids=["a", "b", "c"])
@pytest.mark.parametrize("pattern", ["答案", "(?=答案)", r"\s*答案", r"(?i)答案: \d"])
def test_a_regular_expression_of_any_characters(tokenizer, pattern):
    """Characters that are spread over tokens are matched as well, and where the answer starts no space decides."""
    *reasoning, answer = parts_of(tokenizer, "答案? a.\nb.\n答案: 4", splitter="newline", answer=pattern)
    assert answer.lstrip() == "答案: 4"
    assert reasoning[-1].rstrip() == "b."


def test_a_regular_expression_decides_wherever_the_reasoning_ends():
    tokenizer = byte_level("x")
    options = {"splitter": "newline", "answer": "Answer:"}
    assert parts_of(tokenizer, "a\nAnswer: 3</think>\nAnswer: 4", **options)[-1] == "Answer: 4"
    assert parts_of(tokenizer, "a\nAnswer: 3</think>4", **options)[-1] == "Answer: 3</think>4"
    assert parts_of(tokenizer, "a\nb</think>4", **options) == [""]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "got ''"),
        (None, "got None"),
        (b"Answer", "got b'Answer'"),
        ("(", "is none"),
        (r"\d*", "matches the empty text"),
        ("$", "matches the empty text"),
        ("Auto", "nothing but itself"),
        ("end-of-reasoning", "nothing but itself"),
    ],
)
def test_answers_that_are_no_rule(answer, message):
    tokenizer = byte_level("x")
    with pytest.raises(ValueError, match=re.escape(message)):
        tc.mark_spans(rollouts_of(tokenizer, "a</think>c"), tokenizer, answer=answer)


@given(st.text(), st.sampled_from(["", "A. ", "\n"]))
@example("\u0131 need", "")
@example("\u017fo it is", "A. ")
def test_phrases_are_found_in_any_text(text, before):
    starts = split_phrases(before + text, min_length=0)
    assert starts == sorted(set(starts))
    assert all(0 <= start <= len(before + text) for start in starts)


def test_letters_that_only_ignoring_case_makes_equal_open_steps():
    """The long s of "\u017fo", and the dotless i of "\u0131 need"."""
    first, second = f"\u0131 need {LONG}", f"\u017fo {LONG}"
    assert steps(f"{LONG} {first}\n{second}", min_length=1)[1:] == [first, second]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (
            ["2+2=4"],
            {},
            "none of the 1 completions has an answer span, which was looked for behind '</think>', or else",
        ),
        (["2+2=4"], {"answer": "Answer:"}, "looked for at the last match of 'Answer:'"),
        (["\\boxed{4}"], {"answer": "end_of_reasoning"}, "looked for behind '</think>':"),
        (["a</think>b", "c"], {}, "all 1 completions with an answer is a single step under the splitter 'phrases'"),
    ],
)
def test_mark_spans_says_what_it_did_not_find(texts, options, message):
    tokenizer = byte_level("x")
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        marked = tc.mark_spans(rollouts_of(tokenizer, *texts), tokenizer, **options)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = find_spans(rollouts_of(tokenizer, *texts), tokenizer, **options)
        tc.mark_spans(rollouts_of(tokenizer, "a\nb</think>c", "d"), tokenizer, "newline")
    assert torch.equal(silent.answer_start, marked.answer_start)
    assert torch.equal(silent.step_index, marked.step_index)


@given(st.lists(st.sampled_from(["", " ", "\n\n", "a", " a", "a b ", "\n a"])))
def test_the_characters_that_decide_are_in_order_and_no_spaces(pieces):
    """So steps tile the reasoning, whatever the splitter says."""
    text, offsets = "".join(pieces), token_offsets(pieces)
    assert len(offsets) == len(pieces)
    assert offsets == sorted(offsets)
    first = text.find("a")
    assert not any(text[offset].isspace() for offset in offsets if offset >= first >= 0)
    whole = [[text[offset], piece.strip()[0]] for offset, piece in zip(offsets, pieces, strict=True) if piece.strip()]
    assert all(decides == letter for decides, letter in whole)
