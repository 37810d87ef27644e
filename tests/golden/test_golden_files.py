"""The comparison of recordings sees every bit, and both kinds of file give back what was written."""

from __future__ import annotations

import pytest
import torch
from golden_files import flat, read, report, write_runs, write_tensors

BEFORE = {"m | c | weights": torch.tensor([1.0, 0.0]), "m | c | bonus": torch.tensor([2.0]), "m | d | hash": "ab"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"m | c | weights": torch.nextafter(BEFORE["m | c | weights"], torch.tensor(9.0))},
            "m | c: weights: 1.19e-07",
        ),
        ({"m | c | weights": torch.tensor([1.0, -0.0])}, "m | c: weights: other signs of zero"),
        ({"m | c | weights": torch.tensor([1.0, float("nan")])}, "m | c: weights: NaN"),
        ({"m | c | bonus": torch.tensor([2.0], dtype=torch.float64)}, "m | c: bonus: torch.float32 (1,) before"),
        ({"m | c | bonus": torch.tensor([[2.0]])}, "m | c: bonus: torch.float32 (1,) before"),
        ({"m | d | hash": "ac"}, "m | d: hash: other bytes"),
        ({"m | d | new": torch.tensor([1.0])}, "only after: m | d | new"),
    ],
)
def test_any_difference_is_reported(changed, said):
    equal, lines = report(BEFORE, {**BEFORE, **changed})
    assert not equal
    assert any(line.startswith(said) for line in lines)


def test_equal_recordings_are_equal():
    assert report(BEFORE, {key: value.clone() if key != "m | d | hash" else "ab" for key, value in BEFORE.items()}) == (
        True,
        ["equal bit for bit: 2 cases, 3 values"],
    )
    equal, lines = report(BEFORE, {})
    assert not equal
    assert len(lines) == 4


def test_a_recording_is_read_as_it_was_written(tmp_path):
    tensors = {"m | c | weights": torch.rand(3, 4)}
    write_tensors(tmp_path / "a.safetensors.gz", tensors)
    write_tensors(tmp_path / "b.safetensors.gz", tensors)
    assert report(tensors, read(tmp_path / "a.safetensors.gz"))[0]
    assert (tmp_path / "a.safetensors.gz").read_bytes() == (tmp_path / "b.safetensors.gz").read_bytes()
    runs = {"run": {"loss": [0.1, 1 / 3], "hash": "ab"}, "other": {"loss": []}}
    write_runs(tmp_path / "a.json", runs)
    assert report(flat(runs), read(tmp_path / "a.json"))[0]
