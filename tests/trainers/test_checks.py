"""What would go wrong late in a run is told at its start, and the model card tells how the model came about."""

from __future__ import annotations

import math
import sys
import warnings
from functools import partial

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset
from tiny_run import DATASET, arguments, policy_that_answers, reward, trained

from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer
from tokencredit.trainers.trl_checks import CorrectnessWatch, dropout
from tokencredit.trainers.trl_rewards import BatchRewards

CLOSED = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% endfor %}"
OPEN = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
# Like Mistral's: nothing stands between the user's turn and what the assistant says.
NEEDS_NONE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %}</i>{% endif %}{% endfor %}"


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
        (Dataset.from_dict({"prompt": [[]]}), OPEN, "must be text, or chat messages"),
        (Dataset.from_dict({"prompt": [["hi"]]}), OPEN, "must be text, or chat messages"),
        (chat_dataset(), "{{ raise_exception('no system turn') }}", "no system turn"),
    ],
)
def test_data_that_cannot_be_prompted_with_is_refused_when_the_trainer_is_made(tmp_path, dataset, template, message):
    with pytest.raises(ValueError, match=message):
        trainer_on(tmp_path, dataset, template=template)


def test_a_template_may_need_no_generation_prompt(tmp_path):
    trainer_on(tmp_path, chat_dataset(), template=NEEDS_NONE)


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


async def waiting_for_nan(completions, **_):
    return [math.nan for _ in completions]


def infinite(completions, **_):
    return [-math.inf for _ in completions]


def silent(completions, **_):
    return [None for _ in completions]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([reward, not_a_number], "not_a_number gave nan for completion 1"),
        ([infinite], "infinite gave -inf"),
        ([reward, waiting_for_nan], "waiting_for_nan gave nan"),
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


def sometimes(completions, **_):
    return [None if i == 1 else float(i) for i, _ in enumerate(completions)]


def test_a_completion_may_go_without_a_reward_where_trl_leaves_it_out(tmp_path):
    trainer_on(tmp_path, functions=sometimes, max_steps=1).train()
    with pytest.raises(ValueError, match=r"completion 1 .* no finite reward: sometimes nan"):
        trainer_on(tmp_path, functions=sometimes, credit_outcome="rloo").train()


def test_no_reward_at_all_is_told_by_trl(tmp_path):
    with pytest.raises(ValueError, match=r"[Rr]eward"):
        trainer_on(tmp_path, functions=None)


def test_dropout_is_found_wherever_models_keep_it():
    numbers, modules = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    numbers.dropout, modules.attention_dropout = 0.1, torch.nn.Dropout(0.0)
    assert dropout(numbers) == "Linear"
    assert dropout(modules) is None
    modules.attention_dropout.p = 0.2
    assert dropout(modules) == "attention_dropout"


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
    trainer = trainer_on(tmp_path, functions=[Half(), waiting, partial(reward), partial(waiting)], max_steps=1)
    trainer.train()
    assert trainer.reward_func_names == ["Half", "waiting", "reward", "waiting"]


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


def test_a_run_whose_completions_are_cut_off_may_be_let_go_on(tmp_path):
    trainer = trainer_on(
        tmp_path, functions=[Half()], **CUT_OFF, max_steps=4, steps_per_generation=1, credit_stop_if_truncated=False
    )
    trainer.train()
    assert trainer.state.global_step == 4


def right(completions, **_):
    return [float(len(text) % 2) for text in completions]


def wrong(completions, **_):
    return [0.0 for _ in completions]


ATTNPO = {"credit_method": "attnpo", "credit_params": {"heads": [[1, 0]]}}


def test_what_says_which_answers_are_correct_must_be_named(tmp_path):
    """A weighted sum may reach the threshold by a format reward alone."""
    with pytest.raises(ValueError, match=r"attnpo reads which answers are correct.* one of reward, right"):
        trainer_on(tmp_path, functions=[reward, right], **ATTNPO)
    trainer_on(tmp_path, functions=[reward, right], **ATTNPO, credit_correct_reward="right")
    trainer_on(tmp_path, functions=[reward, right], credit_method="atpo")


def test_correctness_is_read_from_the_reward_itself_whatever_its_weight():
    rewards = BatchRewards(torch.tensor([[1.0], [0.0]]), torch.tensor([0.1]), ["right"], 2)
    assert rewards.correct(None, 1.0).tolist() == [True, False]
    assert rewards.group_means(rewards.correct(None, 1.0)).tolist() == [0.5, 0.5]


