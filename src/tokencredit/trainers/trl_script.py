"""A training run from arguments: model and data by name, rewards by name, credit by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config, get_quantization_config

from tokencredit import rewards
from tokencredit.checkpoints import load_complete
from tokencredit.data import load_problems
from tokencredit.signals import RewardModel
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer


@dataclass
class TrainArguments:
    """What is trained on and rewarded, beside `CreditGRPOConfig` and TRL's `ModelConfig`."""

    data: str = field(default="", metadata={"help": "Problems: a hub name, or a .parquet, .jsonl or .json file."})
    data_split: str = field(default="train", metadata={"help": "The split of a hub dataset."})
    prompt_column: str | None = field(default=None, metadata={"help": "Where prompts are; found by itself if usual."})
    answer_column: str | None = field(default=None, metadata={"help": "Where answers are; found by itself if usual."})
    instruction: str = field(
        default="", metadata={"help": "Text behind each question, such as where to write the answer."}
    )
    chat: bool = field(
        default=False, metadata={"help": "Make text prompts a user's message, for models with a chat template."}
    )
    limit: int | None = field(default=None, metadata={"help": "How many problems to use; all by default."})
    rewards: list[str] = field(
        default_factory=lambda: ["math"],
        metadata={"help": "Reward functions by name, or package.module:function; reward_weights weighs them."},
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "What p2t reads: a sequence classifier or a process reward model."}
    )
    reward_separator: str | None = field(
        default=None, metadata={"help": "What the process reward model expects behind each step."}
    )


def build_trainer(script: TrainArguments, args: CreditGRPOConfig, model: ModelConfig) -> CreditGRPOTrainer:
    """Everything that a run needs, loaded and checked, ready for `train()`.

    Raises:
        ValueError: no model or data is named, the model cannot be loaded, a reward is unknown, the data lacks a column,
            or the credit method cannot run so.
    """
    if not model.model_name_or_path or not script.data:
        raise ValueError("name a model (model_name_or_path) and problems to train on (data)")
    _check_model(model.model_name_or_path, model)
    functions = rewards.load(script.rewards)
    problems = load_problems(
        script.data,
        script.data_split,
        prompt_column=script.prompt_column,
        answer_column=script.answer_column,
        instruction=script.instruction,
        chat=script.chat,
        limit=script.limit,
    )
    for function in functions:
        rewards.check(function, problems[:])
    init: dict[str, Any] = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **_mapping(args.model_init_kwargs),
    }
    args.model_init_kwargs = {name: value for name, value in init.items() if value is not None}
    needs_reward_model = bool(args.build_credit_method().needs.reward)
    reward_model = _reward_model(script, model.model_name_or_path) if needs_reward_model else None
    try:
        return CreditGRPOTrainer(
            model.model_name_or_path,
            functions,
            args=args,
            train_dataset=problems,
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
            reward_model=reward_model,
            data_name=f"{script.data}, {len(problems)} problems",
        )
    except OSError as error:
        raise ValueError(f"{model.model_name_or_path} cannot be trained: {error}") from None


def _check_model(name: str, model: ModelConfig) -> None:
    """Raise a ValueError where there is no such model, or its checkpoint lacks weights, before data is read.

    TRL loads the policy itself and hides transformers' report of missing weights. A model on the meta device has the
    same report and needs neither time nor memory.
    """
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():
        raise ValueError(f"there is no folder {name} to load the model (model_name_or_path) from")
    try:
        config = AutoConfig.from_pretrained(name, revision=model.model_revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"the model {name} cannot be loaded: {error}") from None
    kind = getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "__name__", None)
    # Other classes, such as those of vision-language models, and quantized weights are left to TRL.
    if kind in (config.architectures or []) and not hasattr(config, "quantization_config"):
        load_complete(AutoModelForCausalLM, name, revision=model.model_revision, device_map="meta")


def _mapping(given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"model_init_kwargs must be a JSON object; got {given!r}")
    return given or {}


def _reward_model(script: TrainArguments, policy: str) -> RewardModel | None:
    if script.reward_model is None:
        return None
    return RewardModel.from_pretrained(
        script.reward_model, AutoTokenizer.from_pretrained(policy), script.reward_separator
    )
