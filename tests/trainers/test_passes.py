"""Credit from the passes that TRL makes anyway to score a generation batch: the same, and no pass more."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from tiny_run import (
    Keeping,
    arguments,
    credit_by_completion,
    expect_same_credit,
    passes,
    policy_that_answers,
    trained,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer

from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

TWO_UPDATES = {"steps_per_generation": 2, "gradient_accumulation_steps": 1}
"""A generation batch: TRL then makes a pass for the old log-probs."""
ONE_UPDATE = {"steps_per_generation": 1, "gradient_accumulation_steps": 1}
REFERENCE = {"beta": 0.1}
"""TRL then makes a pass over the reference, here the policy with its adapter off."""


class OnItsOwn(Keeping):
    """Makes all its passes itself."""

    def _scoring_passes(self):
        return None

    def _loss_shows_generator(self):
        return False


def lora(dropout=0.0):
    return LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)


def extra_passes(given, **kwargs):
    """Passes over the policy that credit adds to a run. No learning: every run generates alike."""
    given = {**given, "learning_rate": 0.0}
    plain = {name: value for name, value in given.items() if not name.startswith("credit_")}
    return passes(CreditGRPOTrainer, CreditGRPOConfig(**given), **kwargs) - passes(
        GRPOTrainer, GRPOConfig(**plain), **kwargs
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("atpo", TWO_UPDATES),
        ("rhythm", TWO_UPDATES),
        ("surprisal", TWO_UPDATES),
        ("rhythm", ONE_UPDATE),
        ("rhythm", {**TWO_UPDATES, "credit_kernels": "fused"}),
        ("divergence", {**TWO_UPDATES, **REFERENCE}),
        ("divergence", {**ONE_UPDATE, **REFERENCE}),
        ("arca", {**TWO_UPDATES, **REFERENCE}),
        ("arca", TWO_UPDATES),
        ("arca", {**ONE_UPDATE, **REFERENCE}),
    ],
)
def test_shared_passes_give_the_credit_of_passes_of_our_own(tmp_path, name, settings):
    """A batch of 16 in slices of 8; the policy is that of the first step, so both runs see the same completions."""
    params = {"horizon": (1, 4)} if name == "rhythm" else {}
    args = CreditGRPOConfig(
        **arguments(tmp_path, max_steps=1, **settings), credit_method=name, credit_params=params, credit_outcome="rloo"
    )
    shared, own = (trained(trainer, args, peft_config=lora()) for trainer in (Keeping, OnItsOwn))
    expect_same_credit(credit_by_completion(shared), credit_by_completion(own))


@pytest.mark.parametrize(
    ("name", "settings", "extra"),
    [
        ("atpo", TWO_UPDATES, 0),
        ("atpo", ONE_UPDATE, 0),
        ("atpo", {**ONE_UPDATE, "log_completions": True}, 1),
        ("surprisal", TWO_UPDATES, 0),
        ("surprisal", {"steps_per_generation": 2, "gradient_accumulation_steps": 2}, 0),
        ("surprisal", {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}, 0),
        ("divergence", {**TWO_UPDATES, **REFERENCE}, 0),
        ("divergence", TWO_UPDATES, 4),
        ("arca", {**TWO_UPDATES, **REFERENCE}, 0),
        ("arca", TWO_UPDATES, 2),
        ("arca", {**ONE_UPDATE, **REFERENCE}, 1),
        ("arca", ONE_UPDATE, 2),
        ("surprisal", {**TWO_UPDATES, "temperature": 0.7}, 2),
    ],
)
def test_passes_that_credit_adds(tmp_path, name, settings, extra):
    """One generation batch. Slices of 8: two where two updates share a batch of 16."""
    given = arguments(tmp_path, max_steps=1, credit_method=name, **settings)
    assert extra_passes(given, peft_config=lora()) == extra


@pytest.mark.parametrize(
    "settings",
    [
        TWO_UPDATES,
        ONE_UPDATE,
        {**TWO_UPDATES, **REFERENCE},
        {**ONE_UPDATE, **REFERENCE},
        {**ONE_UPDATE, **REFERENCE, "log_completions": True},
        {**ONE_UPDATE, **REFERENCE, "log_completions": True, "bf16": True},
    ],
)
def test_a_fresh_adapter_has_diverged_nowhere(tmp_path, settings):
    """Log-probs of policy and reference are equal to the last bit, so that no rounding passes for credit."""
    args = CreditGRPOConfig(**arguments(tmp_path, max_steps=1, **settings), credit_method="divergence")
    trainer = trained(Keeping, args, peft_config=LoraConfig(r=4, target_modules="all-linear"))
    assert trainer.state.log_history[0]["credit/gini"] == 0


def test_a_policy_with_dropout_is_read_without_it(tmp_path):
    given = arguments(tmp_path, max_steps=1, credit_method="atpo", **TWO_UPDATES)
    assert extra_passes(given, peft_config=lora(dropout=0.5)) == 2


def test_rounded_states_are_not_compared(tmp_path):
    """Under autocast TRL's passes are in bfloat16, where a small residual drowns."""
    given = arguments(tmp_path, max_steps=1, credit_method="arca", bf16=True, **TWO_UPDATES, **REFERENCE)
    assert extra_passes(given, peft_config=lora()) == 4


class OfText(Keeping):
    """Gives the scoring passes what processors of vision-language models add to prompts of text."""

    added = None

    def _get_per_token_logps_and_entropies(self, model, input_ids, *args, **kwargs):
        if self._scoring is not None and self.added:
            kwargs |= {self.added: torch.zeros_like(input_ids), "num_images": [0] * len(input_ids)}
        return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)


class OfTextMarked(OfText):
    added = "mm_token_type_ids"


def vision_language_policy():
    """A tiny vision-language model with the vocabulary of the tests' tokenizer."""
    tokenizer, plain = build_tokenizer(), policy_that_answers()
    size = len(tokenizer)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text = {**plain.config.to_dict(), "model_type": "qwen2_5_vl_text", "rope_parameters": rope, "head_dim": None}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **{name: size - 1 - i for i, name in enumerate(special)}
    )
    policy = Qwen2_5_VLForConditionalGeneration(config)
    policy.generation_config = plain.generation_config
    return policy


def test_prompts_of_text_for_a_vision_language_model_add_no_pass(tmp_path):
    """The pass that TRL makes is watched although it takes token types, and gives the same credit."""
    args = CreditGRPOConfig(**arguments(tmp_path, max_steps=1, credit_method="surprisal", **TWO_UPDATES))
    counts, credits = [], []
    for trainer_class in (OfText, OfTextMarked):
        policy, calls = vision_language_policy(), []
        policy.get_decoder().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        credits.append(credit_by_completion(trained(trainer_class, args, policy)))
        counts.append(len(calls))
    assert counts[0] == counts[1]
    expect_same_credit(*credits)
