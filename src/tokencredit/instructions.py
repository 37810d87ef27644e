"""The instruction that is added to each question, such as where to write the answer.

The reward `math` reads the answer in a completion's last box. A model that is not asked for a box rarely writes one,
and its reward is then 0 even where it has solved the problem. So `math` has a default instruction, which `eval` and
`train` share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from tokencredit.data import load_problems

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The wording that the model cards of Qwen2.5-Math and DeepSeek-R1 recommend for mathematical problems."""

DEFAULTS = {"math": BOXED}
"""The default instruction of each reward that has one, by the reward's name."""

_ASKING = ("\\boxed", "####")
"""A question that holds one of these already says where the answer is to be written."""


@dataclass(frozen=True)
class Instruction:
    """The instruction that was used.

    Attributes:
        text: the instruction; empty where there is none.
        added: the number of questions that it was added to.
        default_of: the reward whose default it is; None where the user gave it.
        without_question: the number of conversations without a message of the user, which it cannot be added to.
    """

    text: str
    added: int
    default_of: str | None = None
    without_question: int = 0

    def sentence(self, problems: int, switch_off: str) -> str:
        """What is printed about it.

        Args:
            problems: the number of problems.
            switch_off: how the user adds no instruction, such as `--instruction ""`.
        """
        if not self.text:
            return "instruction: none"
        where = "every question" if self.added == problems else f"{self.added} of {problems} questions"
        if self.without_question:
            where += f"; {self.without_question} have no message of the user"
        if self.default_of is None:
            return f"instruction: {self.text!r}, added to {where}"
        others = problems - self.added - self.without_question
        rest = "; the others name \\boxed or #### themselves" if others else ""
        return (
            f"instruction: {self.text!r}, the default of the reward {self.default_of}, added to {where}{rest} "
            f"({switch_off} adds none)"
        )


def load_instructed(
    source: str, split: str, instruction: str | None, rewards: Sequence[str], **options: Any
) -> tuple[Dataset, Instruction]:
    """`load_problems`, with the user's instruction or the default one of the rewards.

    Args:
        instruction: what the user gave; None for the default, which is added to a question only where its prompt does
            not mention `\\boxed` or `####`.
        rewards: the names of the rewards.
        options: the other arguments of `load_problems`.
    """
    reward = next((name for name in rewards if name in DEFAULTS), None)
    problems = load_problems(source, split, instruction=instruction or "", **options)
    if instruction is not None or reward is None:
        if not instruction:
            return problems, Instruction("", 0)
        without = sum(not _has_question(prompt) for prompt in problems["prompt"])
        return problems, Instruction(instruction, len(problems) - without, without_question=without)
    text, prompts = DEFAULTS[reward], problems["prompt"]
    silent = [prompt for prompt in prompts if not asks_itself(prompt)]
    added = sum(map(_has_question, silent))
    instructed = [prompt if asks_itself(prompt) else _with(prompt, text) for prompt in prompts]
    problems = problems.remove_columns("prompt").add_column("prompt", instructed)
    return problems, Instruction(text if added else "", added, reward, len(silent) - added)


def _has_question(prompt: Any) -> bool:
    """Whether there is a text or a message of the user, which an instruction can be added to."""
    return isinstance(prompt, str) or any(message["role"] == "user" for message in prompt)


def asks_itself(prompt: Any) -> bool:
    """Whether a prompt, text or chat messages, says already where the answer is to be written."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return any(mark in text for text in texts for mark in _ASKING)


def _with(prompt: Any, text: str) -> Any:
    """The prompt with the text after the question: at the end of a text, or of the user's last message."""
    if isinstance(prompt, str):
        return prompt + text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    return [{**message, "content": message["content"] + text * (i == last)} for i, message in enumerate(prompt)]
