"""Characters that several tokens share are shown whole, at the last of these tokens."""

from __future__ import annotations

import pytest
import torch
from byte_tokenizers import byte_fallback, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

import tokencredit as tc
from tokencredit.credit import additive
from tokencredit.token_text import TokenTexts

TEXTS = ["a🙂b", "数学, 数学", "é à la carte", "🙂🙂🙂", "👨‍👩‍👧 family", "plain", " 🙂", ""]


def shown(tokenizer, text):
    return TokenTexts(tokenizer)(tokenizer(text, add_special_tokens=False).input_ids)


# The second one merges a space with the start of an emoji, and the end of 数 with the start of 学.
TOKENIZERS = [byte_level(), byte_level(("Ġ", "ð"), ("°", "å"), ("æ", "ķ")), byte_fallback()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_text(tokenizer, text):
    texts, partial = shown(tokenizer, text)
    assert "".join(texts) == text
    assert "\ufffd" not in "".join(texts)
    assert all(text or t in partial for t, text in enumerate(texts))


@settings(max_examples=60)
@given(st.text(max_size=40), st.integers(0, 80), st.sampled_from(TOKENIZERS[:2]))
def test_of_any_bytes_they_are_what_the_tokenizer_decodes(text, cut, tokenizer):
    ids = tokenizer(text, add_special_tokens=False).input_ids[cut:]
    assert "".join(TokenTexts(tokenizer)(ids).texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_character_stands_at_its_last_token():
    assert shown(byte_level(), "a🙂é") == (["a", "", "", "", "🙂", "", "é"], [1, 2, 3, 5])
    assert shown(byte_fallback(), "a数b") == (["a", "", "", "数", "b"], [1, 2])


def test_a_token_may_end_one_character_and_begin_the_next():
    assert shown(byte_level(("°", "å")), "数学a") == (["", "", "数", "", "学", "a"], [0, 1, 2, 3])


def test_a_character_that_is_never_completed_shows_that_it_is_broken():
    ids = byte_level()("a🙂").input_ids[:-1]
    assert TokenTexts(byte_level())(ids) == (["a", "", "", "\ufffd"], [1, 2])


def test_a_notebook_shows_it_whole():
    tokenizer = byte_level()
    ids = torch.tensor([tokenizer("a🙂").input_ids])
    rollouts = tc.Rollouts(ids[:, :1], torch.ones(1, 1), ids, torch.ones_like(ids))
    html = tc.show(additive(rollouts, torch.ones(1), torch.zeros(1, 5)), rollouts, tokenizer)._repr_html_()
    assert "\ufffd" not in html
    assert "🙂</span>" in html
    assert html.count(">·</span>") == html.count(", part of the next character") == 3
