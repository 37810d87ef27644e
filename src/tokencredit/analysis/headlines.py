"""What a list of traces calls each of them: the user's message, without the chat template around it."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError

_MOST_LETTERS = 200
_MESSAGES = ("firstquestion", "firstanswer", "secondquestion")


class Headlines:
    """The last message of the user in a prompt; of a prompt that is no chat, its text.

    A chat prompt is known only as tokens. What the template writes around a message is found by rendering messages
    that are known, so that no format needs to be known by name.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._turn = _user_turn(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {token for token, content in added.items() if content.special}
        self._special_texts = [added[token].content for token in self._special]

    def __call__(self, ids: list[int], prompt: str, completion: str) -> str:
        """
        Args:
            ids, prompt: the prompt, as tokens and as text.
        """
        message = self._message(prompt)
        if message is None and not self._is_chat(ids):
            message = prompt
            for text in self._special_texts:
                message = message.replace(text, " ")
        return " ".join((message or "").split())[:_MOST_LETTERS] or " ".join(completion.split())[:_MOST_LETTERS]

    def _message(self, prompt: str) -> str | None:
        if self._turn is None:
            return None
        before, after = self._turn
        starts = [match.end() for match in before.finditer(prompt)]
        return re.split(after, prompt[starts[-1] :], maxsplit=1)[0] if starts else None

    def _is_chat(self, ids: list[int]) -> bool:
        """Special tokens after the first text divide a prompt into turns."""
        text_starts = next((t for t, token in enumerate(ids) if token not in self._special), len(ids))
        return any(token in self._special for token in ids[text_starts:])


def _user_turn(tokenizer: Any) -> tuple[re.Pattern[str], re.Pattern[str]] | None:
    """What stands before and after a message of the user in every turn; None without a chat template that tells."""
    question, answer, second = _MESSAGES
    try:
        one = _rendered(tokenizer, question)
        two = _rendered(tokenizer, question, answer, second)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # There is no template, or it refuses these messages; only a label is at stake.
        return None
    ends = [one.partition(question), two.partition(answer)[2].partition(second)]
    before = _common_start([end[0][::-1] for end in ends])[::-1]
    after = _common_start([*(end[2] for end in ends), two.partition(question)[2]])
    return (_spaced(before), _spaced(after)) if before.strip() and after.strip() else None


def _rendered(tokenizer: Any, *messages: str) -> str:
    roles = ("user", "assistant", "user")
    chat = [{"role": role, "content": content} for role, content in zip(roles, messages, strict=False)]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def _spaced(text: str) -> re.Pattern[str]:
    """The text, whatever space stands in it: a tokenizer may decode another than was encoded."""
    return re.compile(r"\s*".join(map(re.escape, text.split())))


def _common_start(texts: list[str]) -> str:
    shortest = min(map(len, texts))
    differs = (i for i in range(shortest) if len({text[i] for text in texts}) > 1)
    return texts[0][: next(differs, shortest)]
