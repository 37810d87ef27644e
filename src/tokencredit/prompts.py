"""Prompts as a model takes them: text as it is, chat messages through the tokenizer's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

_CHUNK = 1000
_MARK = "tokencredit"
"""What the assistant says where it is tried out whether it would be its turn."""


def encode_prompt(prompt: Any, tokenizer: Any) -> list[int]:
    """The ids that a model is to continue.

    Raises:
        ValueError: `render_chat` refuses the messages, or there is no token.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt).input_ids)
    else:
        ids = list(tokenizer(render_chat(prompt, tokenizer), add_special_tokens=False).input_ids)
    if not ids:
        raise ValueError(_tokenless("prompt", prompt))
    return ids


def encode_prompts(prompts: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """`encode_prompt` of each row; an error names the row."""
    encoded = []
    for row, prompt in enumerate(prompts):
        try:
            encoded.append(encode_prompt(prompt, tokenizer))
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
    return encoded


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a completion's text.

    Raises:
        ValueError: there is none.
    """
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if not ids:
        raise ValueError(f"the completion {text!r:.60} has no token: the tokenizer reads nothing in it")
    return ids


def check_texts(prompts: Sequence[Any], tokenizer: Any) -> None:
    """Raise a ValueError where a prompt that is text has no token; chat messages have those of the template."""
    rows = [row for row, prompt in enumerate(prompts) if isinstance(prompt, str)]
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for row, ids in zip(chunk, tokenizer([prompts[row] for row in chunk]).input_ids, strict=True):
            if not ids:
                raise ValueError(f"row {row}: {_tokenless('prompt', prompts[row])}")


def _tokenless(role: str, text: Any) -> str:
    return f"the {role} {text!r:.60} has no token under this tokenizer: correct or drop it"


def render_chat(messages: Any, tokenizer: Any, **template: Any) -> str:
    """Chat messages as text that ends where the assistant is to speak.

    Args:
        template: `chat_template` and whatever else the template takes.

    Raises:
        ValueError: the tokenizer has no chat template, or one that does not open the assistant's turn or that refuses
            these messages.
    """
    if not (template.get("chat_template") or tokenizer.chat_template):
        raise ValueError(
            "the prompts are chat messages (text prompts become such with --chat), but the tokenizer has no chat "
            "template: take an instruction-tuned model, set tokenizer.chat_template, or give prompts as text"
        )
    text = rendered(messages, tokenizer, add_generation_prompt=True, **template)
    if text == rendered(messages, tokenizer, add_generation_prompt=False, **template):
        answered = rendered([*messages, {"role": "assistant", "content": _MARK}], tokenizer, **template)
        # Some templates, such as Mistral's, end the user's turn with all that the assistant needs.
        between = answered.removeprefix(text).partition(_MARK)[0]
        if not answered.startswith(text) or between.strip():
            raise ValueError(
                "the tokenizer's chat template has no generation prompt (it ignores add_generation_prompt), so the "
                "model would not know that it is its turn: set a chat template that has one"
            )
    return text


def rendered(messages: Any, tokenizer: Any, **template: Any) -> str:
    """
    Raises:
        ValueError: the template refuses these messages.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **template)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the prompt {messages!r:.80}: {error}") from None
