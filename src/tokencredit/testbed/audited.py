"""Completions of a testbed policy with all that is known about them: what an audit judges credit by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokencredit.audit import Truth
from tokencredit.audit.counterfactual import replacement_effect
from tokencredit.audit.monte_carlo import MonteCarloAdvantage, monte_carlo_advantage
from tokencredit.audit.parts import Parts
from tokencredit.labelled import padded_right
from tokencredit.rollouts import Rollouts
from tokencredit.steps import TokenPieces, find_spans
from tokencredit.testbed.evaluate import completion_text, sample
from tokencredit.testbed.heads import said_once
from tokencredit.testbed.tasks import Problem, Task, TokenLabels, label_tokens, step_starts


@dataclass(frozen=True, eq=False)
class Audited:
    """Completions, the problem of each, and the truth about them."""

    rollouts: Rollouts
    problems: list[Problem]
    truth: Truth


class Estimated(NamedTuple):
    """`chosen`: (R,) long, the completions whose values were estimated. `advantage`: theirs, (R, T)."""

    chosen: Tensor
    advantage: MonteCarloAdvantage


def sample_audited(
    policy: nn.Module,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    *,
    group_size: int = 8,
    seed: int = 0,
) -> Audited:
    """A group of completions a problem at temperature 1, with their exact labels.

    A step that is said twice has no label: either of the two would do for the answer. Nor has filler, which any credit
    for working something out would tell apart.
    """
    problem_of_completion = audited_problems(problems, group_size)
    rollouts = sample(
        policy, tokenizer, [p.prompt for p in problem_of_completion], max_new_tokens=task.max_new_tokens, seed=seed
    )
    pieces_of = TokenPieces(tokenizer)
    labels: list[TokenLabels] = []
    counted: list[list[bool]] = []
    indirect: list[list[bool]] = []
    forms: list[list[int]] = []
    hops = getattr(task, "hops", None)
    results: list[list[bool]] = []
    for problem, ids, length in zip(
        problem_of_completion, rollouts.completion_ids, rollouts.lengths.tolist(), strict=True
    ):
        pieces = pieces_of(ids[:length].tolist())
        found = task.label(problem, "".join(pieces))
        labels.append(label_tokens(found, pieces))
        if hops is not None:
            indirect.append([hop == 2 for hop in hops(problem, "".join(pieces))])
        steps = ["".join(pieces)[step.start : step.end] for step in found.steps]
        forms.append([int(":" in step) for step in steps])
        once = said_once(found, "".join(pieces))
        counted.append([single and "=" in step for single, step in zip(once, steps, strict=True)])
        results.append(result_tokens(pieces, labels[-1].step_index))
    correct = torch.tensor([label.correct for label in labels])
    width = rollouts.completion_ids.shape[1]

    def grid(rows: list[list[Any]], fill: Any) -> Tensor:
        values = padded_right(rows, fill)
        return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)

    truth = Truth(
        correct=correct,
        step_index=grid([label.step_index for label in labels], -1),
        essential=padded_right([[*label.essential, False] for label in labels], False),
        labelled=padded_right([[*row, False] for row in counted], False),
        error=grid([[t == label.first_error for t in range(len(label.step_index))] for label in labels], False),
        results=grid(results, False),
        form=padded_right([[*row, 0] for row in forms], 0),
        indirect=padded_right([[*row, False] for row in indirect], False) if hops is not None else None,
    )
    group = torch.arange(len(problem_of_completion)) // group_size
    marked = replace(
        find_spans(rollouts, tokenizer, step_starts), rewards=correct.float(), correct=correct, group=group
    )
    return Audited(marked, problem_of_completion, truth)


def audited_problems(problems: Sequence[Problem], group_size: int) -> list[Problem]:
    """The problem of each completion that `sample_audited` samples."""
    return [problem for problem in problems for _ in range(group_size)]


def result_tokens(pieces: Sequence[str], step_index: Sequence[int]) -> list[bool]:
    """Which tokens state what their step comes to: those behind its last "=", but for the ";"."""
    found = [False] * len(pieces)
    for k in set(step_index) - {-1}:
        tokens = [t for t, step in enumerate(step_index) if step == k]
        signs = [t for t in tokens if "=" in pieces[t]]
        # "b=" is one token: a step that only names its value so has said no result yet.
        for t in tokens:
            found[t] = bool(signs) and t > signs[-1] and re.fullmatch(r"[0-9+-]+", pieces[t]) is not None
    return found


def estimated(
    audited: Audited,
    policy: nn.Module,
    tokenizer: Any,
    task: Task,
    *,
    completions: int = 40,
    samples: int = 16,
    seed: int = 0,
    kept: Parts | None = None,
    on_values: Callable[[int, int], None] = lambda done, total: None,
    on_effects: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Audited, Estimated]:
    """With Monte-Carlo advantages and replacement effects of some correct completions and as many wrong ones.

    The others have neither, and no measure counts them there.

    Args:
        kept: where both are kept.
        on_values: told how many of the continuations for the advantages are done, and of how many. on_effects: the
            same for the effects.
    """
    correct, kept = audited.truth.correct, kept or Parts()
    generator = torch.Generator().manual_seed(seed)
    drawn = [_drawn(kind, completions, generator) for kind in (correct, ~correct)]
    chosen = torch.cat(drawn).sort().values
    part = audited.rollouts.rows(chosen)
    problems = [audited.problems[i] for i in chosen.tolist()]

    def success(row: int, completion: list[int]) -> float:
        return float(task.verify(problems[row], completion_text(completion, tokenizer)))

    decoding: dict[str, Any] = {
        "max_new_tokens": task.max_new_tokens,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "seed": seed,
    }
    estimate = kept.value(
        "values",
        lambda: monte_carlo_advantage(policy, part, success, samples=samples, on_progress=on_values, **decoding),
    )
    effect = kept.value(
        "effects", lambda: replacement_effect(policy, part, success, on_progress=on_effects, **decoding)
    )
    advantage, effects = (torch.zeros(audited.rollouts.completion_mask.shape) for _ in range(2))
    advantage[chosen], effects[chosen] = estimate.advantage, effect
    found = replace(audited, truth=replace(audited.truth, advantage=advantage, effect=effects))
    return found, Estimated(chosen, estimate)


def _drawn(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rows = among.nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
