"""A training run from arguments: model and data by name, rewards by name, credit by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config, get_quantization_config

from tokencredit import rewards
from tokencredit.checkpoints import load_complete
from tokencredit.instructions import load_instructed
from tokencredit.signals import RewardModel
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer
from tokencredit.trainers.trl_arguments import TrainArguments

__all__ = ["TrainArguments", "build_trainer"]


def build_trainer(
    script: TrainArguments,
    args: CreditGRPOConfig,
    model: ModelConfig,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> CreditGRPOTrainer:
    """Everything that a run needs, loaded and checked, ready for `train()`.

    Args:
        report: called with a line that says which instruction was added to the questions.

    Raises:
        ValueError: no model or data is named, the model cannot be loaded, a reward is unknown, the data lacks a column,
            or the credit method cannot run so.
    """
    if not model.model_name_or_path or not script.data:
        raise ValueError("name a model (model_name_or_path) and problems to train on (data)")
    _check_model(model.model_name_or_path, model)
    functions = rewards.load(script.rewards)
    problems, instruction = load_instructed(
        script.data,
        script.data_split,
        script.instruction,
        script.rewards,
        prompt_column=script.prompt_column,
        answer_column=script.answer_column,
        chat=script.chat,
        limit=script.limit,
    )
    report(instruction.sentence(len(problems), 'instruction: ""'))
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
            data_name=f"{script.data}, {len(problems)} problems"
            + (f', with the instruction "{instruction.text.strip()}"' if instruction.text else ""),
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
