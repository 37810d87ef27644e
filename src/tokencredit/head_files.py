"""Head files: which heads of which model are key-focus heads, in JSON, to keep beside a training config."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

_FORM = (
    'expected {"model": "...", "heads": [{"layer": 1, "head": 0, "sra": 0.97, "pairs": 281}, ...], "completions": 148, '
    '"labels": "..."}, at least one head, as `tokencredit heads --out` writes it'
)


class HeadRank(NamedTuple):
    """`sra`: the step ranking accuracy of a head, over `pairs` of an essential and a redundant step."""

    layer: int
    head: int
    sra: float
    pairs: int


@dataclass(frozen=True)
class HeadFile:
    """Heads, best first, and where they come from.

    Attributes:
        model: the signature of their model (`tokencredit.signals.model_signature`): its shape, and a fingerprint of its
            embeddings by which a model trained from it is known, and another one of the same shape is not. Older files
            have the shape alone, and are checked by it alone.
        heads: usually the first few of `rank_heads`.
        completions: on how many completions they were ranked. labels: what said which steps are essential.
    """

    model: str
    heads: tuple[HeadRank, ...]
    completions: int
    labels: str

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of each head, as AttnPO takes them."""
        return tuple((rank.layer, rank.head) for rank in self.heads)

    def write(self, path: str | PathLike[str]) -> None:
        content = {**asdict(self), "heads": [rank._asdict() for rank in self.heads]}
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | PathLike[str]) -> HeadFile:
        """
        Raises:
            ValueError: there is no such file, or it is no head file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            heads = tuple(HeadRank(**row) for row in content["heads"])
            found = cls(**{**content, "heads": heads})
        except FileNotFoundError:
            raise ValueError(f"there is no head file {path}: `tokencredit heads` writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a head file ({error}): {_FORM}") from None
        found._check(path)
        return found

    def _check(self, path: Any) -> None:
        numbers = [value for rank in self.heads for value in (rank.layer, rank.head, rank.pairs)]
        if not self.heads or not all(type(n) is int for n in numbers) or not isinstance(self.model, str):
            raise ValueError(f"{path} is not a head file: {_FORM}")
