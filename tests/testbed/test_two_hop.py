"""two_hop: hops against a reader that works the steps out anew, and by hand."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.testbed.tasks.two_hop import TwoHop

SEEDS = st.integers(0, 10**6)
PROMPT = "Q:a=3+4,b=5*1,c=a+2,d=b-3,e=a*3?c"
RIGHT = "<think>b=5*1=5;a=3+4=7;hm;d=b-3:5-3=2;e=a*3:7*3=1;c=a+2:7+2=9;</think>\\boxed{c=9}"


def drawn(seed):
    rng = Random(seed)
    chosen = TwoHop(level=rng.randint(1, 3))
    problem = chosen.problem(rng)
    return chosen, problem, chosen.teach(problem, rng)


def hops(completion):
    chosen = TwoHop()
    problem = chosen.parse({"prompt": PROMPT})
    labels, found = chosen.label(problem, completion), chosen.hops(problem, completion)
    texts = [completion[s.start : s.end] for s in labels.steps]
    return labels, {text: hop for text, hop in zip(texts, found, strict=True) if hop is not None}


def replayed(completion: str, tampered: int | None = None) -> dict[str, int]:
    """The values after all steps are worked out anew, with another result in the step `tampered`.

    A step's result moves from what is written by as much as its first operand's change moves it.
    """
    value: dict[str, int] = {}
    for k, step in enumerate(completion.removeprefix("<think>").split("</think>")[0].split(";")):
        if not (m := re.search(r"([a-z])=(?:([a-z])[+*-]\d:)?(\d)([+*-])(\d)=(\d)$", step)):
            continue
        name, read, x, operator, y, result = m.groups()
        moved = value[read] - int(x) if read else 0
        value[name] = (int(result) + moved * (int(y) if operator == "*" else 1) + (k == tampered)) % 10
    return value


@given(SEEDS)
def test_a_step_is_essential_exactly_if_changing_its_result_changes_the_answer(seed):
    chosen, problem, completion = drawn(seed)
    # Of a step that is said twice only the second saying lasts, though either would do: the label is a convention.
    completion = re.sub(r"([^;>]+;)wait\1", r"\1", completion)
    before = replayed(completion)
    for k, hop in enumerate(chosen.hops(problem, completion)):
        after = replayed(completion, tampered=k)
        assert any(after[v] != before[v] for v in problem.asked) == (hop is not None)


@given(SEEDS)
def test_the_answer_reads_one_hop_and_these_read_the_other(seed):
    chosen, problem, completion = drawn(seed)
    labels, found = chosen.label(problem, completion), chosen.hops(problem, completion)
    assert [hop is not None for hop in found] == [s.essential for s in labels.steps]
    names = [re.sub("^wait", "", completion[s.start : s.end])[0] for s in labels.steps]
    asked = set(problem.asked)
    assert {v for v, hop in zip(names, found, strict=True) if hop == 1} == asked
    assert {v for v, hop in zip(names, found, strict=True) if hop == 2} == {problem.rests_on(v) for v in asked}
    assert all(completion.rindex(f"{problem.rests_on(v)}=") < completion.rindex(f"{v}=") for v in asked)


def test_distractors_are_of_every_kind():
    rng, chosen = Random(0), TwoHop()
    kinds = set()
    for _ in range(300):
        problem = chosen.problem(rng)
        completion = chosen.teach(problem, rng)
        worked = {v for v in problem.definitions if f"{v}=" in completion.split("</think>")[0]}
        needed = problem.needed()
        for v in worked - needed:
            u = problem.rests_on(v)
            if u is None:
                used = any(problem.rests_on(w) == v for w in worked)
                kinds.add("a first that another rests on" if used else "a first alone")
            else:
                kinds.add("rests on an essential one" if u in needed else "rests on a distractor")
    assert len(kinds) == 4


def test_hops_by_hand():
    labels, found = hops(RIGHT)
    assert labels.correct
    assert found == {"a=3+4=7;": 2, "c=a+2:7+2=9;": 1}


def test_a_value_taken_back_too_late_is_not_what_was_read():
    late = (
        RIGHT.replace("a=3+4=7", "a=3+4=6").replace("c=a+2:7+2=9;", "c=a+2:6+2=8;waita=3+4=7;").replace("c=9}", "c=8}")
    )
    labels, found = hops(late)
    assert found == {"a=3+4=6;": 2, "c=a+2:6+2=8;": 1}
    assert labels.first_error == late.index("6;")


def test_an_asked_name_that_another_asked_one_rests_on_is_one_hop_away():
    chosen = TwoHop()
    problem = chosen.parse({"prompt": "Q:a=3+4,b=a+2?b,a"})
    completion = "<think>a=3+4=7;b=a+2:7+2=9;</think>\\boxed{b=9,a=7}"
    assert chosen.verify(problem, completion)
    assert chosen.hops(problem, completion) == (1, 1)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("c=a+2:7+2=9", "c=a+2:6+2=8", "6+2"),
        ("c=a+2:7+2=9", "c=a+3:7+3=0", "3:7+3"),
        ("c=a+2:7+2=9", "c=7+2=9", "7+2"),
        ("a=3+4=7;", "", "c=a"),
        ("c=a+2:7+2=9;", "", "</think>"),
    ],
)
def test_the_first_error_by_hand(old, new, error):
    text = RIGHT.replace(old, new).replace("c=9}", "c=8}")
    labels, _ = hops(text)
    assert not labels.correct
    assert labels.first_error == text.index(error)


def test_an_expression_where_the_answer_should_be_is_not_worked_out():
    chosen = TwoHop()
    problem = chosen.parse({"prompt": PROMPT})
    for cheat in ("c=7+2", "9", "c=9,", "c=9}", "c=9,d=2", ""):
        assert not chosen.verify(problem, RIGHT.replace("c=9}", cheat + "}"))
