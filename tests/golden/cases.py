"""What the golden values are of: rollouts, methods with their options, and the credit that public functions give.

Only public names are used (`tc.Rollouts`, `tc.method`, `tc.assign`, `tc.RewardModel`), so that the cases hold whatever
becomes of the modules behind them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tiny_models import (
    CHARACTERS,
    LINES,
    LORA,
    NAMES,
    SPECIAL,
    SYMBOLS,
    VOCABULARY,
    build,
    reference_policy,
    reward_classifier,
    uniform,
    word_tokenizer,
)
from torch import Tensor, nn

import tokencredit as tc

HEADS = ((1, 0), (3, 1))
OTHER_HEADS = ((1, 2), (1, 3), (3, 3))
ATTNPO = {"heads": HEADS, "beta": 0.1}
"""With the default beta of 2 the baseline is so low, for answers as short as these, that no step is attenuated."""
FIXED = {"local_heads": HEADS, "global_heads": OTHER_HEADS}
"""Layers 1 and 3 are those that have attention in every model."""


@dataclass(frozen=True)
class Case:
    """One call of `tc.assign`.

    Args:
        params: of the method. options: further arguments of `tc.assign`.
        reward: the name of a reward model, see `reward_models`.
        reference: compare with another model than the policy without its adapter.
    """

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    reward: str | None = None
    reference: bool = False

    @property
    def name(self) -> str:
        """Unique among the cases of a model."""
        given = {**self.params, **self.options}
        if self.reward is not None:
            given["reward"] = self.reward
        if self.reference:
            given["reference"] = "model"
        return self.method + "".join(f" {key}={value}" for key, value in given.items())


def with_each(method: str, options: dict[str, list[Any]], **always: Any) -> list[Case]:
    """The method with its defaults, then with each other value of each option, one at a time.

    Args:
        always: parameters that the method cannot do without.
    """
    changed = [{key: value} for key, values in options.items() for value in values]
    return [Case(method, {**always, **change}) for change in [{}, *changed]]


# Options that change what is read from the model, so that every architecture has them.
READ_FROM_A_MODEL = [
    Case("entropy"),
    Case("entropy_selection"),
    Case("entropy_reduction"),
    Case("surprisal"),
    *with_each("atpo", {"layers": [2]}),
    *with_each(
        "rhythm",
        {
            "strategy": ["local", "global"],
            "layers": ["all", "top", "bottom"],
            "head_fraction": [0.6],
            "window": [4],
            "horizon": [[2, 6]],
            "heads": ["all"],
        },
    ),
    Case("rhythm", FIXED),
    Case("attnpo", ATTNPO),
    Case("attnpo", {**ATTNPO, "heads": OTHER_HEADS}),
]

# Other ways to make the same passes, which also have to work with every architecture.
ROUTES = [
    *(Case("atpo", {"layers": 2}, options) for options in ({"kernels": "fused"}, {"batch_size": 1})),
    *(Case("rhythm", {"horizon": [2, 6]}, options) for options in ({"kernels": "fused"}, {"batch_size": 1})),
    Case("attnpo", ATTNPO, {"kernels": "fused"}),
    Case("surprisal", {}, {"batch_size": 3}),
]

# Options that change what is made of what was read: one architecture is enough.
MADE_OF_IT = [
    *with_each("uniform", {}),
    *with_each("random", {"q": [0.2], "amplification": [0.5], "seed": [7]}),
    *with_each("position", {"shape": ["exponential", "sigmoid", "zero"], "floor": [0.25]}),
    Case("position", {"shape": "sigmoid", "temperature": 0.5}),
    *with_each("entropy", {"q": [0.2], "amplification": [3.0]})[1:],
    *with_each("entropy_selection", {"q": [0.5]})[1:],
    *with_each("entropy_reduction", {"eps": [0.1]})[1:],
    *with_each("surprisal", {"eps": [0.1]})[1:],
    *with_each("atpo", {"temperature": [0.5], "floor": [0.0]})[1:],
    *with_each(
        "rhythm",
        {
            "q": [0.2],
            "amplification": [2.5],
            "alpha": [0.25],
            "k": [6],
            "sign": ["positive", "negative"],
            "select": ["bottom"],
        },
    )[1:],
    *(Case("rhythm", {"strategy": strategy, **FIXED}) for strategy in ("local", "global")),
    Case("attnpo", {"heads": HEADS}),
    *with_each(
        "attnpo",
        {"lam": [0.5], "delta": [0.3], "incorrect": [True], "baseline_length": ["sequence"]},
        **ATTNPO,
    )[1:],
    *(Case("attnpo", {**ATTNPO, "delay": delay}, {"step": 100}) for delay in (1000, 10)),
]

# Some of the architectures have fewer layers with full attention.
OF_THREE_LAYERS = Case("atpo", {"layers": 3})

# These read a reward model and not the policy.
OF_A_REWARD_MODEL = [
    *(
        Case("p2t", {"estimator": estimator}, reward=reward)
        for reward in (
            "sequence",
            "process",
            "process with separator",
            "another tokenizer",
            "function",
            "function of positions",
        )
        for estimator in ("taylor", "exact", "integrated")
    ),
    *(Case("p2t", {"estimator": e, "backward": "per_step"}, reward="process") for e in ("taylor", "integrated")),
    Case("p2t", {"backward": "per_step"}, reward="process with separator"),
    *(
        Case("p2t", params, reward=reward)
        for reward in ("sequence", "process")
        for params in (
            {"omega": 2.0},
            {"alpha": 1.0},
            {"null": "eos"},
            {"null": "zero"},
            {"null": "mean"},
            {"estimator": "integrated", "path_points": 4},
        )
    ),
    Case("p2t", {}, {"batch_size": 1}, reward="process"),
]

OF_AN_ADAPTER = [
    *with_each("arca", {"eps": [0.1]}),
    *with_each("divergence", {"eps": [0.1]}),
    Case("divergence", reference=True),
    Case("arca", {}, {"batch_size": 1}),
    Case("divergence", {}, {"batch_size": 1}),
]


def cases_of(model: str, *, everything: bool = False) -> list[Case]:
    """The cases of a model.

    Args:
        everything: also those that differ between architectures only by what the others show already.
    """
    if model == LORA:
        return [*OF_AN_ADAPTER, *READ_FROM_A_MODEL, *(ROUTES if everything else [])]
    cases = [*READ_FROM_A_MODEL, *ROUTES]
    if everything or model == "Qwen3":
        cases += MADE_OF_IT
    return [*cases, OF_THREE_LAYERS, *OF_A_REWARD_MODEL] if model == "Qwen3" else cases


LENGTHS, PROMPTS, ANSWERS = (24, 17, 21, 13), (6, 4, 5, 3), (18, 11, 15, -1)


@cache
def rollouts() -> tc.Rollouts:
    """Four completions of two prompts: right and praised, wrong and blamed, right and blamed, and without an answer."""
    generator = torch.Generator().manual_seed(5)
    width, length = max(PROMPTS), max(LENGTHS)
    position, answer = torch.arange(length), torch.tensor(ANSWERS)[:, None]
    mask = position < torch.tensor(LENGTHS)[:, None]
    draw = {"low": 3, "high": VOCABULARY, "generator": generator}
    return tc.Rollouts(
        prompt_ids=torch.randint(size=(4, width), **draw),
        prompt_mask=torch.arange(width) >= width - torch.tensor(PROMPTS)[:, None],
        completion_ids=torch.randint(size=(4, length), **draw),
        completion_mask=mask,
        rewards=torch.tensor([1.0, 0.0, 0.25, 0.75]),
        group=torch.tensor([0, 0, 1, 1]),
        correct=torch.tensor([True, False, True, False]),
        answer_start=answer[:, 0],
        step_index=torch.where((position < answer) & mask, position // 4, -1),
    )


def textual() -> tc.Rollouts:
    """The rollouts with tokens that `word_tokenizer` knows."""
    whole = rollouts()
    fields = {name: getattr(whole, name) for name in ("prompt_mask", "completion_mask", *_OUTCOMES)}
    usual = torch.tensor([SYMBOLS.index(symbol) for symbol in (*LINES, *CHARACTERS)])
    ids = {name: usual[getattr(whole, name) % len(usual)] for name in ("prompt_ids", "completion_ids")}
    return tc.Rollouts(**ids, **fields)


_OUTCOMES = ("rewards", "group", "correct", "answer_start", "step_index")


@cache
def reward_models(dtype: torch.dtype) -> dict[str, Any]:
    """Name -> what `tc.assign` takes as reward_model."""
    sequence, process = reward_classifier(dtype), reward_classifier(dtype, process=True)
    direction = uniform((32,), torch.Generator().manual_seed(6)).to(dtype)
    letters = word_tokenizer()
    two = (a + b for a in CHARACTERS for b in CHARACTERS)
    pairs = word_tokenizer((*SPECIAL, *CHARACTERS, *two), r"[\s\S]{1,2}")
    other = reward_classifier(dtype, process=True, vocabulary=len(pairs))
    return {
        "sequence": sequence,
        "process": process,
        "process with separator": tc.RewardModel(process, tokenizer=letters, separator="\n"),
        "function": lambda embeddings: (embeddings @ direction).tanh().sum(1),
        "function of positions": lambda embeddings: (embeddings @ direction).cumsum(1).tanh(),
        "another tokenizer": tc.RewardModel(other, tokenizer=pairs, policy_tokenizer=letters, separator="\n"),
    }


def credit_of(case: Case, policy: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The credit of a case on the rollouts of this module, see `fields_of`."""
    given: dict[str, Any] = {}
    if case.reference:
        given["reference_model"] = reference_policy(dtype)
    if case.reward is not None:
        given["reward_model"] = reward_models(dtype)[case.reward]
    batch = textual() if case.reward in ("process with separator", "another tokenizer") else rollouts()
    return fields_of(case, policy, batch, **given)


