"""Splitting reasoning at transition phrases (AttnPO, arXiv 2602.09953, appendix on step splitting)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

DOUBT, FORWARD, SUMMARY, FINAL = "doubt", "forward", "summary", "final"
_OPENING = "opening"

PHRASES: Mapping[str, Sequence[str]] = {
    DOUBT: (
        "wait",
        "but",
        "however",
        "hold on",
        "hmm",
        "actually",
        "let me check",
        "let me verify",
        "let me double-check",
        "let me double check",
        "let me reconsider",
        "let me re-check",
        "let me recheck",
        "let me re-examine",
        "let me make sure",
        "alternatively",
        "another way",
        "another approach",
        "maybe",
        "perhaps",
        "on second thought",
    ),
    FORWARD: (
        "let me",
        "let's",
        "let us",
        "first",
        "firstly",
        "second",
        "secondly",
        "third",
        "next",
        "now",
        "then",
        "since",
        "because",
        "to",
        "we need",
        "i need",
        "okay",
        "ok",
        "alright",
        "finally",
        "given",
        "suppose",
        "consider",
        "step",
    ),
    SUMMARY: (
        "so",
        "therefore",
        "thus",
        "hence",
        "consequently",
        "putting it together",
        "putting it all together",
        "in summary",
        "in conclusion",
        "to summarize",
        "to sum up",
        "overall",
        "as a result",
    ),
    FINAL: ("final answer", "**final answer", "the final answer", "the answer is"),
}
"""Kind -> the phrases that open a step of that kind. Where several fit, the longest decides."""

_SENTENCE_START = re.compile(r"(?:\A|\n|(?<=[.!?])\s)\s*")


def split_phrases(text: str, phrases: Mapping[str, Sequence[str]] = PHRASES, min_length: int = 80) -> list[int]:
    """Offsets of the steps: a step starts at a line or sentence that opens with a transition phrase.

    Steps shorter than `min_length` characters merge: a doubt with what follows it (so does text before the first
    phrase, such as a lone `<think>`), a forward step with what follows
    unless that is a doubt (then with what precedes), a summary with what precedes; never into the final-answer step.
    Pass your own `phrases` with `functools.partial(split_phrases, phrases=...)`.
    """
    kinds = {phrase: kind for kind, group in phrases.items() for phrase in group if phrase}
    longest_first = sorted(kinds, key=len, reverse=True)
    # A group a phrase says which one matched; the matched text need not: "\u017fo" matches "so" when case is ignored.
    groups = "|".join(f"({re.escape(phrase)})" for phrase in longest_first) or "(?!)"
    opening = re.compile(rf"(?:{groups})(?!\w)", re.IGNORECASE)
    steps: list[tuple[int, str]] = [(0, _OPENING)]
    for start in _SENTENCE_START.finditer(text):
        if phrase := opening.match(text, start.end()):
            assert phrase.lastindex is not None
            kind = kinds[longest_first[phrase.lastindex - 1]]
            if start.end() == 0:
                steps[0] = (0, kind)
            else:
                steps.append((start.end(), kind))
    return [offset for offset, _ in _merge(steps, len(text), min_length)]


def _merge(steps: list[tuple[int, str]], end: int, min_length: int) -> list[tuple[int, str]]:
    steps = list(steps)
    i = 0
    while i < len(steps):
        offset, kind = steps[i]
        following = steps[i + 1] if i + 1 < len(steps) else None
        if kind == FINAL or (following[0] if following else end) - offset >= min_length:
            i += 1
            continue
        follows = following is not None and following[1] != FINAL
        doubted = following is not None and following[1] == DOUBT
        if follows and (kind in (_OPENING, DOUBT) or (kind == FORWARD and not doubted)):
            del steps[i + 1]
        elif i > 0 and steps[i - 1][1] != FINAL:
            del steps[i]
            i -= 1
        else:
            i += 1
    return steps
