"""Chat messages as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokencredit.prompts import render_chat, rendered

EXAMPLE = '[{"role": "user", "content": "..."}]'
_MARK = "tokencredit"
"""What the assistant says where it is tried out what a template adds behind it."""
BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Where a message holds a part of what the model wrote apart from `content`."""


def chat_messages(value: Any) -> list[dict[str, Any]]:
    """Messages whose content is text; fields that are null, as tables fill them in, are left out.

    Raises:
        ValueError: these are no chat messages, or the content of one is not text alone.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"expected chat messages, {EXAMPLE}; got {value!r:.60}")
    return [_message(number, message) for number, message in enumerate(value, start=1)]


def _message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise ValueError(f"expected chat messages, {EXAMPLE}; message {number} is {message!r:.60}")
    if message.get("content") is None:
        raise ValueError(f"expected chat messages, {EXAMPLE}; message {number} has no content")
    known = {name: value for name, value in message.items() if value is not None}
    return known | {"content": _content(number, message["content"])}


def _content(number: int, content: Any) -> str:
    """Text, or parts that are all text, joined as they are."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise ValueError(f"the content of message {number} must be text; it holds {kind or repr(part):.40}")
    if not parts:
        raise ValueError(f"the content of message {number} must be text; got {content!r:.60}")
    return "".join(part["text"] for part in parts)


def as_prompt(value: Any, *, chat: bool = False) -> str | list[dict[str, Any]]:
    """A prompt, text or chat messages.

    Args:
        chat: make text a user's message.

    Raises:
        ValueError: it is neither of the two, or empty.
    """
    if not isinstance(value, str):
        messages = chat_messages(value)
        if not any(message["content"].strip() for message in messages):
            raise ValueError("expected a prompt that says something; its chat messages are all empty")
        return messages
    if not value:
        raise ValueError("expected a prompt, text or chat messages; it is empty")
    return [{"role": "user", "content": value}] if chat else value


def completion_text(value: Any) -> str:
    """The text of a completion, which may be one message of the assistant.

    Raises:
        ValueError: it is neither, it is empty, or the message says something besides its content.
    """
    if isinstance(value, str):
        text = value
    else:
        messages = chat_messages(value)
        roles = ", ".join(message["role"] for message in messages)
        if len(messages) > 1 or roles != "assistant":
            raise ValueError(
                f"the completion must be one message of the assistant; it has {len(messages)} ({roles}). Completions "
                "with several turns, as with tools, cannot be read"
            )
        if beside := [name for name in BESIDE_CONTENT if messages[0].get(name)]:
            raise ValueError(f"the completion's message has {beside[0]} beside its content, which cannot be read")
        text = messages[0]["content"]
    if not text:
        raise ValueError("expected a completion, text or a message of the assistant; it is empty")
    return text


def end_of_turn(prompt: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The token with which the assistant ends its turn, by the chat template; none where the template adds none.

    What follows that token, such as a line break, is written by the template and not by the model.

    Raises:
        ValueError: the tokenizer has no chat template, or it refuses the messages.
    """
    render_chat(prompt, tokenizer)
    text = rendered([*prompt, {"role": "assistant", "content": _MARK}], tokenizer)
    behind = text.rpartition(_MARK)[2]
    first = list(tokenizer(behind, add_special_tokens=False).input_ids)[:1] if behind else []
    return first if first and first[0] in _special_ids(tokenizer) else []


def _special_ids(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
