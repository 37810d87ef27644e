"""Trace rows as `analysis.traces.trace_rows` makes them, small enough to be read."""

from __future__ import annotations


def credit(advantages, weights=None):
    return {
        "weights": weights,
        "advantages": advantages,
        "diagnostics": {
            "gini": 0.25, "effective_ratio": 0.75, "broadcast": 0.0, "sparse": 0.0, "sign_flip": 0.0, "no_answer": 0.0,
        },
    }  # fmt: skip


def row(tokens=("1+6", "=7", ";", "</think>", "7"), **changed):
    """A right completion: one essential step of three tokens, then the answer."""
    n = len(tokens)
    ramp = [round((t + 1) / n, 4) for t in range(n)]
    return {
        "source": "after",
        "prompt": "Q: a=1+6?\n",
        "tokens": list(tokens),
        "group": 0,
        "reward": 1.0,
        "correct": True,
        "answer_start": n - 1,
        "step_index": [0] * (n - 2) + [-1, -1],
        "essential": [True],
        "first_error": None,
        "signals": {
            "logprob": [-0.5] * n,
            "entropy": [0.25 * t for t in range(n)],
            "waad": [float(t) for t in range(n)],
            "fai": [0.125] * n,
        },
        "peaks": {"preplan": [1], "anchor": [2]},
        "attention": {"layer": 3, "rows": [n - 1], "columns": list(range(n - 1)), "values": [ramp[:-1]]},
        "credit": {
            "uniform": credit([1.0] * n, [1.0] * n),
            "atpo": credit(ramp, ramp),
            "p2t": credit([-r if t % 2 else r for t, r in enumerate(ramp)]),
            "arca": credit(ramp[::-1], ramp[::-1]),
        },
        **changed,
    }


def wrong(**changed):
    """A wrong completion, that goes wrong at its second token."""
    return row(correct=False, reward=0.0, first_error=1, essential=[False], **changed)
