"""Prompts as a model takes them: text as it is, chat messages through the tokenizer's template."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

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
        raise ValueError(f"the prompt {prompt!r:.60} has no token")
    return ids


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
            "the prompts are chat messages, but the tokenizer has no chat template: take an instruction-tuned model, "
            "set tokenizer.chat_template, or give prompts as text"
        )
    text = _rendered(messages, tokenizer, add_generation_prompt=True, **template)
    if text == _rendered(messages, tokenizer, add_generation_prompt=False, **template):
        answered = _rendered([*messages, {"role": "assistant", "content": _MARK}], tokenizer, **template)
        # Some templates, such as Mistral's, end the user's turn with all that the assistant needs.
        between = answered.removeprefix(text).partition(_MARK)[0]
        if not answered.startswith(text) or between.strip():
            raise ValueError(
                "the tokenizer's chat template has no generation prompt (it ignores add_generation_prompt), so the "
                "model would not know that it is its turn: set a chat template that has one"
            )
    return text


def _rendered(messages: Any, tokenizer: Any, **template: Any) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **template)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the prompt {messages!r:.80}: {error}") from None
