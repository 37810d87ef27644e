"""Supervised fine-tuning, on a tiny policy."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cli.terminal import Bars
from tokencredit.supervised import Lesson, Supervision, fine_tune, load_lessons
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
RECIPE = Supervision(steps=6, batch_size=3, learning_rate=1e-2, save_every=2)
LESSONS = [Lesson([5, 6 + i], [7 + i, 8 + i, 9][: 1 + i % 3]) for i in range(7)]


def flat(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def losses(policy, lessons=LESSONS, recipe=RECIPE, **options):
    found = {}
    fine_tune(policy, lessons, recipe, on_step=found.__setitem__, **options)
    return found


def test_the_loss_is_the_mean_over_the_completions_tokens():
    policy = build_policy(SIZE).eval()
    lessons, total, count = LESSONS[:3], 0.0, 0
    for prompt, completion in lessons:
        with torch.no_grad():
            logprobs = policy(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        for i, token in enumerate(completion):
            total -= float(logprobs[len(prompt) + i - 1, token])
            count += 1
    found = losses(policy, lessons, Supervision(steps=1, batch_size=3))
    assert found[1] == pytest.approx(total / count, rel=1e-5)


def test_it_learns_and_every_lesson_counts():
    policy = build_policy(SIZE)
    found = losses(policy, recipe=Supervision(steps=80, batch_size=7, learning_rate=1e-2))
    assert found[80] < 0.1 * found[1]
    assert not policy.training
    for prompt, completion in LESSONS:
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    whole = build_policy(SIZE)
    losses(whole)

    class Interrupted(Exception):
        pass

    def stop(step, loss):
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        fine_tune(build_policy(SIZE), LESSONS, RECIPE, checkpoint=tmp_path / "checkpoint", on_step=stop)
    resumed = build_policy(SIZE)
    found = losses(resumed, checkpoint=tmp_path / "checkpoint")
    assert list(found) == [4, 5, 6]
    assert torch.equal(flat(resumed), flat(whole))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    losses(build_policy(SIZE), checkpoint=tmp_path / "checkpoint")
    for lessons, recipe in ((LESSONS[1:], RECIPE), (LESSONS, Supervision(steps=7, batch_size=3, save_every=2))):
        with pytest.raises(ValueError, match="of a run with other settings or lessons"):
            losses(build_policy(SIZE), lessons, recipe, checkpoint=tmp_path / "checkpoint")


def test_a_loss_that_is_not_finite_ends_the_run():
    policy = build_policy(SIZE)
    with torch.no_grad():
        policy.model.embed_tokens.weight[9] = torch.nan
    with pytest.raises(ValueError, match="loss of step 1 is nan"):
        losses(policy)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', "line 2: expected"),
        ('{"prompt": "", "completion": "b"}', "line 2: expected"),
        ("[1]", "line 2: expected"),
        ("{", "line 2"),
    ],
)
def test_broken_lessons_are_named(tmp_path, line, message):
    path = tmp_path / "lessons.jsonl"
    path.write_text('{"prompt": "Q:a=1?a", "completion": "1"}\n' + line)
    with pytest.raises(ValueError, match=message):
        load_lessons(path, build_tokenizer())


def test_the_command_makes_a_model_that_can_be_loaded(tmp_path):
    from tokencredit.cli.models import load_policy

    build_policy(SIZE).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    path, out = tmp_path / "lessons.jsonl", tmp_path / "out"
    path.write_text(json.dumps({"prompt": "Q:a=1+2?a", "completion": "<think>a=1+2=3;</think>\\boxed{3}"}))
    words = ["warmup", tmp_path / "model", "--data", path, "--out", out, "--steps", 12, "--batch-size", 2]
    words += ["--learning-rate", 0.02, "--lora-rank", 4]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "loss" in result.output
    before, after = load_policy(str(tmp_path / "model"))[0], load_policy(str(out))[0]
    assert [n for n, _ in after.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert not torch.equal(flat(before), flat(after))
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "lessons.jsonl"}
    again = CliRunner().invoke(app, list(map(str, words)))
    assert again.exit_code == 2
    assert "exists: choose another --out, or --overwrite to replace it" in again.output
    replaced = CliRunner().invoke(app, [*map(str, words), "--overwrite"])
    assert replaced.exit_code == 0, replaced.output
    assert torch.equal(flat(load_policy(str(out))[0]), flat(after))


@pytest.fixture
def warmup(tmp_path, monkeypatch):
    """The command with a tiny model and some lessons, as a function of further words."""
    monkeypatch.chdir(tmp_path)
    build_policy(SIZE).save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    lines = [{"prompt": f"Q:a={i}+2?a", "completion": f"<think>a={i}+2={i + 2};</think>"} for i in range(7)]
    (tmp_path / "lessons.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["warmup", "model", "--data", "lessons.jsonl", "--steps", 24, "--batch-size", 2, "--lora-rank", 4]
    return lambda *more: CliRunner().invoke(app, [*map(str, words), *map(str, more)])


def interrupt_at(monkeypatch, step):
    """Ctrl-C after so many steps."""
    advance = Bars.advance

    def interrupting(self, done, note=""):
        advance(self, done, note)
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Bars, "advance", interrupting)


def test_an_interrupted_warm_up_goes_on_with_resume_and_ends_as_one_that_was_not(warmup, monkeypatch):
    from tokencredit.cli.models import load_policy

    assert warmup("--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 22)
        cut = warmup("--out", "cut")
    assert cut.exit_code == 130, cut.output
    assert "cut.unfinished/checkpoint.pt holds the training so far: the same command with --resume" in cut.output
    assert not Path("cut").exists()
    for more, message in (
        ((), "--overwrite to replace it, or --resume to go on with it"),
        (("--resume", "--seed", 1), "other settings (seed)"),
        (("--resume", "--overwrite"), "exclude each other"),
    ):
        refused = warmup("--out", "cut", *more)
        assert refused.exit_code == 2, refused.output
        assert message in " ".join(refused.output.split())
    resumed = warmup("--out", "cut", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed" in resumed.output
    assert torch.equal(flat(load_policy("cut")[0]), flat(load_policy("whole")[0]))
    assert not Path("cut.unfinished").exists()
    nothing = warmup("--out", "other", "--resume")
    assert nothing.exit_code == 2
    assert "there is no run in" in nothing.output


def test_only_a_saved_model_is_replaced_and_never_what_the_run_reads(warmup):
    for name in ("trained", "mine", "link"):
        Path(name).mkdir()
        (Path(name) / "model.safetensors").write_text("kept")
    Path("trained/checkpoint-20").mkdir()
    Path("mine/lessons.jsonl").write_text(Path("lessons.jsonl").read_text())
    Path("link").rename("behind")
    Path("link").symlink_to("behind", target_is_directory=True)
    for words, message in (
        (("--out", "trained"), "holds more than a saved model (checkpoint-20)"),
        (("--out", "mine"), "holds more than a saved model (lessons.jsonl)"),
        (("--out", "mine", "--data", "mine/lessons.jsonl"), "mine/lessons.jsonl lies in mine"),
        (("--out", "link"), "--out link is a link"),
        (("--out", "."), "name a folder"),
    ):
        refused = warmup(*words, "--overwrite")
        assert refused.exit_code == 2, refused.output
        assert message in " ".join(refused.output.split())
    assert Path("mine/model.safetensors").read_text() == "kept"


def test_what_is_said_on_ctrl_c_before_a_checkpoint_works(warmup, monkeypatch):
    """A resumed run that is interrupted again can be resumed again, but not from other weights of the model."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 21)
        assert warmup("--out", "new").exit_code == 130
    Path("new.unfinished/checkpoint.pt").unlink()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        cut = warmup("--out", "new", "--resume")
    assert "There is no checkpoint yet: the same command starts from the beginning" in " ".join(cut.output.split())
    weights = Path("model/model.safetensors")
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # as if the model had been trained on
    refused = warmup("--out", "new", "--resume")
    assert "the files of the model have changed since" in " ".join(refused.output.split())
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert warmup("--out", "new", "--resume").exit_code == 0


def test_what_is_replaced_stays_until_the_new_model_is_complete(warmup, monkeypatch):
    Path("old").mkdir()
    Path("old/model.safetensors").write_text("kept")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        cut = warmup("--out", "old", "--overwrite")
    assert cut.exit_code == 130, cut.output
    assert "There is no checkpoint yet" in cut.output
    with monkeypatch.context() as patch:
        interrupt_at(patch, 21)
        cut = warmup("--out", "old", "--overwrite")
    assert "--resume in place of --overwrite" in cut.output
    assert Path("old/model.safetensors").read_text() == "kept"
    assert warmup("--out", "old", "--resume").exit_code == 0
    assert {"config.json", "tokenizer.json"} <= {path.name for path in Path("old").iterdir()}
    Path("thesis").mkdir()
    Path("thesis/thesis.txt").write_text("kept")
    for out, message in (("thesis", "holds no model"), ("model", "model lies in model")):
        refused = warmup("--out", out, "--overwrite")
        assert refused.exit_code == 2, refused.output
        assert message in refused.output
