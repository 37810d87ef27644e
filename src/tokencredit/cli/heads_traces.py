"""Which of a user's completions `tokencredit heads` ranks heads on, and how their steps are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencredit.cli.outcomes import correct_by_reward
from tokencredit.cli.terminal import Bars, say

if TYPE_CHECKING:
    from torch import Tensor

    from tokencredit.completions import Completions
    from tokencredit.labelled import Labelled
    from tokencredit.rollouts import Rollouts

EXACT, ABLATION = "exact", "ablation"

_KNOWN = 'give each completion "correct" or "reward", as `tokencredit eval --completions` writes them'
_ADVICE = {
    "do not say whether they are correct": _KNOWN,
    "have no answer span": "say where the answer starts with --end-of-reasoning or --answer",
    "have a single step": "choose another --splitter",
}


@dataclass(frozen=True)
class Least:
    """How few pairs of an essential and a redundant step, and completions that have any, heads may be ranked on."""

    pairs: int
    completions: int

    def check(self, counts: Tensor, what: str, advice: str) -> None:
        """Raise a ValueError if there are too few; `counts` (B,) is the number of pairs of each completion."""
        pairs, completions = int(counts.sum()), int((counts > 0).sum())
        if pairs < self.pairs or completions < self.completions:
            raise ValueError(
                f"{what} {pairs} pairs of an essential and a redundant step in {completions} completions, too few to "
                f"rank heads: the least is {self.pairs} pairs (--min-pairs) in {self.completions} completions "
                f"(--min-completions). {advice}"
            )


@dataclass(frozen=True)
class Traces:
    """Completions as a file has them.

    Attributes:
        rollouts: with their spans.
        has_steps: the steps are given, not found by a splitter.
        exact: the labels that the file gives its steps; None for plain text.
        correct: of each completion, None where the file does not say.
        notes: what the user should know about how the file was read.
    """

    rollouts: Rollouts
    has_steps: bool
    exact: Labelled | None
    correct: list[bool | None]
    notes: list[str]

    def labelled(self, path: Path | None) -> Labelled:
        """With the file's own labels; raises a ValueError where it has none."""
        if self.exact is None:
            raise ValueError(
                f"{path} holds plain completions, which say of no step whether it is essential: label the steps with "
                f"--labels {ABLATION}, or write them as docs/formats.md describes"
            )
        if not self.exact.mask.any():
            raise ValueError(f'{path} labels no step: add "essential", or label the steps with --labels {ABLATION}')
        return self.exact


def read_traces(
    path: Path,
    policy: Any,
    tokenizer: Any,
    *,
    splitter: str,
    end_of_reasoning: str,
    answer: str,
    chat: bool,
    long_traces: str,
    correct_threshold: float | None,
    needs_correct: bool,
) -> Traces:
    """
    Args:
        correct_threshold: the reward from which on a completion is correct, where it has a reward but no `correct`.
        needs_correct: let rewards tell which completions are correct; otherwise rewards are not read.

    Raises:
        ValueError: the file cannot be read so.
    """
    from tokencredit.completions import load_completions
    from tokencredit.long_traces import context_of
    from tokencredit.steps import span_notices

    spans = {"end_of_reasoning": end_of_reasoning, "answer": answer}
    completions = load_completions(
        path, tokenizer, splitter, **spans, chat=chat, context=context_of(policy.config), long_traces=long_traces
    )
    has_steps = "essential" in completions.labels[0]
    notes = completions.long.notes + ([] if has_steps else span_notices(completions.rollouts, splitter, **spans))
    exact = _exact(completions) if has_steps else None
    correct = [label["correct"] for label in completions.labels]
    if needs_correct:
        by_reward = correct_by_reward(completions.labels, correct_threshold, "completions")
        correct = [by_reward.get(i, value) for i, value in enumerate(correct)]
    return Traces(completions.rollouts, has_steps, exact, correct, notes)


def _exact(completions: Completions) -> Labelled:
    from tokencredit.labelled import Labelled, padded_right

    labels = [label["essential"] for label in completions.labels]
    return Labelled(
        completions.rollouts,
        padded_right([[label is True for label in row] for row in labels], False),
        padded_right([[label is not None for label in row] for row in labels], False),
    )


def for_ablation(read: Traces, limit: int | None, least: Least) -> Rollouts:
    """The completions whose steps are worth removing: correct ones with an answer and two steps or more.

    Where the steps are given, a completion counts as correct unless the file says that it is wrong. Which completions
    were left out, and why, is printed.

    Args:
        limit: take the first of them only.

    Raises:
        ValueError: there are fewer than could give the least number of pairs.
    """
    import torch

    from tokencredit.head_ranking import steps_of

    rollouts = read.rollouts
    steps, has_answer = steps_of(rollouts).sum(1).tolist(), rollouts.has_answer.tolist()
    left_out: dict[str, int] = {}
    kept: list[int] = []
    for i, correct in enumerate(read.correct):
        if why := _reason(correct, read.has_steps, has_answer[i], steps[i]):
            left_out[why] = left_out.get(why, 0) + 1
        elif limit is not None and len(kept) == limit:
            left_out["come after the first --limit"] = left_out.get("come after the first --limit", 0) + 1
        else:
            kept.append(i)
    reasons = " and ".join(f"{count} {why}" for why, count in left_out.items())
    used = f"{len(kept)} of {len(rollouts)} completions can be used{': ' if reasons else ''}{reasons}"
    at_best = torch.tensor([(steps[i] // 2) * ((steps[i] + 1) // 2) for i in kept])
    advice = "; ".join(_ADVICE[why] for why in left_out if why in _ADVICE) or "Use more completions"
    least.check(at_best, f"{used}. They would give at most", f"{advice[0].upper()}{advice[1:]}")
    say(f"labels by ablation: {used}")
    return rollouts.rows(torch.tensor(kept))


def _reason(correct: bool | None, has_steps: bool, has_answer: bool, steps: int) -> str | None:
    """Why a completion is of no use for labels by ablation."""
    if correct is False:
        return "are wrong"
    if correct is None and not has_steps:
        return "do not say whether they are correct"
    if not has_answer:
        return "have no answer span"
    return "have a single step" if steps < 2 else None


def label_by_ablation(policy: Any, rollouts: Rollouts, threshold: float, batch_size: int) -> Labelled:
    """Steps without which the log-prob of the answer falls by more than `threshold` are essential."""
    from tokencredit.ablation import ablate_steps, ablated_sequences
    from tokencredit.labelled import Labelled

    total = ablated_sequences(rollouts)
    say(
        f"the model reads {total:,} sequences, each completion as it is and without each of its steps: "
        f"{-(-total // batch_size):,} forward passes of {batch_size} (--batch-size)"
    )
    with Bars() as bars:
        bars.stage("ablation", total)
        drop, exists = ablate_steps(
            policy, rollouts, batch_size=batch_size, on_progress=lambda done, _: bars.advance(done)
        )
    losses = drop[exists].double()
    low, middle, high = losses.quantile(losses.new_tensor([0.25, 0.5, 0.75])).tolist()
    say(
        f"without a step, the answer loses {middle:.2f} nats (median; quartiles {low:.2f} and {high:.2f}): "
        f"{int((losses > threshold).sum())} of {len(losses)} steps lose more than {threshold:g} and are essential"
    )
    return Labelled(rollouts, drop > threshold, exists)