def fields_of(case: Case, policy: nn.Module, batch: tc.Rollouts, **given: Any) -> dict[str, Tensor]:
    """Field -> float32: advantages, and weights or bonus, (B, T); and the diagnostics, (B,), each under its name.

    Args:
        given: further arguments of `tc.assign`, beside the case's own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of completions that a method leaves uniform, which some here are meant to be
        credit = tc.assign(policy, batch, tc.method(case.method, **case.params), **case.options, **given)
    spread = {"weights": credit.weights, "bonus": credit.bonus}
    fields = {"advantages": credit.advantages, **{name: value for name, value in spread.items() if value is not None}}
    return fields | {f"diagnostic {name}": value for name, value in credit.diagnostics.items()}


def default_dtype(model: str) -> torch.dtype:
    """float64, except where transformers' own attention with a softcap turns padding into NaN in it."""
    return torch.float32 if model == "Gemma2" else torch.float64


def recorded(model: str, dtype: torch.dtype | None = None, *, everything: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(key, value) of all fields of all cases of a model; a key is "model | case | field"."""
    dtype = dtype or default_dtype(model)
    policy = build(model, dtype)
    for case in cases_of(model, everything=everything):
        for name, value in credit_of(case, policy, dtype).items():
            assert value.dtype == torch.float32
            yield f"{model} | {case.name} | {name}", value.contiguous()


__all__ = ["NAMES", "Case", "cases_of", "credit_of", "fields_of", "recorded", "rollouts"]
