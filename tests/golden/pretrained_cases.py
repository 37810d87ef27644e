"""Credit of labelled completions under a pretrained model, for every method and its options. It is not kept here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import MADE_OF_IT, OF_AN_ADAPTER, OF_THREE_LAYERS, READ_FROM_A_MODEL, ROUTES, Case, fields_of
from peft import LoraConfig, get_peft_model
from tiny_models import fill
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import tokencredit as tc

TRACES = Path(__file__).parents[1] / "real" / "data" / "traces.jsonl"
ESTIMATORS = [Case("p2t", {"estimator": e, "null": "mean"}, reward="function") for e in ("taylor", "integrated")]


def recorded(folder: str | None, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(key, value) of all fields of all cases; a key is "SmolLM2 | case | field".

    Args:
        folder: of the model and its tokenizer; by default the converted SmolLM2-135M-Instruct.
    """
    if folder is None:
        from tokencredit.pretrained import smollm2

        folder = str(smollm2())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), adapter)
    fill(((name, p) for name, p in policy.named_parameters() if "lora_" in name), seed=1, scale=0.05)
    policy = policy.to(dtype).eval()
    embeddings = policy.get_input_embeddings()
    direction = 5 * embeddings.weight[1000].detach()
    reward = tc.RewardModel(lambda embedded: (embedded @ direction).tanh().sum(1), embeddings=embeddings)
    batch = rollouts_of(tokenizer)
    cases = [*READ_FROM_A_MODEL, *ROUTES, *MADE_OF_IT, OF_THREE_LAYERS, *OF_AN_ADAPTER, *ESTIMATORS]
    for case in (case for case in cases if not case.reference):
        given = {"reward_model": reward} if case.reward else {}
        for name, value in fields_of(case, policy, batch, **given).items():
            yield f"SmolLM2 | {case.name} | {name}", value.contiguous()
        print(case.name, file=sys.stderr, flush=True)


def rollouts_of(tokenizer) -> tc.Rollouts:
    """A right and a wrong completion of each of two problems; a step is a sentence."""
    rows = [json.loads(line) for line in TRACES.read_text("utf-8").splitlines()[:4]]
    prompts = [tokenizer.encode(row["prompt"], add_special_tokens=False) for row in rows]
    texts = ["".join(row["steps"]) + row["answer"] for row in rows]
    completions = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    width, length = max(map(len, prompts)), max(map(len, completions))
    correct = torch.tensor([row["correct"] for row in rows])
    rollouts = tc.Rollouts(
        prompt_ids=torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        prompt_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        completion_ids=torch.tensor([ids + [0] * (length - len(ids)) for ids in completions]),
        completion_mask=torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in completions]),
        rewards=correct.float(),
        group=torch.tensor([0, 0, 1, 1]),
        correct=correct,
    )
    return tc.mark_spans(rollouts, tokenizer, sentences, answer="The answer is")


def sentences(text: str) -> list[int]:
    return [match.end() for match in re.finditer(r"\.(?= )", text)]
