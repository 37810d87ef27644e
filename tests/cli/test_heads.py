"""`tokencredit heads` on testbed policies and on a user's own completions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokencredit as tc
from tokencredit.cli import app
from tokencredit.cli.models import load_policy
from tokencredit.completions import load_completions
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
ROW = {"prompt": "Q:a=1+2?a\n", "steps": ["a=1+2=3;", "wait;</think>"], "answer": "3}", "essential": [True, False]}
FEW = ("--min-pairs", 1, "--min-completions", 1)


def plain(n, **fields):
    """A completion of three steps, one in each line; each n makes another prompt and other steps."""
    steps = f"a={n}+2=3;\nb=4+{n}=5;\nc=a+b=8;</think>"
    return {"prompt": f"Q:a={n}+2?a\n", "completion": f"{steps}{n}}}", **fields}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two checkpoints of one small model, with a tokenizer, labelled completions, and plain ones, two of them wrong."""
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name, seed in (("one", 0), ("two", 1)):
        build_policy(SIZE, seed).save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    write(tmp_path / "mine.jsonl", [ROW] * 3)
    write(tmp_path / "plain.jsonl", [plain(n, reward=float(n not in (3, 7))) for n in range(14)])
    return tmp_path


def run(*args):
    return CliRunner().invoke(app, ["heads", *map(str, args)])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def by_ablation(models, *args, threshold=0.0):
    return (
        models / "one", "--traces", models / "plain.jsonl", "--labels", "ablation", "--splitter", "newline",
        "--threshold", threshold, *args,
    )  # fmt: skip


def drops(models):
    """What the answers of the correct plain completions lose without each step, with the policy and the completions."""
    policy, tokenizer = load_policy(str(models / "one"))
    rollouts = load_completions(models / "plain.jsonl", tokenizer, "newline").rollouts
    right = rollouts.rows(rollouts.rewards.nonzero().flatten())
    return policy, right, *tc.ablate_steps(policy, right)


def test_a_users_model_and_labels(models):
    out = models / "heads.json"
    succeed(models / "one", "--traces", models / "mine.jsonl", "--out", out, "--top", 2, *FEW)
    found = tc.HeadFile.read(out)
    assert len(found.heads) == 2
    assert found.completions == 3
    assert {rank.pairs for rank in found.heads} == {3}
    assert (models / "heads.svg").read_text().startswith("<svg")
    m = tc.method("attnpo", heads=str(out))
    assert m.model == tc.signals.model_signature(build_policy(SIZE))


def test_plain_completions_are_labelled_by_ablation_of_correct_ones(models):
    policy, right, drop, exists = drops(models)
    threshold = drop[exists].median().item()
    out = models / "heads.json"
    said = succeed(*by_ablation(models, "--out", out, "--top", 4, *FEW, threshold=threshold))
    assert "12 of 14 completions can be used: 2 are wrong" in said
    # Each of the twelve as it is, and without each of its three steps.
    assert "the model reads 48 sequences" in said
    assert "3 forward passes of 16" in said
    found = tc.HeadFile.read(out)
    essential = drop > threshold
    ranks = tc.rank_heads(policy, right, essential, exists)
    assert [rank[:2] for rank in found.heads] == [rank[:2] for rank in ranks]
    assert [rank.sra for rank in found.heads] == pytest.approx([rank.sra for rank in ranks])
    with_pairs = int(((exists & essential).any(1) & (exists & ~essential).any(1)).sum())
    assert found.completions == found.held_out.prompts == with_pairs >= 8
    assert all(rank.low <= rank.sra <= rank.high for rank in found.heads)
    assert f"threshold {threshold:g} nats, splitter newline" in found.labels
    assert '--credit_params \'{"heads":' in said
    assert "--credit_splitter newline" in said


def test_completions_that_do_not_say_whether_they_are_correct_are_not_used(models):
    rows = [plain(n, correct=[True, False, None][n % 3]) for n in range(9)]
    rows += [plain(0, correct=True) | {"completion": "a=0+2=3;"}, plain(1, correct=True) | {"completion": "</think>3"}]
    write(models / "plain.jsonl", rows)
    said = succeed(*by_ablation(models, *FEW, "--limit", 2))
    reasons = (
        "3 are wrong and 3 do not say whether they are correct and 1 come after the first --limit and 1 have no answer "
        "span and 1 have a single step"
    )
    assert f"2 of 11 completions can be used: {reasons}" in said
    write(models / "plain.jsonl", [plain(n) for n in range(9)])
    result = run(*by_ablation(models))
    assert result.exit_code == 2
    assert "9 do not say whether they are correct" in result.output
    assert 'Give each completion "correct" or "reward"' in result.output


def test_rewards_that_are_no_verdict_need_a_threshold(models):
    write(models / "plain.jsonl", [plain(n, reward=n / 10) for n in range(10)])
    result = run(*by_ablation(models, *FEW))
    assert result.exit_code == 2
    assert "give --correct-threshold X" in result.output
    said = succeed(*by_ablation(models, *FEW, "--correct-threshold", 0.5))
    assert "5 of 10 completions can be used: 5 are wrong" in said


def test_labelled_completions_are_ablated_too_unless_they_are_wrong(models):
    write(models / "mine.jsonl", [ROW, {**ROW, "correct": True}, {**ROW, "correct": False}])
    result = run(models / "one", "--traces", models / "mine.jsonl", "--labels", "ablation", "--threshold", -100, *FEW)
    assert result.exit_code == 2
    assert "2 of 3 completions can be used: 1 are wrong" in result.output
    assert "4 of 4 steps lose more than -100" in result.output
    assert "The labels give 0 pairs" in result.output


