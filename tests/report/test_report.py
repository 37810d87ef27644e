"""Each command's folder becomes a page that says what was measured, twice: as HTML and as JSON."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_policy
from report_rows import row, wrong

from tokencredit.cli.outputs import claim_folder
from tokencredit.head_files import HeadRank
from tokencredit.report import write_report
from tokencredit.testbed.runs import RunFolder

CONFIG = {
    "command": "quickstart",
    "task": "gather",
    "seed": 0,
    "tokencredit": "0.1.0",
    "budget": {"steps": 3, "prompts": 4, "group_size": 8},
    "methods": ["uniform"],
}
ACCURACY = {"value": 0.456, "low": 0.4, "high": 0.5, "count": 300, "tokens": 30.0}


@pytest.fixture
def quickstart(tmp_path):
    claim_folder(tmp_path / "run", CONFIG, overwrite=True)
    folder = RunFolder(tmp_path / "run")
    folder.record_before({"greedy": ACCURACY, "sampled": ACCURACY})
    for step in (1, 2):
        folder.record_step(
            {
                "method": "uniform",
                "step": step,
                "reward": step / 4,
                "accuracy": 0.5,
                "credit/gini": 0.125,
                "credit/sparse": 1.3e-8,
            }
        )
    after = {**ACCURACY, "value": 0.812}
    result = {"after": {"greedy": after, "sampled": after}, "seconds": 12.3, "tokens": 98765, "adapter": True}
    folder.record_heads([HeadRank(1, 0, 0.9, 20), HeadRank(0, 0, 0.4, 20)])
    folder.record_method("uniform", result, [row(source="uniform"), wrong(source="uniform")], tiny_policy())
    return folder.path


def tree(page):
    found = json.loads((page.parent / "report.json").read_text())
    return found, {g["id"]: {f["title"]: f for f in g["figures"]} for g in found["groups"]}


def audit_json(policies=("before RL", "after RL")):
    def score(value, informative=None):
        estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
        leads = {
            name: {"value": 0.4, "low": 0.25, "high": 0.5} for name in ("over_shuffled", "over_trivial", "over_token")
        }
        return {"estimate": estimate, "completions": 9, "informative": informative, **leads}

    rows = [
        {"name": "atpo", "kind": "method", "scores": {"step_ranking": score(0.9, True)}},
        {"name": "atpo, shuffled", "kind": "control", "scores": {"step_ranking": score(0.5)}},
        {"name": "oracle", "kind": "control", "scores": {"step_ranking": score(1.0), "error_hit_1": score(1.0)}},
    ]
    policy = {
        "completions": 9,
        "correct": 5,
        "rows": rows,
        "agreement": {"atpo": {"atpo": 1.0, "p2t": -0.25}, "p2t": {"atpo": -0.25, "p2t": 1.0}},
        "left_out": {"arca": "it reads a LoRA adapter, and this policy has none"},
        "traces": [{k: v for k, v in row(truth=[1.0, 1.0, 1.0, 0.0, 0.0]).items() if k != "source"}],
        "values": {
            "completions": 4,
            "ceilings": [{"samples": 2, "attainable": 0.5}, {"samples": 4, "attainable": None}],
            "size_ceilings": [{"samples": 2, "attainable": 0.25}],
        },
    }
    return {"config": {"command": "audit", "task": "gather", "seed": 0}, "policies": dict.fromkeys(policies, policy)}


def run_of(arm, checkpoint, accuracy, rate=3e-4):
    return {
        "arm": arm, "learning_rate": rate, "checkpoint": checkpoint, "seed": 0, "before": 0.4,
        "accuracy": {"5": accuracy - 0.1, "10": accuracy}, "reward": [0.5, 0.75], "length": [30.0, 31.0],
        "gini": [0.0, 0.1], "effective_ratio": [1.0, 0.9], "credit_seconds": 1.0, "seconds": 10.0, "tokens": 100,
    }  # fmt: skip


def compare_json():
    runs = [run_of("uniform", 0, 0.7), run_of("uniform", 1, 0.75), run_of("atpo", 0, 0.85), run_of("atpo", 1, 0.9)]
    config = {
        "command": "compare", "task": "gather", "checkpoints": [0, 1], "seeds": [0], "learning_rates": [3e-4],
        "budget": {"steps": 10},
    }  # fmt: skip
    return {"config": config, "target": 0.7, "runs": runs}


def test_a_quickstart(quickstart, visit):
    page = write_report(quickstart)
    found, groups = tree(page)
    greedy = {r["name"]: (r["value"], r["low"], r["high"]) for r in groups["accuracy"]["Greedy accuracy"]["rows"]}
    assert greedy == {"before": (0.456, 0.4, 0.5), "uniform": (0.812, 0.4, 0.5)}
    curves = {title: figure["series"][0]["points"] for title, figure in groups["training"].items()}
    accuracy = curves["Greedy accuracy on held-out problems"]
    assert accuracy[0] == [0, 0.456, 0.4, 0.5]
    # Wilson's interval of 150 right in 300.
    assert accuracy[1:] == [
        [step, 0.5, pytest.approx(0.4437, abs=1e-4), pytest.approx(0.5563, abs=1e-4)] for step in (1, 2)
    ]
    assert curves["Mean reward of the rollouts"] == [[1, 0.25], [2, 0.5]]
    (cost,) = groups["cost"].values()
    told = dict(zip(cost["columns"], cost["rows"][0], strict=True))
    assert (told["method"], told["gini"], told["sparse"]) == ("uniform (LoRA)", 0.125, 0.0)
    tab = visit(page)
    assert tab.locator("h1").text_content() == found["title"]
    assert groups["heads"]["Key-focus heads"]["values"] == [[0.4], [0.9]]
    text = tab.locator("main").text_content()
    for told in ("98,765", "300 held-out problems", "uniform (LoRA)", "0.125", "1+6"):
        assert told in text
    assert tab.locator("#list li").count() == 2


def test_an_audit(tmp_path, visit):
    (tmp_path / "audit.json").write_text(json.dumps(audit_json()))
    page = write_report(tmp_path)
    found, groups = tree(page)
    assert list(groups) == ["audit-before-rl", "audit-after-rl"]
    ranking = groups["audit-after-rl"]["Step ranking accuracy"]
    assert [(r["name"], r["filled"], r["muted"]) for r in ranking["rows"]] == [
        ("oracle", False, True),
        ("atpo", True, False),
    ]
    assert ranking["reference"] == 0.5
    assert groups["audit-after-rl"]["First error, hit@1"]["reference"] is None
    assert groups["audit-after-rl"]["Do methods agree?"]["values"] == [[1.0, -0.25], [-0.25, 1.0]]
    assert "arca: it reads a LoRA adapter" in found["groups"][0]["note"]
    assert ranking["bounds"] == [0.0, 1.0]
    tab = visit(page)
    first = tab.locator("main section").first
    assert first.get_attribute("id") == "audit-before-rl", "an audit opens with its leaderboards"
    assert tab.locator("#list b").all_text_contents() == ["1 before RL", "2 after RL"]
    assert tab.locator("#panes figcaption strong").all_text_contents()[-1] == "ground truth"
    assert tab.locator("#audit-before-rl figure").count() == 5
    (lead,) = groups["audit-before-rl"]["Paired differences to what knows nothing"]["rows"]
    assert lead == ["atpo", "Step ranking accuracy", 0.9, *["+0.40 [+0.25, +0.50]"] * 3]


def test_a_comparison(tmp_path, visit):
    (tmp_path / "config.json").write_text(json.dumps(compare_json()["config"]))
    with pytest.raises(ValueError, match="not finished"):
        write_report(tmp_path)
    (tmp_path / "compare.json").write_text(json.dumps(compare_json()))
    page = write_report(tmp_path)
    _, groups = tree(page)
    (gain,) = groups["best"]["Gain in area over uniform credit"]["rows"]
    assert gain["name"] == "atpo"
    assert gain["value"] == pytest.approx(0.1125)
    final = {r["name"]: r["value"] for r in groups["best"]["Final accuracy"]["rows"]}
    assert final == pytest.approx({"uniform": 0.725, "atpo": 0.875})
    curve = groups["curves"]["Greedy accuracy on held-out problems"]["series"][1]
    assert curve["name"] == "atpo"
    assert [point[:2] for point in curve["points"]] == [[0, 0.4], [5, pytest.approx(0.775)], [10, pytest.approx(0.875)]]
    tab = visit(page)
    assert tab.locator("#traces").is_hidden()
    assert tab.locator("#curves path.series").count() == 10


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"end_of_reasoning": "</reasoning>"}, "</reasoning>"),
        ({"end_of_reasoning": "</think>", "answer": "auto"}, "\\boxed{"),
        ({"end_of_reasoning": "</think>", "answer": "####"}, "answer"),
    ],
)
def test_scores_name_what_stands_before_the_answer(tmp_path, visit, config, name):
    asked = {"command": "score", "model": "m", "traces": "t", "methods": "atpo", "advantages": "sign", "left_out": {}}
    (tmp_path / "config.json").write_text(json.dumps(asked | config))
    tokens = ["so", "</reasoning>", "\\boxed{", "7", "}"]
    (tmp_path / "scores.jsonl").write_text(json.dumps(row(tokens=tokens, answer_start=2)) + "\n")
    tab = visit(write_report(tmp_path))
    assert tab.locator("#behind .table strong").text_content() == f"First ten, around {name}, last ten"


def test_what_is_no_finished_run(tmp_path):
    old = audit_json()
    del old["policies"]["before RL"]["traces"]
    (tmp_path / "audit.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="not finished, or another version"):
        write_report(tmp_path)
    (tmp_path / "audit.json").write_text('{"config": null}')
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "audit.json").unlink()
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="broken"):
        write_report(tmp_path)
    claim_folder(tmp_path / "run", CONFIG, overwrite=False)
    with pytest.raises(ValueError, match="no finished method"):
        write_report(tmp_path / "run")
