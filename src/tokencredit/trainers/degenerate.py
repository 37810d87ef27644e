"""Warns the user of credit that hardly tells tokens apart, and says why where the method knows it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

DEGENERATE = 0.9
"""The user is warned when at least this share of the completions has credit that is flagged."""

WORTH_TELLING = 0.1
"""A reason is given in the warning when it holds for at least this share of the completions."""

FLAGS = {"broadcast": "as good as uniform", "sparse": "on a few tokens only"}
"""Diagnostic of a degenerate kind of credit -> what it is, in words."""


def warn_if_degenerate(
    method: Any, means: Mapping[str, float], warned: set[str] | None = None, updates: int | None = None
) -> bool:
    """Warn where credit has degenerated in nearly all completions; whether it has warned.

    A method that reads nothing, such as `random`, is as unequal as it is meant to be. It is warned of only where it
    knows itself why it left completions uniform. Nothing is warned of before the first update: some methods
    compare the policy with a new adapter, which changes nothing yet by design.

    Args:
        method: the credit method, whose `uniform_because` explains; or its name alone, without explanations.
        means: name of a diagnostic -> its mean over completions, see `Credit.diagnostics`.
        warned: the reasons that the user has been warned of in this run. They are not repeated, and a new one is added.
        updates: how often the policy has been updated.
    """
    warned = set() if warned is None else warned
    name = method if isinstance(method, str) else method.name
    explanations: Mapping[str, str] = getattr(method, "uniform_because", {})
    flag = next((flag for flag in FLAGS if means[flag] >= DEGENERATE), None)
    shares = {r: means.get(r, 0.0) for r in explanations} if flag == "broadcast" else {}
    reasons = sorted((r for r in shares if shares[r] >= WORTH_TELLING), key=lambda r: -shares[r])
    as_meant = not getattr(method, "needs", True) and sum(shares.values()) < DEGENERATE
    if flag is None or as_meant or updates == 0:
        return False
    reason = f"{flag}: {reasons[0] if reasons else 'no known reason'}"
    if reason in warned:
        return False
    warned.add(reason)
    why = "; ".join(f"in {shares[r]:.0%} of the completions {explanations[r]}" for r in reasons)
    warnings.warn(
        f"the credit of {name} is {FLAGS[flag]} in {means[flag]:.0%} of the completions (credit/{flag}): it hardly "
        f"tells tokens apart{'. Why: ' + why if why else ''}",
        UserWarning,
        stacklevel=2,
    )
    return True
