"""Arms of an audit or a comparison: credit methods with what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from tokencredit.head_files import HeadRank
from tokencredit.heads import rank_heads
from tokencredit.methods import Method, method
from tokencredit.methods.specs import needs_heads, parse_spec
from tokencredit.testbed.heads import labelled_completions
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.tasks import Problem, Task

KEY_FOCUS_HEADS = 3
"""How many heads AttnPO reads, as in its released script."""


def build_arm(
    spec: str,
    checkpoint: nn.Module,
    task: Task,
    training: Sequence[Problem],
    on_heads: Callable[[list[HeadRank]], None] = lambda ranks: None,
) -> Method:
    """The method that `spec` names. Key-focus heads, where it needs them, are found on 300 training problems.

    Args:
        on_heads: told of all heads, best first; the method takes the first `KEY_FOCUS_HEADS`.

    Raises:
        ValueError: an unknown method or parameter, or a value out of range.
    """
    name, params = parse_spec(spec)
    if not needs_heads(name, params):
        return method(name, **params)
    ranks = ranked_heads(checkpoint, task, training)
    on_heads(ranks)
    return arm_with_heads(spec, ranks)


def ranked_heads(checkpoint: nn.Module, task: Task, training: Sequence[Problem]) -> list[HeadRank]:
    """All heads of a policy, best first, by its completions of the first 300 training problems."""
    return rank_heads(checkpoint, *labelled_completions(checkpoint, build_tokenizer(), task, training[:300]))


def arm_with_heads(spec: str, ranks: Sequence[HeadRank]) -> Method:
    """The method that `spec` names, with the best of these heads where it needs any."""
    name, params = parse_spec(spec)
    heads = tuple((rank.layer, rank.head) for rank in ranks[:KEY_FOCUS_HEADS])
    return method(name, **params, **({"heads": heads} if needs_heads(name, params) else {}))


def heads_in_words(ranks: Sequence[HeadRank]) -> str:
    """The heads that a method takes."""
    best = [f"layer {r.layer} head {r.head} ({r.sra:.2f} of {r.pairs} pairs)" for r in ranks[:KEY_FOCUS_HEADS]]
    return f"key-focus heads by step ranking accuracy: {', '.join(best)}"
