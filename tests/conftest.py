"""Small real models, and rollouts of every shape that matters."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny, so more threads would only wait for each other, and they would do so without end where the tests
# run in several processes. Processes that a test starts inherit this; PyTorch reads it when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import signal

import numpy as np
import pytest
import torch

# Triton reads this when it is first imported, which libraries do on their own: kernels run without a GPU too.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from hypothesis import settings
from peft import LoraConfig, get_peft_model
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
)

import tokencredit as tc

# A shell that runs the tests in the background has them ignore Ctrl-C, and so do the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing is timed: a busy machine must not fail a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

torch.set_num_threads(1)  # also where the variable says something else

VOCABULARY = 64


def tiny_config(**config) -> Qwen3Config:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return Qwen3Config(**{**sizes, **config})


def tiny_policy(seed: int = 0, **config) -> Qwen3ForCausalLM:
    """A random Qwen3 with grouped-query attention, in float32."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(tiny_config(**config)).eval()


def tiny_reward_model(seed: int = 7, *, process: bool = False, **config):
    """A random sequence classifier with one label; or a process reward model, a token classifier with two."""
    torch.manual_seed(seed)
    if process:
        return Qwen3ForTokenClassification(tiny_config(num_labels=2, **config)).eval()
    return Qwen3ForSequenceClassification(tiny_config(num_labels=1, **config)).eval()


def tiny_lora_policy(seed: int = 0, *, trained: bool = True):
    """The same with a LoRA adapter; `trained` moves it away from its start, where it changes nothing."""
    policy = get_peft_model(tiny_policy(seed), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    if trained:
        torch.manual_seed(seed + 1)
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3)
    return policy.eval()


def make_rollouts(
    lengths: tuple[int, ...] = (12, 7, 9, 1),
    prompts: tuple[int, ...] = (5, 3, 4, 2),
    answers: tuple[int, ...] = (8, 4, -1, -1),
    seed: int = 0,
    **fields,
) -> tc.Rollouts:
    """Random tokens; `answers` is where each completion's answer starts."""
    rng = torch.Generator().manual_seed(seed)
    batch, width, length = len(lengths), max(prompts), max(*lengths, 1)
    position = torch.arange(length)
    mask = position < torch.tensor(lengths)[:, None]
    start = torch.tensor(answers)
    reasoning = (position < start[:, None]) & mask
    made = {
        "prompt_ids": torch.randint(1, VOCABULARY, (batch, width), generator=rng),
        "prompt_mask": torch.arange(width) >= width - torch.tensor(prompts)[:, None],
        "completion_ids": torch.randint(1, VOCABULARY, (batch, length), generator=rng),
        "completion_mask": mask,
        "rewards": torch.arange(batch).float() % 2,
        "group": torch.arange(batch) // 2,
        "correct": torch.arange(batch) % 2 == 1,
        "answer_start": start,
        "step_index": torch.where(reasoning, position // 3, -1),
    }
    return tc.Rollouts(**{**made, **fields})


@pytest.fixture(autouse=True)
def same_seeds():
    """The same random numbers in every test, whichever tests the same process has run before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def policy():
    return tiny_policy()


@pytest.fixture
def rollouts() -> tc.Rollouts:
    return make_rollouts()
