"""The layouts that rows of a user's file may have, and the one that is closest to a row that has none of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

PROMPT_NAMES = ("prompt", "question", "problem")
"""Names of the column of prompts; the first that a row has counts."""
COMPLETION_NAMES = ("completion", "response", "output", "generation")
"""Names of the column of completions; a row that has no `completion` has one of the others."""

_MEANT = {
    "prompt": ("input", "query", "instruction", "prompts"),
    "completion": ("completions", "text", "prediction", "model_output", "generated_text"),
    "answer": ("solution", "final_answer", "ground_truth"),
}
"""Names that may well mean a column, but are not taken for it without asking."""


class Layout(NamedTuple):
    """`example`: as it is shown in errors."""

    required: tuple[str, ...]
    example: str


TEXT = Layout(("prompt", "completion"), '{"prompt": "...", "completion": "..."}')
STEPS = Layout(
    ("prompt", "steps", "answer"),
    '{"prompt": "...", "steps": ["...", ...], "answer": "...", "essential": [true, null, ...]}',
)
PROCESSBENCH = Layout(("problem", "steps", "label"), '{"problem": "...", "steps": ["...", ...], "label": 1}')


def with_names(row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """A row whose prompt and completion have these names, whatever the aliases that it uses.

    Raises:
        ValueError: several columns may be the completion.
    """
    named = dict(row)
    if "prompt" in layout.required and row.get("prompt") is None:
        named["prompt"] = next((row[name] for name in PROMPT_NAMES if row.get(name) is not None), None)
    if "completion" in layout.required and row.get("completion") is None:
        candidates = [name for name in COMPLETION_NAMES if row.get(name) is not None]
        if len(candidates) > 1:
            raise ValueError(f"{' and '.join(candidates)} may each be the completion: name one of them completion")
        named["completion"] = row[candidates[0]] if candidates else None
    return named


def holds(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column, under any of its names, that is not null."""
    return any(row.get(alias) is not None for alias in _aliases(name))


def check_single(row: Mapping[str, Any]) -> None:
    """Raise a ValueError where a row is in both layouts."""
    if isinstance(row.get("steps"), list) and row.get("completion") is not None:
        raise ValueError("the row has both a completion and steps, which are two layouts: leave one of them out")


def mismatch(row: Mapping[str, Any], layouts: Sequence[Layout]) -> str:
    """What was expected of a row: the closest layout, and what is to be renamed, added or filled in."""
    names = [name for name, value in row.items() if value is not None]
    layout = max(layouts, key=lambda layout: _closeness(names, layout))
    advice = []
    for name in _lacking(names, layout):
        similar_name = similar(name, names, layout.required)
        empty = next((alias for alias in _aliases(name) if alias in row), None)
        lack = f"{empty} is empty" if empty else f"{name} is missing"
        advice.append(f"rename {similar_name} to {name}" if similar_name else lack)
    closest = "the closest layout; " if len(layouts) > 1 else ""
    return f"expected {layout.example}: {closest}the row has {_listed(names)}{''.join(f'; {a}' for a in advice)}"


def _lacking(names: Collection[str], layout: Layout) -> list[str]:
    return [name for name in layout.required if not any(alias in names for alias in _aliases(name))]


def _aliases(name: str) -> tuple[str, ...]:
    return {"prompt": PROMPT_NAMES, "completion": COMPLETION_NAMES}.get(name, (name,))


def _closeness(names: Collection[str], layout: Layout) -> float:
    lacking = _lacking(names, layout)
    renamable = sum(similar(name, names, layout.required) is not None for name in lacking)
    return len(layout.required) - 2 * len(lacking) + 1.5 * renamable


def similar(name: str, names: Collection[str], taken: Collection[str] = ()) -> str | None:
    """The one of a row's columns that seems to be meant by `name`, unless it is one of those that are `taken`."""
    free = {other.lower(): other for other in names if other not in taken}
    known = next((alias for alias in (*_aliases(name), *_MEANT.get(name, ())) if alias in free), None)
    close = [known] if known else get_close_matches(name, free, n=1, cutoff=0.75)
    return free[close[0]] if close else None


def _listed(names: Collection[str]) -> str:
    shown = list(map(str, names))[:12]
    return f"{', '.join(shown) or 'nothing'}{', ...' if len(names) > 12 else ''}"
