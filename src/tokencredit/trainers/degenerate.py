"""Tells the user of credit that hardly tells tokens apart."""

from __future__ import annotations

import warnings

DEGENERATE = 0.9
"""Share of completions whose credit is flagged from which on the user is told."""


def warn_if_degenerate(name: str, means: dict[str, float]) -> bool:
    for flag, what in (("broadcast", "as good as uniform"), ("sparse", "on a few tokens only")):
        if means[flag] >= DEGENERATE:
            warnings.warn(
                f"the credit of {name} is {what} in {means[flag]:.0%} of the completions (credit/{flag}; "
                f"{means['no_answer']:.0%} have no answer span): it hardly tells tokens apart",
                UserWarning,
                stacklevel=2,
            )
            return True
    return False
