"""docs/results.md says what the kept results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make():
    spec = importlib.util.spec_from_file_location("results_make", ROOT / "results" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_number_regenerates():
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == make().page()


def test_kept_results_are_small_and_hold_no_model_output():
    for path in (ROOT / "results").glob("*.json"):
        assert path.stat().st_size < 1_500_000
        content = json.loads(path.read_text())
        assert all("traces" not in policy for policy in content.get("policies", {}).values())


def test_a_run_is_kept_under_its_own_name(tmp_path, monkeypatch):
    module = make()
    monkeypatch.setattr(module, "HERE", tmp_path)
    run = tmp_path / "audit-mine"
    run.mkdir()
    (run / "audit.json").write_text(json.dumps({"config": {}, "policies": {"p": {"traces": [1], "tokens": 1.23456}}}))
    kept = module.add(run)
    assert kept == tmp_path / "audit-mine.json"
    assert json.loads(kept.read_text()) == {"config": {}, "policies": {"p": {"tokens": 1.235}}}
