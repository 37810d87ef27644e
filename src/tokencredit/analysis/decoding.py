"""What a policy writes after given tokens, decoded greedily or sampled in batches, and how right it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tokencredit.padding import padded_left
from tokencredit.rollouts import Rollouts
from tokencredit.signals.policy import reading

Success = Callable[[int, list[int]], float]
"""(row of the rollouts, token ids of a whole completion with its end of sequence) -> how right it is, 0 to 1. It may be
asked once for equal completions."""


def continuations(
    policy: nn.Module,
    prefixes: Sequence[list[int]],
    budgets: Sequence[int],
    *,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    barred: Sequence[Sequence[int]] = (),
    copies: int = 1,
    generator: torch.Generator | None = None,
) -> list[list[list[int]]]:
    """What follows each prefix under the policy's own distribution, whatever its generation settings say.

    A prefix is read once for all its copies, and rows that have ended are dropped. Call it where the policy is in
    evaluation mode and no gradient is recorded (`reading`).

    Args:
        prefixes: token ids, at least one each.
        budgets: how many tokens may follow each prefix; 0 is allowed.
        eos_token_id: of the tokens that end a completion.
        barred: for each prefix the tokens that may not come next after it; none by default.
        copies: continuations of each prefix.
        generator: on the policy's device, to sample at temperature 1 with; greedy without.

    Returns:
        For each prefix its `copies` continuations, up to and including the end of sequence where there is one.
    """
    device = next(policy.parameters()).device
    ends = torch.tensor(eos_token_id, device=device).reshape(-1)
    ids, real = padded_left(prefixes, pad_token_id, device)
    logits, cache = _read(policy, ids, real, None)
    for row, tokens in enumerate(barred):
        logits[row, list(tokens)] = -torch.inf
    going = torch.arange(len(prefixes) * copies, device=device)
    # Unlike the cache's other ways to pick rows, this one is there for linear attention too.
    cache.reorder_cache(going // copies)
    logits, real = logits.repeat_interleave(copies, 0), real.repeat_interleave(copies, 0)
    budget = torch.tensor(budgets, device=device).repeat_interleave(copies)
    made = torch.full((len(budget), max(budgets)), pad_token_id, device=device)
    for step in range(max(budgets)):
        token = _chosen(logits, generator)
        made[going, step] = token
        on = (~torch.isin(token, ends) & (budget[going] > step + 1)).nonzero().flatten()
        if len(on) == 0:
            break
        if len(on) < len(going):
            going, token, real = going[on], token[on], real[on]
            cache.reorder_cache(on)
        real = pad(real, (0, 1), value=True)
        logits, cache = _read(policy, token[:, None], real, cache)
    rows = [_ended(row[:most], ends.tolist()) for row, most in zip(made.tolist(), budget.tolist(), strict=True)]
    return [rows[i : i + copies] for i in range(0, len(rows), copies)]


def _read(policy: nn.Module, ids: Tensor, real: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """(R, V) logits of what follows `ids` (R, n), the last of the tokens that `real` (R, N) covers; and the cache."""
    position = (real.long().cumsum(1) - 1).clamp(min=0)
    out = policy(
        input_ids=ids,
        attention_mask=real.long(),
        position_ids=position[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1], out.past_key_values


def _chosen(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits.argmax(-1)
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]


def _ended(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to and including the first end of sequence."""
    length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


class Start(NamedTuple):
    """A completion of `row`'s prompt, as yet of any length, that is to be continued, but not with a barred token."""

    row: int
    prompt: list[int]
    completion: list[int]
    barred: Sequence[int] = ()


