"""Sampling from the policy, and accuracy with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from tokencredit.rollouts import Rollouts
from tokencredit.testbed.tasks import Problem, Task


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers among `count`, its 95 % Wilson interval, and the mean length in tokens."""

    value: float
    low: float
    high: float
    count: int
    tokens: float

    @classmethod
    def of(cls, correct: Sequence[bool], lengths: Sequence[int]) -> Accuracy:
        if not correct:
            raise ValueError("accuracy of no completions")
        test = binomtest(sum(correct), len(correct))
        interval = test.proportion_ci(confidence_level=0.95, method="wilson")
        return cls(
            value=sum(correct) / len(correct),
            low=float(interval.low),
            high=float(interval.high),
            count=len(correct),
            tokens=sum(lengths) / len(lengths),
        )


def sample(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 300,
) -> Rollouts:
    """One completion a prompt; greedy at temperature 0. Leaves torch's random state as it was."""
    chunks = [list(prompts[start : start + batch_size]) for start in range(0, len(prompts), batch_size)]
    encoded = [tokenizer(chunk, return_tensors="pt", padding=True) for chunk in chunks]
    return complete(
        policy,
        tokenizer,
        [(batch.input_ids, batch.attention_mask) for batch in encoded],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )


def complete(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[tuple[Tensor, Tensor]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Rollouts:
    """`sample` for prompts that are tokens already: batches of ids and mask, (B, P) each, left-padded.

    The policy gets them on its own device; the rollouts are on the device of the prompts.
    """
    parts = []
    was_training, device = policy.training, next(policy.parameters()).device
    policy.eval()
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for prompt_ids, prompt_mask in prompts:
                ids = policy.generate(  # type: ignore[operator]
                    input_ids=prompt_ids.to(device),
                    attention_mask=prompt_mask.long().to(device),
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    **sampling,
                )
                completion = ids[:, prompt_ids.shape[1] :].to(prompt_ids.device)
                mask = _until_eos(completion, tokenizer.eos_token_id)
                parts.append((prompt_ids, prompt_mask.bool(), completion, mask))
    finally:
        policy.train(was_training)
    return Rollouts(
        prompt_ids=_stack([p[0] for p in parts], left=True, fill=tokenizer.pad_token_id),
        prompt_mask=_stack([p[1] for p in parts], left=True),
        completion_ids=_stack([p[2] for p in parts], fill=tokenizer.pad_token_id),
        completion_mask=_stack([p[3] for p in parts]),
    )


def completion_texts(rollouts: Rollouts, tokenizer: Any) -> list[str]:
    """The completions as the verifier reads them, without the end of sequence.

    Other special tokens stay: a policy gets no reward for text that it only nearly wrote.
    """
    rows = zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)
    return [completion_text(ids[mask].tolist(), tokenizer) for ids, mask in rows]


def completion_text(ids: Sequence[int], tokenizer: Any) -> str:
    """`completion_texts` for one completion's token ids."""
    ended = len(ids) > 0 and ids[-1] == tokenizer.eos_token_id
    return tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)


def evaluate(
    policy: nn.Module,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Accuracy:
    """Accuracy of one completion a problem; greedy by default."""
    rollouts = sample(
        policy,
        tokenizer,
        [p.prompt for p in problems],
        max_new_tokens=task.max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    texts = completion_texts(rollouts, tokenizer)
    correct = [task.verify(problem, text) for problem, text in zip(problems, texts, strict=True)]
    return Accuracy.of(correct, rollouts.lengths.tolist())


def _until_eos(completion: Tensor, eos: int) -> Tensor:
    """(B, T) bool: the tokens up to and including the first end of sequence."""
    ended = (completion == eos).int().cumsum(1)
    return (ended == 0) | ((ended == 1) & (completion == eos))


def _stack(parts: Sequence[Tensor], *, left: bool = False, fill: int = 0) -> Tensor:
    """Concatenate batches of different widths, padding each to the widest."""
    width = max(p.shape[1] for p in parts)
    pads = [(width - p.shape[1], 0) if left else (0, width - p.shape[1]) for p in parts]
    return torch.cat([torch.nn.functional.pad(p, pad, value=fill) for p, pad in zip(parts, pads, strict=True)])
