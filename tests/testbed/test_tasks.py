"""Labels against an independent re-evaluation of the trace, on the teacher's text and on damaged text."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.tasks import label_tokens, task, tasks
from tokencredit.testbed.tasks.base import Labels, Step
from tokencredit.testbed.tasks.chain import Chain
from tokencredit.testbed.tasks.countdown import Countdown
from tokencredit.testbed.tasks.gather import Gather

SEEDS = st.integers(0, 10**6)
EVERY_TASK = pytest.mark.parametrize("name", tasks())
ARITHMETIC = pytest.mark.parametrize("name", ["chain", "gather", "long_gather", "two_hop"])
ALPHABET = [
    "0",
    "7",
    "a=",
    "b",
    "+",
    "*",
    "=",
    ";",
    "wait",
    "</think>",
    "<think>",
    "\\boxed{",
    "}",
    ",",
    "(",
    "ok",
    "no",
    ":",
]


def damaged(text: str, rng: Random) -> str:
    """The text with a few random edits, so that every kind of malformed trace turns up."""
    for _ in range(rng.randrange(4)):
        i = rng.randrange(len(text) + 1)
        text = text[:i] + rng.choice([*ALPHABET, ""]) + text[i + rng.randrange(3) :]
    return text


def drawn(name: str, seed: int, *, damage: bool = False):
    rng = Random(seed)
    chosen = task(name, level=rng.randint(1, 3))
    problem = chosen.problem(rng)
    completion = chosen.teach(problem, rng)
    return chosen, problem, damaged(completion, rng) if damage else completion


def mod10(x, operator, y):
    return (int(x) + int(y) if operator == "+" else int(x) - int(y) if operator == "-" else int(x) * int(y)) % 10


class Reading:
    """What a reader makes of some steps: each asked value as written, or None where the steps do not lead to it.

    It knows no slices: it replays the steps it is given, and refuses one that uses a value not on the page.
    """

    def __init__(self, problem, steps: list[str]) -> None:
        self.value = {}
        self.sound = True
        self.value |= {v: d for v, d in problem.definitions.items() if isinstance(d, int)}
        for step in steps:
            body = re.sub("^(wait)+", "", step).rstrip(";")
            if gather := re.fullmatch(r"([a-z])=[0-9][+*-][0-9]=([0-9])", body):
                self.value[gather[1]] = int(gather[2])
            elif chain := re.fullmatch(r"([a-z])=([a-z])([+*-])([a-z0-9]):([0-9])[+*-]([0-9])=([0-9])", body):
                v, x, _, y, x_written, y_written, result = chain.groups()
                shown = [(x, x_written), (y, y_written)]
                self.sound &= all(str(self.value.get(u, u if u.isdigit() else None)) == w for u, w in shown)
                self.value[v] = int(result)

    def asked(self, problem):
        return [self.value.get(v) for v in problem.asked]


def texts_of(completion: str, steps) -> list[str]:
    return [completion[s.start : s.end] for s in steps]


@EVERY_TASK
@given(SEEDS)
def test_labels_are_complete_and_in_range(name, seed):
    chosen, problem, completion = drawn(name, seed, damage=True)
    labels = chosen.label(problem, completion)
    assert labels.correct == chosen.verify(problem, completion)
    assert (labels.first_error is None) == labels.correct
    if labels.first_error is not None and completion:
        assert 0 <= labels.first_error < len(completion)
    ends = 7
    for step in labels.steps:
        assert step.start == ends
        assert step.end > step.start
        ends = step.end
    if labels.answer is not None:
        assert completion[: labels.answer].endswith("</think>")
        assert completion.find("</think>") + len("</think>") == labels.answer


@ARITHMETIC
@given(SEEDS)
def test_the_essential_steps_are_sufficient_and_each_is_necessary(name, seed):
    chosen, problem, completion = drawn(name, seed)
    labels = chosen.label(problem, completion)
    everything = Reading(problem, texts_of(completion, labels.steps)).asked(problem)
    essential = [s for s in labels.steps if s.essential]
    alone = Reading(problem, texts_of(completion, essential))
    assert alone.asked(problem) == everything
    assert alone.sound
    for left_out in essential:
        rest = Reading(problem, texts_of(completion, [s for s in essential if s is not left_out]))
        assert rest.asked(problem) != everything or not rest.sound


@ARITHMETIC
@given(SEEDS)
def test_everything_before_the_first_error_is_right_and_the_error_is_wrong(name, seed):
    chosen, problem, completion = drawn(name, seed)
    labels = chosen.label(problem, completion)
    wrong = [
        s
        for s in labels.steps
        if s.essential
        and (m := re.search(r"([0-9])([+*-])([0-9])=([0-9]);$", completion[s.start : s.end]))
        and mod10(*m.groups()[:3]) != int(m[4])
    ]
    if labels.correct:
        return
    # The teacher only slips in results, so the first wrong essential result is the first error.
    assert wrong
    assert labels.first_error == wrong[0].end - 2
    assert completion[labels.first_error].isdigit()


@EVERY_TASK
@given(SEEDS)
def test_repairing_the_first_error_removes_it(name, seed):
    """Put the right character where the first error is: the completion is right, or its next error lies further on."""
    chosen, problem, completion = drawn(name, seed)
    labels = chosen.label(problem, completion)
    if labels.correct or name == "countdown":
        return
    for digit in "0123456789":
        repaired = completion[: labels.first_error] + digit + completion[labels.first_error + 1 :]
        again = chosen.label(problem, repaired)
        if again.first_error is None or again.first_error > labels.first_error:
            return
    pytest.fail(f"no digit repairs {completion!r} at {labels.first_error}")


@EVERY_TASK
def test_every_level_differs_and_the_teacher_leaves_room(name):
    lengths = []
    for level in (1, 2, 3):
        rng, chosen = Random(level), task(name, level=level)
        completions = [(p, chosen.teach(p, rng)) for p in (chosen.problem(rng) for _ in range(200))]
        share = sum(chosen.verify(p, c) for p, c in completions) / len(completions)
        assert 0.2 < share < 0.9
        lengths.append(sum(len(p.prompt) + len(c) for p, c in completions))
        tokenizer = build_tokenizer()
        assert max(len(tokenizer(c).input_ids) for _, c in completions) < chosen.max_new_tokens
    assert lengths == sorted(lengths)


@EVERY_TASK
@given(SEEDS)
def test_the_tokenizer_keeps_every_character(name, seed):
    _, problem, completion = drawn(name, seed)
    tokenizer = build_tokenizer()
    for text in (problem.prompt, completion):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


@EVERY_TASK
@given(SEEDS)
def test_a_problem_survives_its_record(name, seed):
    chosen, problem, _ = drawn(name, seed)
    record = (
        {"nums": list(problem.nums), "target": problem.target} if name == "countdown" else {"prompt": problem.prompt}
    )
    assert chosen.parse(record) == problem


def labelled(chosen, prompt, completion):
    problem = chosen.parse({"prompt": prompt})
    labels = chosen.label(problem, completion)
    return labels, [completion[s.start : s.end] for s in labels.steps if s.essential]


def test_gather_by_hand():
    prompt = "Q:a=6+9,b=2+3,c=2+4?b,a"
    right = "<think>b=2+3=5;c=2+4=6;waitb=2+3=5;a=6+9=5;</think>\\boxed{b=5,a=5}"
    labels, essential = labelled(Gather(), prompt, right)
    assert labels.correct
    assert essential == ["b=2+3=5;", "a=6+9=5;"]
    changed = right.replace("b=2+3=5;", "b=2+3=4;", 1)
    labels, essential = labelled(Gather(), prompt, changed)
    assert labels.correct
    assert essential == ["waitb=2+3=5;", "a=6+9=5;"]
    miscopied = right.replace("a=6+9=5", "a=6+8=4").replace("a=5}", "a=4}")
    labels, _ = labelled(Gather(), prompt, miscopied)
    assert labels.first_error == miscopied.index("8=4")
    missing = "<think>b=2+3=5;</think>\\boxed{b=5,a=5}"
    assert labelled(Gather(), prompt, missing)[0].correct  # a lucky guess is still right
    missing = "<think>b=2+3=5;</think>\\boxed{b=5,a=6}"
    assert labelled(Gather(), prompt, missing)[0].first_error == missing.index("</think>")
    misread = right.replace("a=5}", "a=6}")
    assert labelled(Gather(), prompt, misread)[0].first_error == misread.index("6}")


def test_chain_by_hand():
    prompt = "Q:a=6,b=a-5,c=a*a,d=c+b,e=d*2?d"
    right = "<think>b=a-5:6-5=1;c=a*a:6*6=6;e=d*2:0*2=0;d=c+b:6+1=7;</think>\\boxed{7}"
    labels, essential = labelled(Chain(), prompt, right)
    assert labels.correct
    assert essential == ["b=a-5:6-5=1;", "c=a*a:6*6=6;", "d=c+b:6+1=7;"]
    early = "<think>d=c+b:6+1=7;</think>\\boxed{8}"
    assert labelled(Chain(), prompt, early)[0].first_error == len("<think>")
    stale = "<think>b=a-5:6-5=1;c=a*a:6*6=6;d=c+b:5+1=6;</think>\\boxed{6}"
    assert labelled(Chain(), prompt, stale)[0].first_error == stale.index("5+1")


def test_countdown_by_hand():
    chosen = Countdown()
    problem = chosen.parse({"nums": [8, 3, 5], "target": 16})
    right = "<think>(3+5)+8=8+8=16ok;</think>\\boxed{(3+5)+8}"
    labels = chosen.label(problem, right)
    assert labels.correct
    assert [s.essential for s in labels.steps] == [True]
    slip = right.replace("8+8=16ok", "8+8=17no").replace("{(3+5)+8}", "{(3*5)+8}")
    assert chosen.label(problem, slip).first_error == slip.index("17no") + 1
    verdict = right.replace("16ok", "16no").replace("{(3+5)+8}", "{(3*5)+8}")
    assert chosen.label(problem, verdict).first_error == verdict.index("no;")
    for cheat in ("16", "(3+5)+8+0", "8+8", "(3+5)+(8", "__import__('os')", "3+5+8 or 1", ""):
        assert not chosen.verify(problem, f"<think></think>\\boxed{{{cheat}}}")
    assert chosen.verify(problem, "<think></think>\\boxed{8+(5+3)}")


@EVERY_TASK
@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "<think>",
        "</think>",
        "\\boxed{",
        "<think></think>\\boxed{" + "(" * 5000,
        "<think>" + ";" * 2000,
        "\ud800\u202e",
        "٣",
    ],
    ids=repr,
)
def test_hostile_text_is_wrong_not_an_error(name, hostile):
    chosen, problem, _ = drawn(name, 0)
    assert not chosen.label(problem, hostile).correct


def test_labels_land_on_the_tokens_that_hold_them():
    pieces = ["<think>", "a=", "1", ";", "b", "=2;", "</think>", "x"]
    labels = Labels(False, (Step(7, 11, True), Step(11, 15, False)), first_error=13, answer=23)
    on_tokens = label_tokens(labels, pieces)
    assert on_tokens.step_index == [-1, 0, 0, 0, 1, 1, -1, -1]
    assert on_tokens.essential == [True, False]
    assert on_tokens.first_error == 5
    assert on_tokens.answer_start == 7


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("gather", {"prompt": "Q:a=1+2?b"}, "not defined: b"),
        ("gather", {"prompt": "Q:a=1+2,a=2+3?a"}, "twice"),
        ("gather", {"text": "x"}, "expected"),
        ("chain", {"prompt": "Q:a=1,b=c+1?b"}, "uses c before"),
        ("chain", {"prompt": "Q:a=1,a=2?a"}, "twice"),
        ("chain", {"prompt": "Q:a=1?a"}, "must be defined by an operation"),
        ("chain", {"prompt": "Q:a=1,b=a+1?z"}, "asked"),
        ("two_hop", {"prompt": "Q:a=1+2,b=c+1?b"}, "uses c before"),
        ("two_hop", {"prompt": "Q:b=b+1?b"}, "uses b before"),
        ("two_hop", {"prompt": "Q:a=1+2,b=a+1,c=b+1?c"}, "rests on another name itself"),
        ("two_hop", {"prompt": "Q:a=1+2,a=2+3?a"}, "twice"),
        ("two_hop", {"prompt": "Q:a=1+2?b"}, "not defined: b"),
        ("two_hop", {"prompt": "Q:a=1+2?"}, "expected"),
        ("two_hop", {"prompt": "Q:" + ",".join(f"{v}=1+2" for v in "abcdefghijklmnop") + "?a"}, "room for"),
        ("long_gather", {"prompt": "Q:" + ",".join(f"{v}=1+2" for v in "abcdefghijk") + "?a"}, "room for"),
        ("countdown", {"nums": "3,4", "target": 7}, '"nums" must be'),
        ("countdown", {"nums": [3], "target": 7}, '"nums" must be'),
        ("countdown", {"nums": [3, True], "target": 7}, '"nums" must be'),
        ("countdown", {"nums": [3, 4], "target": "7"}, '"target" must be'),
        ("countdown", {"nums": [3, 4]}, '"target" must be'),
    ],
)
def test_a_broken_record_says_why(name, record, message):
    with pytest.raises(ValueError, match=message):
        task(name).parse(record)


def test_unknown_tasks_and_levels():
    with pytest.raises(ValueError, match="chain, countdown, gather"):
        task("sudoku")
    with pytest.raises(ValueError, match="use 1, 2, 3"):
        task("gather", level=9)
