"""What would go wrong late in a run is told at its start, and the model card tells how the model came about."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from datasets import Dataset
from tiny_run import DATASET, arguments, policy_that_answers, reward, trained

from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

CLOSED = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
OPEN = CLOSED + "{% if add_generation_prompt %}<think>{% endif %}"


def chat_dataset():
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in DATASET["prompt"]]})


def trainer_on(tmp_path, dataset=DATASET, functions=reward, template=None, **changed):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    args = CreditGRPOConfig(**arguments(tmp_path, **changed))
    torch.manual_seed(0)
    return CreditGRPOTrainer(
        policy_that_answers(), functions, args=args, train_dataset=dataset, processing_class=tokenizer, data_name="sums"
    )


@pytest.mark.parametrize(
    ("dataset", "template", "message"),
    [
        (Dataset.from_dict({"question": ["a"]}), None, "no column prompt; there are question"),
        (Dataset.from_dict({"prompt": []}), None, "no problem"),
        (chat_dataset(), None, "no chat template"),
        (chat_dataset(), CLOSED, "no generation prompt"),
        (chat_dataset(), "{{ raise_exception('no system turn') }}", "no system turn"),
    ],
)
def test_data_that_cannot_be_prompted_with_is_refused_when_the_trainer_is_made(tmp_path, dataset, template, message):
    with pytest.raises(ValueError, match=message):
        trainer_on(tmp_path, dataset, template=template)


@pytest.mark.parametrize("timing", ["rollout", "loss"])
def test_chat_messages_train(tmp_path, timing):
    def chat_reward(completions, **_):
        return reward([message[0]["content"] for message in completions])

    trainer = trainer_on(
        tmp_path, chat_dataset(), chat_reward, OPEN, max_steps=1, credit_method="atpo", credit_timing=timing
    )
    trainer.train()
    assert trainer.state.log_history[0]["credit/no_answer"] < 1


def raising(completions, **_):
    raise KeyError("truth")


def not_a_number(completions, **_):
    return [1.0, math.nan] * (len(completions) // 2)


def infinite(completions, **_):
    return [-math.inf for _ in completions]


def silent(completions, **_):
    return [None for _ in completions]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([reward, not_a_number], "not_a_number gave nan for completion 1"),
        ([infinite], "infinite gave -inf"),
        ([silent], "no finite reward: silent nan"),
    ],
)
def test_rewards_that_are_no_numbers_end_the_first_step(tmp_path, functions, message):
    trainer = trainer_on(tmp_path, functions=functions)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_reward_may_have_nothing_to_say(tmp_path):
    trainer_on(tmp_path, functions=[reward, silent], max_steps=1).train()


def test_a_reward_that_raises_is_named(tmp_path):
    with pytest.raises(KeyError) as caught:
        trainer_on(tmp_path, functions=raising).train()
    assert caught.value.__notes__ == ["raised by the reward function raising"]


class Half:
    """A reward that is no plain function."""

    def __call__(self, completions, **_):
        return [0.5 for _ in completions]


async def waiting(completions, **_):
    return reward(completions)


def test_objects_and_coroutines_may_be_rewards(tmp_path):
    trainer = trainer_on(tmp_path, functions=[Half(), waiting], max_steps=1)
    trainer.train()
    assert trainer.reward_func_names == ["Half", "waiting"]


CUT_OFF = {"max_completion_length": 2, "generation_kwargs": {"suppress_tokens": build_tokenizer().all_special_ids}}
"""No completion ends by itself."""


def test_a_length_that_cuts_everything_off_ends_the_run_early(tmp_path):
    trainer = trainer_on(tmp_path, functions=[Half()], **CUT_OFF, max_steps=50)
    with pytest.raises(ValueError, match=r"first 3 generation batches .* max_completion_length=2 .* rewards were 0\.5"):
        trainer.train()
    assert trainer.state.global_step == 4  # two updates a batch


def test_cut_off_completions_may_train_where_rewards_differ(tmp_path):
    trainer = trainer_on(tmp_path, **CUT_OFF, max_steps=8)
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1


def test_the_model_card_tells_how_the_model_came_about(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "hf_abc", "--wandb-api-key=xyz", "--lr", "1e-6"])
    args = CreditGRPOConfig(
        **arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2),
        credit_method="atpo",
        credit_params={"floor": 0.25},
    )
    trained(CreditGRPOTrainer, args, data_name="sums, 8 problems")
    card = (tmp_path / "README.md").read_text()
    for told in ("| method | atpo |", "| `floor` | 0.25 |", "reward x 1", "sums, 8 problems", "tokencredit 0."):
        assert told in card
    assert "train.py --hub_token ... --wandb-api-key=... --lr 1e-6" in card
    assert "abc" not in card
    assert "xyz" not in card
    assert card.count("## Token-level credit") == 1
