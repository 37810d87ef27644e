"""The trainer's own work in a step. verl's part of it and its TransferQueue, which need Ray, are replaced by what they
would give: test_training runs them."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from conftest import make_rollouts
from engines import batch_of, nested
from test_config import config_of, credit
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils import tensordict_utils as tu

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.verl import trainer as module
from tokencredit.trainers.verl.config import CreditSettings
from tokencredit.trainers.verl.fields import ASKED
from tokencredit.trainers.verl.trainer import CreditTrainer

TOKENIZER = build_tokenizer()
OUTCOME = [1.0, -1.0, 0.0, 0.5]


class Queue:
    """Stands for TransferQueue: keeps one batch."""

    def __init__(self, data):
        self.data, self.written = data, {}

    def kv_batch_get(self, keys, partition_id, select_fields):
        return self.data

    def kv_batch_put(self, keys, partition_id, fields):
        self.written = fields
        return KVBatchMeta(keys, [{} for _ in keys], partition_id)


def rollouts_with_answers(*places):
    """Completions of eight tokens; where each writes `</think>`, or None."""
    made = make_rollouts((8,) * len(places), (3,) * len(places), (-1,) * len(places))
    end = TOKENIZER.convert_tokens_to_ids("</think>")
    ids = made.completion_ids.masked_fill(made.completion_ids == end, 9)
    for row, place in enumerate(places):
        if place is not None:
            ids[row, place] = end
    return tc.Rollouts(made.prompt_ids, made.prompt_mask, ids, made.completion_mask)


ROLLOUTS = rollouts_with_answers(4, None, 4, None)


def trainer_of(*overrides, step=1):
    """A trainer as it is after verl's own part of it is made."""
    config = config_of(*overrides)
    made = object.__new__(CreditTrainer)
    made.credit_settings = CreditSettings.of(config)
    made.credit_method = made.credit_settings.build()
    made.tokenizer, made.global_steps = TOKENIZER, step
    made._warned, made._known_reasons = False, set()
    return made


def step_of(trainer, monkeypatch, extras=None, outcome=OUTCOME, padding=()):
    """The metrics of a step and the advantages that were written; completions 0 and 1 answer one prompt."""
    fields = batch_of(ROLLOUTS)
    count = len(ROLLOUTS)
    given = {
        **{name: fields[name] for name in ("prompts", "responses", "loss_mask")},
        "response_mask": nested(torch.ones(8) for _ in range(count)),
        "advantages": nested(torch.full((8,), value) for value in outcome),
        "rm_scores": nested(torch.tensor([0.0] * 7 + [value]) for value in outcome),
        "uid": [f"prompt {i // 2}" for i in range(count)],
        "extra_fields": extras or [{}] * count,
    }
    queue = Queue(tu.get_tensordict(given))
    monkeypatch.setattr(module, "tq", queue)
    monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
    tags = [{"is_padding": i in padding} for i in range(count)]
    batch = KVBatchMeta([str(i) for i in range(count)], tags, "train")
    metrics = {}
    trainer._compute_advantage(batch, metrics)
    return metrics, queue.written["advantages"]


def warned(trainer, monkeypatch, **kwargs):
    """The warnings of a step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step_of(trainer, monkeypatch, **kwargs)
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


def test_completions_without_loss_do_not_dilute_what_is_logged(monkeypatch):
    """Completion 2 has an advantage of 0, and completion 3 is one that verl has added."""
    expected = tc.method("position")(tc.mark_spans(ROLLOUTS, TOKENIZER), torch.tensor(OUTCOME), tc.Signals())
    with pytest.warns(UserWarning, match="position leaves 1 of 2 completions uniform: no answer span"):
        metrics, advantages = step_of(trainer_of(*credit("position")), monkeypatch, padding=(3,))
    assert metrics["credit/with_loss"] == pytest.approx(2 / 3)
    for name, values in expected.diagnostics.items():
        assert metrics[f"credit/{name}"] == pytest.approx(values[:2].mean().item()), name
    assert torch.equal(torch.stack(list(advantages.unbind())), expected.advantages)


def test_without_any_loss_the_share_is_logged(monkeypatch):
    trainer = trainer_of(*credit("atpo"), step=2)
    monkeypatch.setattr(module, "shipped", lambda method: [])
    monkeypatch.setattr(module, "unpack", lambda method, *given: tc.method("uniform")(*given[:2], tc.Signals()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics, _ = step_of(trainer, monkeypatch, outcome=[0.0] * 4)
    assert {name for name in metrics if name.startswith("credit/")} == {"credit/with_loss", "credit/seconds"}
    assert metrics["credit/with_loss"] == 0


def test_a_reason_is_told_once_in_a_run(monkeypatch):
    trainer = trainer_of(*credit("position"))
    (sentence,) = warned(trainer, monkeypatch)
    assert sentence.startswith("position leaves 2 of 3 completions uniform: no answer span was found")
    trainer.global_steps = 2
    assert warned(trainer, monkeypatch) == []


@pytest.mark.parametrize("answer", ["auto", "end_of_reasoning", "</think>"])
def test_answers_are_found_by_the_settings_rule(monkeypatch, answer):
    trainer = trainer_of(*credit("position"), f"+algorithm.credit.answer='{answer}'")
    spans = tc.mark_spans(ROLLOUTS, TOKENIZER, answer=answer)
    expected = tc.method("position")(spans, torch.tensor(OUTCOME), tc.Signals())
    monkeypatch.setattr(trainer, "_warn", lambda *_: None)
    _, advantages = step_of(trainer, monkeypatch)
    assert torch.equal(torch.stack(list(advantages.unbind())), expected.advantages)


@pytest.mark.parametrize("reference", [False, True])
def test_workers_are_asked_for_the_settings_and_the_step(reference):
    given = ["+algorithm.credit.answer='Answer:'", "+algorithm.credit.splitter=newline"]
    trainer, batch = trainer_of(*credit("rhythm"), *given, step=7), KVBatchMeta(["a"], [{}], "train")
    with trainer._asking(batch, reference=reference):
        asked = batch.extra_info[ASKED]
    assert (asked.answer, asked.splitter, asked.step, asked.reference) == ("Answer:", "newline", 7, reference)
    assert asked.method == tc.method("rhythm")
    assert ASKED not in batch.extra_info


BOTH = [{"reward_extra_info": {"score": 1.3, "acc": float(i == 0)}} for i in range(4)]


def seen_by_method(trainer, monkeypatch):
    """The rollouts that reach the method; no worker has shipped anything."""
    seen = []
    monkeypatch.setattr(module, "shipped", lambda method: [])

    def unpack(method, rollouts, outcome, *_):
        seen.append(rollouts)
        return tc.method("uniform")(rollouts, outcome, tc.Signals())

    monkeypatch.setattr(module, "unpack", unpack)
    monkeypatch.setattr(trainer, "_warn", lambda *_: None)
    step_of(trainer, monkeypatch, extras=BOTH)
    return seen[0]


def test_an_ambiguous_score_is_refused_where_it_is_read(monkeypatch):
    attnpo = credit("attnpo", heads="[[0,1]]")
    with pytest.raises(
        ValueError, match="attnpo asks which completions are correct, and the reward function gives sev"
    ):
        seen_by_method(trainer_of(*attnpo), monkeypatch)
    named = trainer_of(*attnpo, "+algorithm.credit.correct_reward=acc")
    assert seen_by_method(named, monkeypatch).correct.tolist() == [True, False, False, False]
    assert seen_by_method(trainer_of(*credit("rhythm")), monkeypatch).correct is None
