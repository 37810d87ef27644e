"""What a user should know about credit: which completions a method left uniform, why, and which option helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

NO_ANSWER = (
    "no answer span was found: the answer is the text after </think>, or from the last \\boxed{ where there is no "
    "</think>; other formats need the option answer (a regular expression) or end_of_reasoning"
)
"""Why a method that reads the answer's attention leaves a completion uniform."""


def inactive(method: Any, diagnostics: Mapping[str, Tensor]) -> list[str]:
    """One sentence for each reason for which the method left completions uniform.

    Args:
        method: its `uniform_because` maps the name of a diagnostic to an explanation; a method without it has none.
        diagnostics: name -> (B,), 1 where the reason holds; see `Credit.diagnostics`.
    """
    sentences = []
    for name, explanation in getattr(method, "uniform_because", {}).items():
        values = diagnostics[name]
        count = int((values > 0).sum())
        if count:
            sentences.append(f"{method.name} leaves {count} of {len(values)} completions uniform: {explanation}")
    return sentences
