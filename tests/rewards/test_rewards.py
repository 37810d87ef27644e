"""Rewards by name, and what each of them rewards."""

from __future__ import annotations

import math
import re
from functools import partial
from random import Random

import numpy as np
import pytest
import torch

from tokencredit import rewards
from tokencredit.methods.attnpo import length_penalised_reward
from tokencredit.rewards.base import (
    checked_values,
    completion_text,
    ground_truth,
    known_correct,
    last_boxed,
    name_of,
    prompt_text,
)
from tokencredit.rewards.gold import gold_misses
from tokencredit.testbed.tasks import task

RIGHT = "<think></think>\\boxed{7}"


def my_reward(completions, **columns):
    return [float(len(completion)) for completion in completions]


def test_every_name_leads_to_a_function_that_takes_what_trl_passes():
    given = {"completions": [RIGHT], "completion_ids": [[1, 2]], "answer": ["7"], "trainer_state": None}
    prompts = {"chain": "Q:a=6,b=a+1?b\n", "countdown": "3,4=7?\n"}
    for name in rewards.names():
        (value,) = rewards.find(name)(prompts=[prompts.get(name, "what?")], **given)
        assert value == {"countdown": 0.0, "length_penalty": pytest.approx(0.9)}.get(name, 1.0)


def test_your_own_reward_by_its_path():
    assert rewards.find("rewards.test_rewards:my_reward")(["abc"]) == [3.0]
    rewards.check(my_reward, {"prompt": ["anything"]})


def test_named_rewards_are_what_trl_takes(tmp_path):
    """Two steps of TRL's own trainer, on text and on chat messages; the logs have the names of the functions."""
    from datasets import Dataset
    from tiny_run import arguments, policy_that_answers
    from trl import GRPOConfig, GRPOTrainer

    from tokencredit.testbed.policy import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = [[{"role": "user", "content": "Q:a=1+1?a"}]] * 4
    for prompts in (["Q:a=1+1?a"] * 4, chat):
        trainer = GRPOTrainer(
            policy_that_answers(),
            rewards.load(["math", "format", "rewards.test_rewards:my_reward"]),
            args=GRPOConfig(**arguments(tmp_path, max_steps=2)),
            train_dataset=Dataset.from_dict({"prompt": prompts, "answer": ["2"] * 4}),
            processing_class=tokenizer,
        )
        trainer.train()
        logged = trainer.state.log_history[0]
        for name in ("math_reward", "format_reward", "my_reward"):
            assert f"rewards/{name}/mean" in logged
        assert logged["rewards/my_reward/mean"] > 0


def test_names_that_are_no_rewards_are_refused(tmp_path, monkeypatch):
    (tmp_path / "other_rewards.py").write_text("def my_reward(completions, **columns):\n    return [0.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    (alone,) = rewards.load("math")
    assert alone is rewards.find("math")
    for names, message in (
        ([], "name at least one reward: chain, countdown, format"),
        (["math", "math"], "the rewards math and math are both called math_reward"),
        (["rewards.test_rewards:my_reward", "other_rewards:my_reward"], "are both called my_reward.* would be one in"),
        (["maths"], "Valid rewards"),
        ([rewards.find("math")], "a reward is named by a text"),
    ):
        with pytest.raises(ValueError, match=message):
            rewards.load(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "Valid rewards: chain, countdown, format, length_penalty, math"),
        ("nowhere.at_all:reward", "no module 'nowhere'"),
        ("json:nothing", "has no function 'nothing'"),
        (":reward", "unknown reward"),
        ("json:__name__", "has no function"),
    ],
)
def test_an_unknown_reward_says_so(name, message):
    with pytest.raises(ValueError, match=message):
        rewards.find(name)


def test_a_package_that_a_users_reward_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        rewards.find("needs_more:reward")


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\ b}", r"a \\ b"),
        (r"\boxed{3} no, \boxed{4", None),
        (r"\boxed{ }", None),
        ("4", None),
        ("\\boxed{" * 100_000, None),
    ],
)
def test_the_last_box_counts(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("He has 3 * 4 = <<3*4=12>>12 eggs.\n#### 1,012", "1,012"),
        (r"So $x = 2$ and the answer is $\boxed{\sqrt{2}}$.", r"\sqrt{2}"),
        (" 18 ", "18"),
        ("$x^2$", "x^2"),
    ],
)
def test_the_ground_truth_in_each_style(answer, truth):
    assert ground_truth(answer) == truth


def test_text_of_chat_messages():
    said = [
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": None},
    ]
    assert completion_text(said) == "a"
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert prompt_text(asked) == "u"


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("reasons</think> so \\boxed{1}", 1.0),
        ([{"role": "assistant", "content": "reasons</think>\\boxed{1}"}], 1.0),
        ("\\boxed{1}", 0.0),
        ("\\boxed{1}</think> 1", 0.0),
        ("a</think>b</think>\\boxed{1}", 0.0),
        ("a</think>\\boxed{}", 0.0),
    ],
)
def test_format(completion, value):
    assert rewards.find("format")([completion]) == [value]


