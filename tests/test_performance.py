"""docs/performance.md says what the kept figures say, and the limits in it follow from a model's shape."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch):
    """A module of benchmarks/, by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    return load


def test_every_number_regenerates(load):
    make = load("make")
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == make.page(make.kept())


def test_parts_that_were_not_measured_are_kept_or_said_to_be_missing(load, monkeypatch, tmp_path):
    make = load("make")
    part = make.kept()["p2t_cost"]
    monkeypatch.setattr(make, "KEPT", tmp_path / "measured.json")
    monkeypatch.setattr(make, "PAGE", tmp_path / "performance.md")
    make.keep({"p2t_cost": part})
    assert make.NOT_MEASURED in make.PAGE.read_text()
    make.keep({"long_context": make_long()})
    assert list(json.loads(make.KEPT.read_text())) == ["long_context", "p2t_cost"]


def make_long():
    spread = {"median": 1.0, "least": 0.5, "greatest": 2.0}
    both = {"forward": spread, "read": spread}
    machine = {"cpu": "a", "cores": 1, "threads": 1, "torch": "2", "transformers": "5"}
    ratios = {"seconds": both, "memory": both, "ratio": both, "memory_ratio": both}
    return {"machine": machine, "quick": True, "model": "m", "length": 8, "rounds": 1, **ratios}


def test_exponents_are_those_of_powers_and_none_where_noise_outweighs_the_cost(load):
    measure, lengths = load("measure"), [100, 200, 400]
    assert measure.exponent(lengths, [3 * n**1.5 for n in lengths]) == pytest.approx(1.5)
    assert measure.exponent(lengths, [1.0, -1.0, 1.0]) is None
    rounds = [[n, n**2, -1.0] for n in lengths]
    found = measure.exponents(lengths, rounds)
    assert found["without"] == 1
    assert (found["exponent"]["least"], found["exponent"]["greatest"]) == pytest.approx((1, 2))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells")
def test_memory_of_a_process_is_what_it_uses():
    """In a new process: one that has freed memory may be given it again, and no more is used."""
    code = "import torch, measure; print(measure.extra_memory(lambda: torch.ones(16 << 20).sum()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert 60 < float(found.stdout) < 100, found.stderr  # 64 MiB


def test_limits_agree_with_counted_operations(load):
    """A forward pass by torch's own count, in which attention is full, not its causal half."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = load("limits").Shape(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, feed_forward=48, vocabulary=64)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    n = 16
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Qwen3ForCausalLM(config)(torch.ones(1, n, dtype=torch.long), use_cache=False)
    half = 2 * shape.layers * shape.scores(n * n / 2)
    assert counter.get_total_flops() == shape.forward(n) + half
