"""Traces that are longer than the context of the model that is to read them: refused, left out, or cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

RULES = ("refuse", "skip", "truncate")
_SHOWN = 10


class LongTrace(NamedTuple):
    """`number`: which trace of the file, from 1. `tokens`: of its prompt and completion, before anything was cut."""

    number: int
    tokens: int


@dataclass(frozen=True)
class LongTraces:
    """What became of the traces of a file that are longer than `context` tokens, prompt included."""

    context: int | None = None
    skipped: tuple[LongTrace, ...] = ()
    truncated: tuple[LongTrace, ...] = ()

    @property
    def notes(self) -> list[str]:
        """A sentence about those that were left out and one about those that were cut off, where there are any."""
        fates = ((self.skipped, "left out"), (self.truncated, "cut off at the end of their completions"))
        return [
            f"{_counted(traces)} longer than the model's context of {self.context:,} tokens and {fate}: "
            f"{_listed(traces)}"
            for traces, fate in fates
            if traces
        ]

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`: `context`, and the numbers and lengths of the traces in `skipped` and `truncated`."""
        fates = {"skipped": self.skipped, "truncated": self.truncated}
        return {"context": self.context, **{name: [t._asdict() for t in traces] for name, traces in fates.items()}}


def context_of(config: Any) -> int | None:
    """How many tokens a model was made for, by its configuration; None where that does not say.

    This is `max_position_embeddings` of the text model, or what YaRN extends it to.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if type(most) is not int or most < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "yarn":
        most = max(most, int((rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)))
    return most


def check_rule(long_traces: str) -> None:
    """
    Raises:
        ValueError: there is no such rule.
    """
    if long_traces not in RULES:
        raise ValueError(f"long traces are dealt with by {', '.join(RULES)}; got {long_traces!r}")


def fit(
    lengths: list[tuple[int, int]], context: int | None, long_traces: str, *, cuttable: bool
) -> tuple[list[int], LongTraces]:
    """Which traces fit into a model's context.

    Args:
        lengths: of each trace, the tokens of its prompt and of its completion.
        context: the most tokens that the model takes; None for no limit.
        long_traces: `refuse`, `skip` or `truncate`.
        cuttable: whether completions may be cut off; where they may not, `truncate` leaves long traces out, as it does
            where the prompt alone fills the context.

    Returns:
        The most tokens of each completion, 0 for traces that are left out; and what became of long ones.

    Raises:
        ValueError: there is no such rule; it is `refuse` and a trace is too long; or no trace would be left.
    """
    check_rule(long_traces)
    kept = [completion for _, completion in lengths]
    too_long = [
        i for i, (prompt, completion) in enumerate(lengths) if context is not None and prompt + completion > context
    ]
    if context is None or not too_long:
        return kept, LongTraces(context)
    described = {i: LongTrace(i + 1, sum(lengths[i])) for i in too_long}
    if long_traces == "refuse":
        raise ValueError(_refusal(list(described.values()), len(lengths), context))
    for i in too_long:
        kept[i] = max(0, context - lengths[i][0]) if long_traces == "truncate" and cuttable else 0
    if not any(kept):
        raise ValueError(
            f"no trace is left: all {len(lengths)} are longer than the model's context of {context:,} tokens"
        )
    skipped = tuple(trace for i, trace in described.items() if not kept[i])
    truncated = tuple(trace for i, trace in described.items() if kept[i])
    return kept, LongTraces(context, skipped, truncated)


def _refusal(traces: list[LongTrace], total: int, context: int) -> str:
    longest = max(trace.tokens for trace in traces)
    return (
        f"{len(traces)} of {total} traces are longer than the model's context of {context:,} tokens, the longest has "
        f"{longest:,}: {_listed(tuple(traces))}. Leave them out with --long-traces skip, or cut them off with "
        "--long-traces truncate (labelled traces are never cut off)"
    )


def _counted(traces: tuple[LongTrace, ...]) -> str:
    return f"{len(traces)} trace{'s are' if len(traces) > 1 else ' is'}"


def _listed(traces: tuple[LongTrace, ...]) -> str:
    shown = ", ".join(f"number {trace.number} ({trace.tokens:,} tokens)" for trace in traces[:_SHOWN])
    return f"{shown}{f' and {len(traces) - _SHOWN} more' if len(traces) > _SHOWN else ''}"