def test_too_few_pairs_or_completions_are_refused_before_the_model_reads_a_step(models):
    args = (models / "one", "--traces", models / "mine.jsonl")
    for options, message in (
        ((), "3 pairs of an essential and a redundant step in 3 completions, too few to rank heads"),
        (("--min-pairs", 3), "in 8 completions (--min-completions)"),
        (("--min-completions", 3), "20 pairs (--min-pairs)"),
        ((*FEW, "--limit", 1, "--min-pairs", 2), "With --limit 1, the labels give 1 pairs"),
        (("--labels", "ablation"), "They would give at most 3 pairs"),
    ):
        result = run(*args, *options)
        assert result.exit_code == 2, options
        assert message in result.output
        assert "sequences" not in result.output


def test_what_is_printed_is_whole_at_80_columns(models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = models / "heads.json"
    said = succeed(*by_ablation(models, *FEW, "--out", out, "--rhythm", "--against", models / "two"))
    found = tc.HeadFile.read(out)
    for rank in found.heads:
        interval = "no interval" if rank.low is None else f"[{rank.low:.3f}, {rank.high:.3f}]"
        assert f"{rank.layer} {rank.head} {rank.sra:.3f} {interval} {rank.pairs} {rank.tied}" in said
    assert f"on held-out prompts: {found.held_out.sra:.3f}" in said
    assert "…" not in said
    for part in (
        "by position alone",
        "stability",
        "lowest of all 4",
        "rhythm: 12 completions",
        "entropy at",
        "Jaccard",
    ):
        assert part in said


def test_a_users_model_needs_nothing_of_the_testbed(models, monkeypatch):
    """As without the extra quickstart: the testbed and its packages cannot be imported."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in [name for name in sys.modules if name.startswith(("tokencredit.testbed", "tokencredit.report"))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tokencredit.report.charts", None)
    out = models / "heads.json"
    said = succeed(models / "one", "--traces", models / "mine.jsonl", "--rhythm", "--out", out, *FEW)
    assert 'a picture beside it needs tokencredit.report.charts: pip install "tokencredit[quickstart]"' in said
    assert tc.HeadFile.read(out).completions == 3
    assert "needs" in run().output


def test_completions_that_do_not_count_are_said(models):
    write(models / "some.jsonl", [ROW, ROW, {**ROW, "essential": [True, None]}])
    said = succeed(models / "one", "--traces", models / "some.jsonl", *FEW)
    assert "heads are ranked on 2 of 3 completions: 1 do not have both an essential and a redundant" in said
    assert "ranked on" not in succeed(models / "one", "--traces", models / "mine.jsonl", *FEW)


def test_files_that_are_there_are_kept_unless_they_are_to_be_replaced(models):
    args = (models / "one", "--traces", models / "mine.jsonl", *FEW, "--out", models / "heads.json")
    for name in ("heads.json", "heads.svg"):
        (models / name).write_text("mine")
        result = run(*args)
        assert result.exit_code == 2
        assert f"{name} exists" in " ".join(result.output.split())
        assert (models / name).read_text() == "mine"
        (models / name).unlink()
    (models / "heads.json").write_text("mine")
    succeed(*args, "--overwrite")
    assert len(tc.HeadFile.read(models / "heads.json").heads) == 3


def test_traces_longer_than_the_context(models):
    config = models / "one" / "config.json"
    content = json.loads(config.read_text())
    write(
        models / "plain.jsonl",
        [plain(n, reward=1.0) for n in range(4)] + [plain(4, reward=1.0) | {"completion": "1" * 300}],
    )
    config.write_text(json.dumps({**content, "max_position_embeddings": 60}))
    result = run(*by_ablation(models, *FEW))
    assert result.exit_code == 2
    assert "1 of 5 traces are longer than the model's context of 60 tokens" in result.output
    said = succeed(*by_ablation(models, *FEW, "--long-traces", "skip"))
    assert "note: 1 trace is longer" in said
    assert "4 of 4 completions can be used" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", "guess"], "exact or ablation"),
        (["--out", "heads.svg"], "must name a .json file"),
        (["--out", "nowhere/heads.json"], "a folder that exists"),
        (["one", "--traces", "mine.jsonl", "--out", "./mine.jsonl", "--overwrite"], "would be lost"),
        (["absent", "--traces", "mine.jsonl"], "cannot be loaded"),
        (["one", "--traces", "mine.jsonl", "--against", "absent"], "cannot be loaded"),
        (["--traces", "mine.jsonl"], "needs the MODEL"),
        (["absent"], "cannot be loaded"),
        (["--task", "nope"], "Valid tasks"),
        (["--splitter", "newline", "--chat"], "--splitter and --chat can be given with --traces only"),
        (["one", "--traces", "mine.jsonl", "--completions", "5"], "--completions can be given without --traces only"),
        (["one", "--traces", "mine.jsonl", "--splitter", "newline"], "splitter would have no effect"),
        (["one", "--traces", "plain.jsonl"], "--labels ablation"),
        (["one", "--traces", "plain.jsonl", "--splitter", "lines"], "unknown splitter"),
        (["one", "--traces", "plain.jsonl", "--long-traces", "cut"], "refuse, skip, truncate"),
        (["one", "--traces", "plain.jsonl", "--threshold", "nan"], "finite"),
        (["one", "--traces", "mine.jsonl", "--correct-threshold", "1"], "goes with --labels ablation"),
        (["one", "--traces", "plain.jsonl", "--labels", "ablation"], "10 have no"),
    ],
)
def test_bad_input_ends_with_its_reason(models, monkeypatch, args, message):
    monkeypatch.chdir(models)
    if message == "10 have no":
        write(Path("plain.jsonl"), [plain(n, correct=True) | {"completion": "3"} for n in range(10)])
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output
