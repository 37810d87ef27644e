"""Word problems whose worked solutions are right except for the teacher's slips."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from tokencredit.rewards.base import last_boxed
from tokencredit.word_problems import is_held_out, solve, word_problem, write_word_problems

CALCULATION = re.compile(r"(\d+) ([+*-]) (\d+) = (\d+)")
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def wrong_steps(solution):
    found = []
    for i, step in enumerate(solution.steps):
        ((left, operator, right, result),) = CALCULATION.findall(step)
        if APPLY[operator](int(left), int(right)) != int(result):
            found.append(i)
    return found


def test_every_step_is_one_right_calculation_and_the_last_is_the_answer():
    rng = Random(0)
    for _ in range(300):
        problem = word_problem(rng)
        solution = solve(problem, rng)
        assert wrong_steps(solution) == []
        assert solution.first_error is None
        assert 2 <= len(solution.steps) <= 3
        assert last_boxed(solution.text) == str(problem.answer)
        assert CALCULATION.findall(solution.steps[-1])[0][3] == str(problem.answer)
        assert problem.answer >= 0
        assert not set("{}") & set(problem.question)


def test_slips_are_where_the_first_error_says_and_are_carried_on():
    rng = Random(0)
    found = [solve(word_problem(rng), rng, slips=0.3) for _ in range(1000)]
    wrong = [wrong_steps(solution) for solution in found]
    assert [steps[0] if steps else None for steps in wrong] == [solution.first_error for solution in found]
    share = sum(map(len, wrong)) / sum(len(solution.steps) for solution in found)
    assert share == pytest.approx(0.3, abs=0.03)
    for solution in found:
        assert last_boxed(solution.text) == CALCULATION.findall(solution.steps[-1])[0][3]


def test_the_files_share_no_held_out_problem(tmp_path):
    write_word_problems(tmp_path, lessons=60, problems=40, held_out=30, seed=3)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("lessons", "train", "heldout")
    }
    prompts = {name: [row["prompt"] for row in found] for name, found in rows.items()}
    assert [len(set(found)) for found in prompts.values()] == [60, 40, 30]
    assert not set(prompts["heldout"]) & set(prompts["lessons"] + prompts["train"])
    assert all(row["answer"].isdigit() for row in rows["train"] + rows["heldout"])
    again = tmp_path / "again"
    write_word_problems(again, lessons=60, problems=40, held_out=30, seed=3)
    assert (again / "lessons.jsonl").read_text() == (tmp_path / "lessons.jsonl").read_text()


def test_a_fifth_is_held_out():
    rng = Random(1)
    assert sum(is_held_out(word_problem(rng)) for _ in range(2000)) / 2000 == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("wrong", [{"lessons": 0}, {"held_out": -1}, {"slips": 1.5}, {"slips": float("nan")}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected at least one lesson"):
        write_word_problems(tmp_path, **wrong)
