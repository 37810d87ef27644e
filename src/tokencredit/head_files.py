"""Head files: which heads of which model are key-focus heads, in JSON, to keep beside a training config."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from tokencredit.files import write_text

_FORM = (
    'expected {"model": "...", "heads": [{"layer": 1, "head": 0, "sra": 0.97, "pairs": 281}, ...], "completions": 148, '
    '"labels": "..."}, at least one head, as `tokencredit heads --out` writes it'
)


class HeadRank(NamedTuple):
    """How well a head ranks essential above redundant steps.

    `sra` is its step ranking accuracy over `pairs` of an essential and a redundant step. In `tied` of them it attends
    equally to both steps; these count half. `low` and `high` bound the 95 % interval, where one was computed.
    """

    layer: int
    head: int
    sra: float
    pairs: int
    tied: int = 0
    low: float | None = None
    high: float | None = None


class HeldOut(NamedTuple):
    """The step ranking accuracy of the best heads on prompts that they were not chosen on.

    `low` and `high` bound its 95 % interval; they are None where there are too few prompts for one, or all of them have
    the same accuracy. `prompts` is how many prompts there are, and `shared` how many heads both halves choose.
    """

    sra: float
    low: float | None
    high: float | None
    prompts: int
    shared: int


@dataclass(frozen=True)
class HeadFile:
    """Heads, best first, and where they come from.

    Attributes:
        model: the signature of their model (`tokencredit.signals.model_signature`): its shape, and a fingerprint of its
            embeddings by which a model trained from it is known, and another one of the same shape is not. Older files
            have the shape alone, and are checked by it alone.
        heads: usually the first few of `rank_heads`.
        completions: on how many completions they were ranked. labels: what said which steps are essential.
        held_out: their accuracy on other prompts than those they were chosen on, where it was measured.
    """

    model: str
    heads: tuple[HeadRank, ...]
    completions: int
    labels: str
    held_out: HeldOut | None = None

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of each head, as AttnPO takes them."""
        return tuple((rank.layer, rank.head) for rank in self.heads)

    def write(self, path: str | PathLike[str]) -> None:
        held_out = None if self.held_out is None else self.held_out._asdict()
        content = {**asdict(self), "heads": [rank._asdict() for rank in self.heads], "held_out": held_out}
        write_text(Path(path), json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | PathLike[str]) -> HeadFile:
        """
        Raises:
            ValueError: there is no such file, or it is no head file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            heads = tuple(HeadRank(**row) for row in content["heads"])
            held_out = content.get("held_out")
            held_out = None if held_out is None else HeldOut(**held_out)
            found = cls(**{**content, "heads": heads, "held_out": held_out})
        except FileNotFoundError:
            raise ValueError(f"there is no head file {path}: `tokencredit heads` writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a head file ({error}): {_FORM}") from None
        found._check(path)
        return found

    def _check(self, path: Any) -> None:
        numbers = [value for rank in self.heads for value in (rank.layer, rank.head, rank.pairs)]
        known = all(type(rank.sra) in (int, float) and 0 <= rank.sra <= 1 for rank in self.heads)
        if not (self.heads and known and all(type(n) is int for n in numbers) and isinstance(self.model, str)):
            raise ValueError(f"{path} is not a head file: {_FORM}")
