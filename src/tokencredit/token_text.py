"""The text of tokens, for people to read.

A byte-level tokenizer may spread one character (an emoji, a Chinese character, an accented letter) over several tokens,
none of which is text on its own. For display the whole character stands at the last of its tokens, and the ones before
it are named as parts of it.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

from tokencredit.steps import TokenPieces

PART = "·"
"""Shown in place of the bytes of a character that a later token completes."""
PART_TITLE = "part of the next character"
_REPLACEMENT = "\ufffd"
_WINDOW = 64
"""Tokens that are decoded together, at most, where no token ends with a whole character: such bytes are no text."""


class TokenText(NamedTuple):
    """`texts`: of each token the characters that it completes. `partial`: positions of tokens that end within a
    character, in ascending order."""

    texts: list[str]
    partial: list[int]


class TokenTexts:
    """Token ids to their texts. Joined, the texts are the decoded text; bytes that are no character show as U+FFFD."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = TokenPieces(tokenizer)
        self._broken: dict[int, bool] = {}

    def __call__(self, ids: list[int]) -> TokenText:
        texts, partial = self._pieces(ids), []
        for broken, run in groupby(range(len(ids)), lambda t: self._is_broken(ids[t])):
            if broken:
                positions = list(run)
                whole = self._whole([ids[t] for t in positions])
                texts[positions[0] : positions[-1] + 1] = whole.texts
                partial += [positions[0] + t for t in whole.partial]
        return TokenText(texts, partial)

    def _is_broken(self, token: int) -> bool:
        if token not in self._broken:
            self._broken[token] = _REPLACEMENT in self._decode([token])
        return self._broken[token]

    def _whole(self, ids: list[int]) -> TokenText:
        """Texts of neighbours of which none is text on its own, each with what it adds to those before it."""
        texts: list[str] = []
        partial: list[int] = []
        start = shown = 0  # The first of the tokens decoded together, and how many of their characters are shown.
        for t in range(len(ids)):
            decoded = self._decode(ids[start : t + 1])
            whole = decoded.rstrip(_REPLACEMENT)
            if t == len(ids) - 1 or t - start >= _WINDOW:
                whole = decoded
            texts.append(whole[shown:])
            shown = max(shown, len(whole))
            if whole == decoded:
                start, shown = t + 1, 0
            else:
                partial.append(t)
        return TokenText(texts, partial)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