def test_an_answer_whose_correctness_is_not_known_ends_the_run():
    rewards = BatchRewards(torch.tensor([[1.0], [math.nan]]), torch.ones(1), ["right"], 2)
    with pytest.raises(ValueError, match="right says which completions are correct, but gave None for completion 1"):
        rewards.correct(None, 1.0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "attnpo:heads=[[1,2]]",
            "attnpo cannot read this policy: head 2 asked for, but the policy has 2 heads a layer",
        ),
        ("attnpo:heads=[[2,0]]", "attnpo cannot read this policy: layer 2 asked for, but the policy has 2"),
        ("attnpo:heads=[[1,0]],model=another", "attnpo cannot read this policy: these heads are those of another"),
        ("atpo:layers=3", "atpo cannot read this policy: layer -3 of the layers with full attention"),
        ("rhythm:local_heads=[[0,0]],global_heads=[[0,5]]", "rhythm cannot read this policy: head 5 asked for"),
    ],
)
def test_heads_and_layers_that_the_policy_lacks_are_refused_when_the_trainer_is_made(tmp_path, method, message):
    with pytest.raises(ValueError, match=message):
        trainer_on(tmp_path, credit_method=method)


def test_the_reward_of_correctness_is_one_function(tmp_path):
    with pytest.raises(ValueError, match="is the name of 2 reward functions: give each a __name__ of its own"):
        trainer_on(tmp_path, functions=[reward, partial(reward)], **ATTNPO, credit_correct_reward="reward")


@pytest.mark.filterwarnings("ignore:the credit of")
def test_a_run_without_correct_answers_is_warned_of_once(tmp_path):
    small = {"per_device_train_batch_size": 4, "max_completion_length": 4, "steps_per_generation": 1, "max_steps": 7}
    trainer = trainer_on(tmp_path, functions=[reward, wrong], **small, **ATTNPO, credit_correct_reward="wrong")
    with pytest.warns(UserWarning, match=r"no completion of the first 5 generation batches is correct") as caught:
        trainer.train()
    assert sum("is correct" in str(w.message) for w in caught) == 1


def test_one_correct_answer_is_enough():
    watch = CorrectnessWatch("attnpo", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(10):
            watch(torch.tensor([i == 3, False]))


@pytest.mark.parametrize("answer", ["(", ""])
def test_an_answer_rule_that_is_no_regular_expression_is_refused(tmp_path, answer):
    with pytest.raises(ValueError, match="regular expression"):
        CreditGRPOConfig(**arguments(tmp_path), credit_answer=answer)


def test_attention_is_not_read_where_its_heads_lie_on_several_processes(tmp_path):
    split = ParallelismConfig(tp_size=2)
    with pytest.raises(ValueError, match=r"atpo reads attention, but with tensor parallelism .*tp_size=2"):
        CreditGRPOConfig(**arguments(tmp_path, parallelism_config=split), credit_method="atpo")
    CreditGRPOConfig(**arguments(tmp_path, parallelism_config=split), credit_method="entropy")


def test_the_model_card_tells_how_the_model_came_about(tmp_path, monkeypatch):
    secrets = [
        "--hub_token",
        "hf_abc",
        "--wandb-api-key=xyz",
        "--init",
        '{"token": "hf_abcd"}',
        "--url",
        "http://u:abc@h",
    ]
    monkeypatch.setattr(sys, "argv", ["/home/abc/train.py", *secrets, "--lr", "1e-6"])
    args = CreditGRPOConfig(
        **arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2),
        credit_method="atpo",
        credit_params={"floor": 0.25},
        credit_answer="Answer:",
    )
    trained(CreditGRPOTrainer, args, data_name="sums, 8 problems")
    card = (tmp_path / "README.md").read_text()
    for told in (
        "| method | atpo |",
        "| `floor` | 0.25 |",
        "| answer starts at | Answer: |",
        "reward x 1",
        "sums, 8 problems",
        "tokencredit 0.",
    ):
        assert told in card
    assert "\ntrain.py --hub_token ... --wandb-api-key=... --init" in card
    assert "--lr 1e-6" in card
    assert "abc" not in card
    assert "xyz" not in card
    assert card.count("## Token-level credit") == 1
