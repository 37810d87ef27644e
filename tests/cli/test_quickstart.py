"""The whole story through the command line, with a budget of seconds."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.quickstart import _table
from tokencredit.testbed.quickstart import Quickstart

SMALL = ["quickstart", "--warmup-steps", "3", "--steps", "1", "--level", "1", "--evaluate-on", "10", "--prompts", "1"]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*args):
    return CliRunner().invoke(app, [*SMALL, *args])


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_it_trains_and_leaves_a_whole_run(tmp_path):
    result = run("--methods", "uniform,atpo,arca", "--out", "run")
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    for said in ("uniform", "atpo", "arca (LoRA)", "10 held-out problems", "run/report.html", "warm-up: 3/3"):
        assert said in result.output
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "results.json",
        "traces.jsonl",
    ]
    assert [row["method"] for row in rows(out / "metrics.jsonl")] == ["uniform", "atpo", "arca"]
    traces = rows(out / "traces.jsonl")
    for row in traces:
        n = len(row["tokens"])
        assert {"uniform", "atpo", row["source"]} <= row["credit"].keys()
        assert ("arca" in row["credit"]) == (row["source"] == "arca")
        for credit in row["credit"].values():
            assert len(credit["weights"]) == len(credit["advantages"]) == len(row["step_index"]) == n
        assert (row["first_error"] is None) == (row["reward"] == 1)
    assert {row["source"] for row in traces} == {"uniform", "atpo", "arca"}
    results = json.loads((out / "results.json").read_text())
    assert results["before"]["greedy"]["count"] == 10
    assert AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "atpo").config.model_type == "qwen3"
    assert (out / "checkpoints" / "arca" / "adapter_model.safetensors").is_file()

    refused = run("--out", "run")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output

    other = run("--methods", "uniform", "--steps", "2", "--out", "run", "--resume")
    assert other.exit_code == 2
    assert "other settings (budget)" in other.output

    more = run("--methods", "random", "--out", "run", "--resume")
    assert more.exit_code == 0, more.output
    assert "from the cache" in more.output
    assert json.loads((out / "config.json").read_text())["methods"] == ["uniform", "atpo", "arca", "random"]
    assert list(json.loads((out / "results.json").read_text())["methods"]) == ["uniform", "atpo", "arca", "random"]

    again = CliRunner().invoke(app, ["report", "run"])
    assert again.exit_code == 0, again.output


def test_a_method_with_parameters_is_a_method_of_its_own(tmp_path):
    """Beside the same method without them, in every file, and with a folder that any file system takes."""
    spec, odd = "atpo:floor=0.25", "rhythm:strategy=local,q=0.3,horizon=[1,4]"
    result = run("--methods", f"atpo,{spec},{odd}", "--out", "run")
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    results = json.loads((out / "results.json").read_text())["methods"]
    assert list(results) == ["atpo", spec, odd]
    assert [results[name]["params"]["floor"] for name in ("atpo", spec)] == [0.5, 0.25]
    assert [results[name]["checkpoint"] for name in ("atpo", spec)] == [
        "checkpoints/atpo",
        "checkpoints/atpo-floor=0.25",
    ]
    for row in results.values():
        assert (out / row["checkpoint"] / "model.safetensors").is_file()
        assert not set(row["checkpoint"]) & set('[]:"*')
    assert len(list((out / "checkpoints").iterdir())) == 3
    assert {row["source"] for row in rows(out / "traces.jsonl")} == {"atpo", spec, odd}
    assert all(row["credit"].keys() == {"atpo", spec, odd} for row in rows(out / "traces.jsonl"))
    assert spec in (out / "report.json").read_text()
    again = run("--methods", f"atpo,{spec},{odd}", "--out", "run", "--resume")
    assert f"{odd} is finished already" in again.output


def test_p2t_trains_its_reward_model_first(tmp_path):
    result = run("--methods", "p2t", "--reward-model-steps", "2", "--evaluate-on", "30", "--out", "run")
    assert result.exit_code == 0, result.output
    assert "process reward model: AUROC" in result.output
    row = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]["p2t"]
    assert row["reward_model"]["wrong"] > 0
    assert 0 <= row["reward_model"]["auroc"] <= 1
    traces = rows(tmp_path / "run" / "traces.jsonl")
    assert all(row["credit"]["p2t"]["weights"] is None for row in traces)
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_comparison_is_fair(monkeypatch):
    """Every method starts from the same weights and problems, none of them held out, and its own policy is judged."""
    import tokencredit.testbed.quickstart as quickstart

    started, judged, ended = [], [], []
    train, evaluate = quickstart.train, quickstart.evaluate

    def fingerprint(policy):
        return float(sum(p.detach().double().abs().sum() for p in policy.parameters()))

    def watched_train(checkpoint, tokenizer, task, m, training, held_out, budget, *args, **kwargs):
        assert not {p.prompt for p in training} & {p.prompt for p in held_out}
        started.append((fingerprint(checkpoint), [p.prompt for p in training], budget, task))
        trained = train(checkpoint, tokenizer, task, m, training, held_out, budget, *args, **kwargs)
        ended.append((m.name, trained.method, fingerprint(trained.policy)))
        return trained

    def watched_evaluate(policy, tokenizer, task, problems, **kwargs):
        assert all(map(quickstart_problems.is_held_out, problems))
        judged.append(fingerprint(policy))
        return evaluate(policy, tokenizer, task, problems, **kwargs)

    from tokencredit.testbed import problems as quickstart_problems

    monkeypatch.setattr(quickstart, "train", watched_train)
    monkeypatch.setattr(quickstart, "evaluate", watched_evaluate)
    assert run("--methods", "uniform,position", "--out", "run").exit_code == 0
    assert started[0] == started[1]
    assert [name for name, *_ in ended] == [used for _, used, _ in ended] == ["uniform", "position"]
    finals = [final for *_, final in ended]
    assert judged == [started[0][0]] * 2 + [finals[0]] * 2 + [finals[1]] * 2


def test_a_users_problems(tmp_path):
    problems = [{"nums": [a, b, 2], "target": a + b + 2} for a in range(1, 9) for b in range(1, 9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, problems)))
    result = run("--task", "countdown", "--problems", "mine.jsonl", "--methods", "uniform", "--out", "run")
    assert result.exit_code == 0, result.output
    prompts = {row["prompt"] for row in rows(tmp_path / "run" / "traces.jsonl")}
    assert prompts
    assert all(",2" in f",{p}" for p in prompts)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "nope"], "Valid methods"),
        (["--methods", "uniform,uniform"], "each once"),
        (["--methods", ","], "at least one method"),
        (["--task", "nope"], "Valid tasks"),
        (["--level", "7"], "unknown level"),
        (["--problems", "mine.jsonl"], "line 2: expected"),
        (["--problems", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_bad_input_ends_with_its_reason(tmp_path, args, message):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Q:a=1+2?a"}\n{"prompt": "?"}\n')
    result = run(*args, "--out", "run")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    import tokencredit.testbed.quickstart as quickstart

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "train", interrupt)
    result = run("--out", "run")
    assert result.exit_code == 130
    assert "--out run --resume" in result.output
    monkeypatch.undo()
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run("--out", "run", "--resume").exit_code == 0


def test_it_ends_with_the_report_and_commands_that_exist(tmp_path):
    """The name of the folder is printed as it is, though it looks like the console's markup."""
    result = run("--methods", "uniform", "--out", "run[red]")
    assert result.exit_code == 0, result.output
    end = result.output[result.output.index("report: ") :]
    assert end.startswith("report: run[red]/report.html\n")
    assert (tmp_path / "run[red]" / "report.html").is_file()
    named = re.findall(r"tokencredit (\w+)", end)
    assert named == ["quickstart", "score", "train"]
    for command in named:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0


def test_no_number_is_cut_off_beside_a_long_name():
    accuracy = {"value": 0.123, "low": 0.1, "high": 0.2, "count": 300}
    names = ["rhythm:strategy=coupled,q=0.3,amplification=1.7", "attnpo:heads=[[1,0],[2,1]]"]
    result = {
        "after": {"greedy": accuracy, "sampled": accuracy},
        "tokens": 123456789,
        "seconds": 12345,
        "adapter": True,
    }
    results = {"before": {"greedy": accuracy, "sampled": accuracy}, "methods": dict.fromkeys(names, result)}
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(_table(Quickstart(methods=tuple(names)), results))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split()[-8:] == [*["0.123", "[0.10,", "0.20]"] * 2, "123,456,789", "12345"] for line in lines) == 2
    first = min(line.index("0.123") for line in lines if "0.123" in line)
    column = "".join(line[:first].strip() for line in lines)
    assert all(f"{name}(LoRA)" in column for name in names)


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.startswith("tokencredit 0.")