class Decoding(NamedTuple):
    """How completions are continued, `samples` times each at temperature 1, or once greedily with 0 samples."""

    samples: int
    max_new_tokens: int
    eos_token_id: int | Sequence[int]
    pad_token_id: int
    batch_size: int
    seed: int
    on_progress: Callable[[int, int], None]

    def check(self, rollouts: Rollouts, least_samples: int) -> None:
        """Raise a ValueError where a number is too small, or a completion is longer than it may get."""
        for name, value, least in (("samples", self.samples, least_samples), ("batch_size", self.batch_size, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        longest = max(rollouts.lengths.tolist(), default=0)
        if self.max_new_tokens < longest:
            raise ValueError(
                f"max_new_tokens must be at least the longest completion, {longest}; got {self.max_new_tokens}"
            )


def success_after(policy: nn.Module, starts: Sequence[Start], success: Success, decoding: Decoding) -> Tensor:
    """(S, samples) float32: how right the continuations of each start are; with 0 samples (S, 1), the greedy one."""
    copies = max(1, decoding.samples)
    outcomes = torch.zeros(len(starts), copies)
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(decoding.seed) if decoding.samples else None
    # Prefixes of like length together: little padding, and rows that end at about the same time.
    order = sorted(range(len(starts)), key=lambda i: len(starts[i].prompt) + len(starts[i].completion))
    size = max(1, decoding.batch_size // copies)
    with reading(policy):
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            chosen = [starts[i] for i in batch]
            followed = continuations(
                policy,
                [start.prompt + start.completion for start in chosen],
                [decoding.max_new_tokens - len(start.completion) for start in chosen],
                eos_token_id=decoding.eos_token_id,
                pad_token_id=decoding.pad_token_id,
                barred=[start.barred for start in chosen],
                copies=copies,
                generator=generator,
            )
            whole = [
                (start.row, start.completion + rest)
                for start, rests in zip(chosen, followed, strict=True)
                for rest in rests
            ]
            outcomes[batch] = torch.tensor(scored(success, whole)).view(len(batch), copies)
            decoding.on_progress((begin + len(batch)) * copies, len(order) * copies)
    return outcomes


def scored(success: Success, completions: Sequence[tuple[int, list[int]]]) -> list[float]:
    """The success of each (row, completion), asked once for equal ones. Raises a ValueError unless it is in [0, 1]."""
    known: dict[tuple[int, tuple[int, ...]], float] = {}
    for row, ids in completions:
        if (row, tuple(ids)) not in known:
            value = float(success(row, list(ids)))
            if not 0 <= value <= 1:
                raise ValueError(f"success of a completion of row {row} is {value}; expected a number from 0 to 1")
            known[row, tuple(ids)] = value
    return [known[row, tuple(ids)] for row, ids in completions]


def token_lists(rollouts: Rollouts) -> tuple[list[list[int]], list[list[int]]]:
    """The real token ids of each prompt, and of each completion."""
    grids = ((rollouts.prompt_ids, rollouts.prompt_mask), (rollouts.completion_ids, rollouts.completion_mask))
    prompts, completions = ([row[real].tolist() for row, real in zip(*grid, strict=True)] for grid in grids)
    return prompts, completions


class Decoder:
    """Greedy decoding with the policy's `generate`, so by its generation settings, as its users decode."""

    def __init__(self, policy: Any, eos_token_id: int, pad_token_id: int) -> None:
        self._policy, self._eos, self._pad = policy, eos_token_id, pad_token_id
        self._device = next(policy.parameters()).device

    def likeliest(self, prefixes: list[list[int]], originals: list[int], count: int) -> list[list[int]]:
        """The `count` likeliest tokens to follow each prefix, without its original and the end of sequence."""
        logits = self._generate(prefixes, 1, return_dict_in_generate=True, output_logits=True).logits[0]
        if count > logits.shape[1] - 2:
            raise ValueError(f"top_k must be less than the vocabulary, {logits.shape[1]} tokens; got {count + 1}")
        barred = torch.tensor([[token, self._eos] for token in originals], device=logits.device)
        return logits.scatter(1, barred, -torch.inf).topk(count).indices.tolist()

    def continued(self, prefixes: list[list[int]], budgets: list[int]) -> list[list[int]]:
        """What follows each prefix, up to its end of sequence, or as many tokens as its budget has."""
        width = max(map(len, prefixes))
        rows = self._generate(prefixes, max(budgets)).tolist()
        return [_ended(row[width : width + budget], [self._eos]) for row, budget in zip(rows, budgets, strict=True)]

    def _generate(self, prefixes: list[list[int]], steps: int, **options: Any) -> Any:
        ids, mask = padded_left(prefixes, self._pad, self._device)
        return self._policy.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad,
            eos_token_id=self._eos,
            **options,
        )
