"""The settings of `tokencredit train` that are neither the trainer's nor TRL's: problems, rewards, the reward model.

They stand apart from `trl_script`, which imports the trainer, so that `tokencredit train --help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainArguments:
    """What is trained on and rewarded, alongside `CreditGRPOConfig` and TRL's `ModelConfig`."""

    data: str = field(
        default="", metadata={"help": "The problems: a file, or a dataset of the hub as NAME or NAME:CONFIGURATION."}
    )
    data_split: str = field(default="train", metadata={"help": "The split of a dataset of the hub."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "The column of the prompts; by default prompt, question or problem."}
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "The column of the answers; by default answer, verl's ground truth or solution."},
    )
    instruction: str | None = field(
        default=None,
        metadata={
            "help": "Text that is added to each question. By default the reward math asks for the answer in \\boxed{} "
            "where a question does not ask for it already, and other rewards add nothing; an empty text adds nothing."
        },
    )
    chat: bool = field(
        default=False, metadata={"help": "Make text prompts a user's message, for models with a chat template."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "How many problems are used, the first ones; by default all."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["math"],
        metadata={
            "help": "Reward functions: math, format, chain, countdown, length_penalty, or package.module:function, "
            "which is imported and so executed. TRL's reward_weights weighs them."
        },
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "The model that the method p2t reads: a sequence classifier or a process reward model."},
    )
    reward_separator: str | None = field(
        default=None, metadata={"help": "The text that a process reward model expects after each step."}
    )
