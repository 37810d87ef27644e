"""Where the reasoning ends, and how it splits into steps.

A splitter is a function from text to the character offsets at which its steps start, so a user's own is one line:
`lambda text: [m.end() for m in re.finditer(";", text)]`. Steps tile the reasoning exactly, token for token: a token
belongs to the step in which its first character lies that is not a space, and a token of spaces alone to the step
before it (see `token_offsets`).
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import torch

from tokencredit.phrases import split_phrases
from tokencredit.rollouts import Rollouts, numbered
from tokencredit.signals.reward_layout import text_pieces

Splitter = Callable[[str], Iterable[int]]

BOXED = "\\boxed{"
ANSWER_RULES = ("auto", "end_of_reasoning")
"""What `answer` may be beside a regular expression; see `mark_spans`."""


def split_newline(text: str) -> list[int]:
    """A step a line; empty lines belong to the line before them."""
    return [m.end() for m in re.finditer(r"\n+", text)]


def split_paragraph(text: str) -> list[int]:
    """A step a paragraph: text between empty lines."""
    return [m.end() for m in re.finditer(r"\n[ \t]*(?:\n[ \t]*)+", text)]


def split_sentence(text: str) -> list[int]:
    """Each sentence or line is a step: text up to a full stop, a question mark or an exclamation mark before a space.

    The number of a list item, such as `2. ` at the start of a line, belongs to the sentence after it.
    """
    return [m.end() for m in _SENTENCE_END.finditer(text) if not m["item"]]


_SENTENCE_END = re.compile(r"(?P<item>^[ \t]*\d+[.)][ \t]+)|(?<=[.!?])(?:[^\S\n]*\n+|[^\S\n]+)|\n+", re.MULTILINE)

SPLITTERS: dict[str, Splitter] = {
    "phrases": split_phrases,
    "newline": split_newline,
    "paragraph": split_paragraph,
    "sentence": split_sentence,
}


def mark_spans(
    rollouts: Rollouts,
    tokenizer: Any,
    splitter: str | Splitter = "phrases",
    *,
    end_of_reasoning: str = "</think>",
    answer: str = "auto",
) -> Rollouts:
    """Fill `answer_start` and `step_index` by reading the completions.

    The reasoning runs up to and including the first `end_of_reasoning`, which may be one token or several, or share a
    token with what follows; the answer is every token after it. Models without a reasoning format never write it: with
    `answer="auto"`, the answer of such a completion starts at its last `\\boxed{`. A completion without an answer gets
    `answer_start` -1 and no steps. A UserWarning says when no completion has an answer, and when no reasoning has more
    than one step.

    Args:
        tokenizer: the transformers tokenizer of the completions.
        splitter: "phrases", "newline", "paragraph", "sentence", or a function from text to the offsets where steps
            start.
        answer: "auto"; "end_of_reasoning", for nothing else than the text behind it; or a regular expression, at whose
            last match the answer starts, wherever `end_of_reasoning` stands. A token that holds the end of the
            reasoning and the start of the `\\boxed{` or of the match belongs to the answer.

    Raises:
        ValueError: the splitter is unknown, it returns offsets outside the text, `end_of_reasoning` is empty, or
            `answer` is no regular expression, or one that matches the empty text.
    """
    marked = find_spans(rollouts, tokenizer, splitter, end_of_reasoning=end_of_reasoning, answer=answer)
    for sentence in span_notices(marked, splitter, end_of_reasoning=end_of_reasoning, answer=answer):
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return marked


def find_spans(
    rollouts: Rollouts,
    tokenizer: Any,
    splitter: str | Splitter = "phrases",
    *,
    end_of_reasoning: str = "</think>",
    answer: str = "auto",
) -> Rollouts:
    """`mark_spans` without its warnings, for callers that mark one batch after another."""
    if not isinstance(rollouts, Rollouts):
        raise ValueError(f"the rollouts come first: tc.mark_spans(rollouts, tokenizer); got {type(rollouts).__name__}")
    if not hasattr(tokenizer, "decode"):
        raise ValueError(
            "the tokenizer must be one of transformers, which AutoTokenizer.from_pretrained(...) loads: "
            f"tc.mark_spans(rollouts, tokenizer); got {type(tokenizer).__name__}"
        )
    check_span_options(splitter, end_of_reasoning, answer)
    split = SPLITTERS[splitter] if isinstance(splitter, str) else splitter
    pieces = TokenPieces(tokenizer)
    answer_start = torch.full((len(rollouts),), -1)
    step_index = torch.full(rollouts.completion_ids.shape, -1)
    for i, (ids, length) in enumerate(zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True)):
        texts = pieces.exact(ids[:length])
        start = find_answer(texts, end_of_reasoning, answer)
        if start >= 0:
            answer_start[i] = start
            step_index[i, :start] = torch.tensor(_step_numbers(texts[:start], split), dtype=torch.long)
    device = rollouts.completion_ids.device
    return replace(rollouts, answer_start=answer_start.to(device), step_index=step_index.to(device))


def check_span_options(splitter: str | Splitter, end_of_reasoning: str, answer: str) -> None:
    """Raise a ValueError where `mark_spans` does not take these options."""
    if not callable(splitter) and not (isinstance(splitter, str) and splitter in SPLITTERS):
        raise ValueError(f"unknown splitter {splitter!r}: use {', '.join(sorted(SPLITTERS))}, or a function")
    if not isinstance(end_of_reasoning, str) or not end_of_reasoning:
        raise ValueError(f"end_of_reasoning must be some text, such as </think>; got {end_of_reasoning!r}")
    check_answer(answer)


def check_answer(answer: str) -> None:
    """Raise a ValueError unless `answer` is one of the rules of `mark_spans`."""
    expected = "answer must be auto, end_of_reasoning, or a regular expression at whose last match the answer starts"
    if not isinstance(answer, str) or not answer:
        raise ValueError(f"{expected}; got {answer!r}")
    if answer not in ANSWER_RULES and answer.strip().lower().replace("-", "_") in ANSWER_RULES:
        raise ValueError(f"{expected}; got {answer!r}, which as a regular expression would match nothing but itself")
    try:
        empty = re.search(answer, "")
    except re.error as error:
        raise ValueError(f"{expected}; {answer!r} is none: {error}") from None
    if empty is not None:
        raise ValueError(f"{expected}; {answer!r} matches the empty text, so it would match everywhere")


def find_answer(pieces: Sequence[str], end_of_reasoning: str = "</think>", answer: str = "auto") -> int:
    """Index of the first token of the answer, by the rules of `mark_spans`, or -1 where there is none."""
    text = "".join(pieces)
    if answer not in ANSWER_RULES:
        return _holder(pieces, _last_match(text, answer))
    end = text.find(end_of_reasoning)
    if end >= 0:
        return _first_behind(pieces, end + len(end_of_reasoning))
    boxed = text.rfind(BOXED) if answer == "auto" else -1
    return -1 if boxed < 0 else _holder(pieces, boxed)


def span_notices(
    rollouts: Rollouts, splitter: str | Splitter, *, end_of_reasoning: str = "</think>", answer: str = "auto"
) -> list[str]:
    """What a user should know about rollouts that `find_spans` marked with these options."""
    has_answer, count = rollouts.has_answer, len(rollouts)
    if not count:
        return []
    if not has_answer.any():
        return [
            f"none of the {count} completions has an answer span, which was looked for "
            f"{_sought(end_of_reasoning, answer)}: methods that read the answer leave them uniform. If they end their "
            "reasoning with another text, set end_of_reasoning; if their answer starts otherwise, set answer to a "
            "regular expression at which it starts"
        ]
    assert rollouts.step_index is not None
    if (rollouts.step_index < 1).all():
        name = repr(splitter) if isinstance(splitter, str) else "the given function"
        return [
            f"the reasoning of all {int(has_answer.sum())} completions with an answer is a single step under the "
            f"splitter {name}, so credit cannot differ between steps: set splitter to another of "
            f"{', '.join(sorted(SPLITTERS))}, or to a function from text to the offsets where steps start"
        ]
    return []


def _sought(end_of_reasoning: str, answer: str) -> str:
    if answer not in ANSWER_RULES:
        return f"at the last match of {answer!r}"
    behind = f"behind {end_of_reasoning!r}"
    return behind if answer == "end_of_reasoning" else f"{behind}, or else at the last {BOXED}"


def _last_match(text: str, pattern: str) -> int:
    """Where the last match of a regular expression starts, spaces aside; the length of the text where there is none."""
    start = max((match.start() for match in re.finditer(pattern, text)), default=len(text))
    return len(text) - len(text[start:].lstrip())


def _first_behind(pieces: Sequence[str], offset: int) -> int:
    """The first token whose characters, or those that are no spaces, all lie at `offset` or behind it, or -1."""
    both = zip(_starts(pieces), token_offsets(pieces), strict=True)
    return next((t for t, (start, letter) in enumerate(both) if max(start, letter) >= offset), -1)


def _holder(pieces: Sequence[str], offset: int) -> int:
    """The token that holds a character, the first of them where it is spread over several; -1 behind the text."""
    token = next((t for t, end in enumerate(accumulate(map(len, pieces))) if end > offset), -1)
    while token > 0 and not pieces[token - 1]:
        token -= 1
    return token


def token_offsets(pieces: Sequence[str]) -> list[int]:
    """The character of the joined text that says which step each token belongs to.

    It is the token's first character that is not a space, since byte-level tokenizers write the space between two words
    at the start of the second. A token of spaces alone goes with the last such character before it: so it makes no
    difference whether the spaces between two steps are written at the end of one or at the start of the other. A token
    that adds nothing to the text, such as the first bytes of a character, goes with the next one that does.
    """
    offsets: list[int] = []
    end = last = 0
    for t, piece in enumerate(pieces):
        if piece:
            letters = piece.lstrip()
            offset = end + len(piece) - len(letters) if letters else last
            offsets += [offset] * (t + 1 - len(offsets))
            last = end + len(piece.rstrip()) - 1 if letters else last
            end += len(piece)
    return offsets + [last] * (len(pieces) - len(offsets))


class TokenPieces:
    """Token ids to the text each contributes. Joined, the pieces have the text's ASCII characters in order.

    A character whose bytes are spread over several tokens shows as replacement characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def exact(self, ids: list[int]) -> list[str]:
        """The pieces with characters that are spread over several tokens put together again.

        Such a character belongs to the last of its tokens, and the others add nothing.
        """
        pieces = self(ids)
        first = 0
        for broken, run in groupby(list(pieces), key=lambda piece: "\N{REPLACEMENT CHARACTER}" in piece):
            end = first + len(list(run))
            if broken:
                whole = text_pieces(self._tokenizer, ids[first:end], before=ids[max(0, first - 1) : first])
                # What never becomes a character, such as the first bytes of one at the end of a text, stays as it is.
                pieces[first:end] = whole if whole[-1] else pieces[first:end]
            first = end
        return pieces

    def __call__(self, ids: list[int]) -> list[str]:
        for token in set(ids) - self._known.keys():
            # Decoded behind itself: SentencePiece drops a leading space at the start of a text.
            once, twice = self._decode([token]), self._decode([token, token])
            self._known[token] = twice[len(once) :]
        return [self._known[token] for token in ids]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _step_numbers(pieces: Sequence[str], split: Splitter) -> list[int]:
    """The step of each token of a reasoning: 0, 1, ... without gaps."""
    text = "".join(pieces)
    starts = sorted(set(split(text)))
    if starts and not 0 <= starts[0] <= starts[-1] <= len(text):
        raise ValueError(f"the splitter returned offsets outside the text (0 to {len(text)}): {starts}")
    return numbered(bisect_right(starts, offset) for offset in token_offsets(pieces))


def _starts(pieces: Sequence[str]) -> list[int]:
    return [0, *accumulate(map(len, pieces))][: len(pieces)]
