"""What long work tells of itself: how far it is, and how long it will take."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what happens, stage by stage."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, done: int, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


class NoProgress:
    """For callers that do not want to be told."""

    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, done: int, note: str = "") -> None:
        pass

    def message(self, text: str) -> None:
        pass


def duration_in_words(seconds: float) -> str:
    """An estimate of a duration, no more precise than it can be: "about 12 minutes"."""
    if seconds < 45:
        return "less than a minute"
    if seconds < 90:
        return "about a minute"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