@pytest.mark.parametrize("name", ["chain", "countdown"])
@pytest.mark.parametrize("chat", [False, True])
def test_task_rewards_say_what_the_tasks_verifier_says(name, chat):
    lab, rng = task(name), Random(0)
    problems = [lab.problem(rng) for _ in range(60)]
    texts = [lab.teach(problem, rng) for problem in problems]
    expected = [float(lab.verify(problem, text)) for problem, text in zip(problems, texts, strict=True)]
    prompts = [[{"role": "user", "content": p.prompt}] if chat else p.prompt for p in problems]
    completions = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
    assert rewards.find(name)(prompts=prompts, completions=completions) == expected
    assert {0.0, 1.0} == set(expected)


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_prompts_of_another_task_are_refused_before_any_model_runs(name):
    with pytest.raises(ValueError, match=rf"row 1 is no {name} problem: .*'what\?'"):
        rewards.check(rewards.find(name), {"prompt": ["Q:a=6,b=a+1?b" if name == "chain" else "3,4=7?", "what?"]})


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("(5-3)*8", 1.0),
        ("(5 - 3) \\times 8 = 16", 1.0),
        ("(5\u22123)\u00b78", 1.0),
        ("$\\left(5-3\\right) x 8$", 1.0),
        ("[5-3] \\cdot 8 = 2 \\cdot 8 = 16", 1.0),
        ("\\frac{8}{1}", 0.0),
        ("(5-3)*8 = 17", 0.0),
        ("8+8", 0.0),
        ("16", 0.0),
        ("", 0.0),
        ("(5-3)*8" + " " * 500, 1.0),
        ("(" * 500, 0.0),
        ("__import__('os')", 0.0),
    ],
)
def test_countdown_from_columns_with_a_free_prompt(answer, value):
    columns = {"nums": [[3, 8, 5]], "target": [16]}
    prompt = "Use 3, 5 and 8, each once, to make 16."
    rewards.check(rewards.find("countdown"), {"prompt": [prompt], **columns})
    completions = [f"I try (5-3)*8. So \\boxed{{{answer}}}"]
    assert rewards.find("countdown")(prompts=[prompt], completions=completions, **columns) == [value]


def test_countdown_reads_fractions_and_a_target_in_the_answer_column():
    completions = ["\\boxed{\\frac{6}{2} + 4}", "\\boxed{6 \\div 2 + 4 = 7}"]
    columns = {"nums": [[2, 4, 6]] * 2, "answer": ["7", "7"]}
    assert rewards.find("countdown")(prompts=["a", "b"], completions=completions, **columns) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"nums": [[3, "x"]], "target": [3]}, r'row 0 .*"nums" must be a list'),
        ({"nums": [[3, 4]], "target": ["seven"]}, r'row 0 .*"target" must be a whole number'),
        ({"nums": [[3, 4]]}, r'row 0 .*"target" must be a whole number'),
        ({}, r"give the data the columns nums .* and target"),
    ],
)
def test_countdown_names_the_row_that_is_no_problem(columns, message):
    with pytest.raises(ValueError, match=message):
        rewards.check(rewards.find("countdown"), {"prompt": ["Make seven."], **columns})


def test_length_penalty_standardises_within_each_run_of_equal_prompts():
    reward = rewards.find("length_penalty")
    right, wrong = "\\boxed{1}", "\\boxed{2}"
    lengths = [3, 9, 5, 4, 8]
    values = reward(
        prompts=["a", "a", "a", "b", "b"],
        completions=[right, right, wrong, right, right],
        completion_ids=[[0] * n for n in lengths],
        answer=["1"] * 5,
    )
    group = torch.tensor([0, 0, 0, 1, 1])
    correct = torch.tensor([True, True, False, True, True])
    assert values == length_penalised_reward(correct, torch.tensor(lengths), group).tolist()
    assert values[0] > values[1] > values[2] == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 0.5], [1.0, None, 0.5]),
        ((True, False, None), [1.0, 0.0, None]),
        (torch.tensor([1.0, 0.0, 0.5]), [1.0, 0.0, 0.5]),
        (np.array([1, 0, 2]), [1.0, 0.0, 2.0]),
        ([np.float32(0.5), np.bool_(True), torch.tensor(2)], [0.5, 1.0, 2.0]),
        ((float(n) for n in range(3)), [0.0, 1.0, 2.0]),
    ],
)
def test_numbers_in_a_row_are_values(values, expected):
    found = checked_values(values, "mine", 3)
    assert found == expected
    assert {type(value) for value in found} <= {float, type(None)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"abc", "returned b'abc' (bytes)"),
        ({1.0, 2.0, 3.0}, "(set)"),
        (np.float64(1.0), "(float64)"),
        (np.ones((3, 1)), "gave array([1.]) for completion 0"),
        ([1.0, [2.0], 3.0], "gave [2.0] for completion 1"),
        ([1.0, 2.0], "gave 2 values for 3 completions"),
        ([1.0, -math.inf, 1.0], "gave -inf for completion 1"),
    ],
)
def test_anything_else_names_the_function_and_what_is_expected(values, message):
    with pytest.raises(ValueError, match=f"the reward function mine .*{re.escape(message)}"):
        checked_values(values, "mine", 3)
    assert name_of(partial(my_reward, 1)) == "my_reward"


def test_only_rewards_of_0_and_1_tell_what_is_correct():
    assert known_correct([1, 0.0, 1.0]) == [True, False, True]
    assert known_correct([1, 0, 0.5]) == [None] * 3


def test_gold_lists_the_rows_that_their_own_answer_does_not_solve():
    rows = [
        {"prompt": "1+1?", "answer": "a sum\n#### 2"},
        {"prompt": "?", "answer": "1+"},
        {"prompt": [{"role": "user", "content": "1/2?"}], "answer": "\\frac12"},
    ]
    done = []
    (miss,) = gold_misses(rows, rewards.find("math"), on_progress=done.append)
    assert (miss.row, miss.answer) == (1, "1+")
    assert "cannot be read" in miss.why
    assert done == [1, 2, 3]
    assert gold_misses(rows, rewards.find("format")) == []
    assert [m.why for m in gold_misses(rows[:1], my_reward)] == ["scores 24.0"]
