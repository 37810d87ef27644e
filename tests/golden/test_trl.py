"""The first steps of training with TRL are what they were when they were recorded: losses, gradients and parameters.

Completions are sampled, so the runs agree as long as no probability that rounds differently on another CPU tips the
choice of a token. The tolerance is that of the credit, and allows for the rounding of float32 over two updates. Other
versions of TRL and torch may sample otherwise; the values were recorded with those in constraints.txt.
"""

from __future__ import annotations

import pytest
import torch
import trl_runs
from golden_files import TRL, flat, read

STEPS = 2


@pytest.fixture(scope="module")
def golden():
    return read(TRL)


@pytest.mark.parametrize("run", trl_runs.KEPT, ids=lambda run: run.name)
def test_the_first_steps_are_what_they_were(run, golden):
    """The recorded run is longer; what it logs starts with what this one logs."""
    found = flat({run.name: trl_runs.recorded(run, STEPS)})
    expected = {key: value for key, value in golden.items() if key.startswith(f"{run.name} | ")}
    assert found.keys() == expected.keys()
    assert len(found[f"{run.name} | loss"]) == STEPS
    for key, values in found.items():
        if isinstance(values, str):
            continue  # the hash is of the last parameters, bit for bit, and for `record.py --compare`
        assert 0 < len(values) <= STEPS
        start = expected[key][: len(values)]
        torch.testing.assert_close(values, start, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
