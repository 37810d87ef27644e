import json

import pytest

from tokencredit.testbed.problems import generate_problems, is_held_out, load_problems
from tokencredit.testbed.tasks import task, tasks


@pytest.mark.parametrize("name", tasks())
def test_the_two_sides_never_meet(name):
    training = {p.prompt for p in generate_problems(task(name), 1500, held_out=False, seed=0)}
    held_out = [p.prompt for p in generate_problems(task(name), 100, held_out=True, seed=1)]
    assert len(set(held_out)) == 100
    assert not training & set(held_out)
    assert 0.1 < sum(map(is_held_out, (task(name).parse(_record(p)) for p in held_out))) / 100 <= 1


def _record(prompt):
    if prompt.startswith("Q:"):
        return {"prompt": prompt}
    nums, target = prompt.rstrip("?\n").split("=")
    return {"nums": [int(n) for n in nums.split(",")], "target": int(target)}


def test_a_seed_repeats_itself():
    a, b, c = (generate_problems(task("gather"), 20, held_out=True, seed=s) for s in (0, 0, 1))
    assert a == b
    assert a != c


def test_more_problems_than_a_task_has():
    with pytest.raises(ValueError, match="fewer than 3000 distinct"):
        generate_problems(task("countdown", level=1), 3000, held_out=True, seed=0)


def write(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), "utf-8")
    return path


def test_a_users_file_is_split_and_repeats_are_dropped(tmp_path):
    records = [{"nums": [a, b, 7], "target": a + b} for a in range(1, 8) for b in range(1, 8)]
    training, held_out = load_problems(task("countdown"), write(tmp_path / "p.jsonl", [*records, "", records[0]]))
    assert len(training) + len(held_out) == 28
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, training))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: "),
        ("[1]", "line 3: expected a JSON object"),
        ('{"nums": [1]}', 'line 3: "nums" must be'),
        ("[" * 100_000, "line 3: "),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    good = {"nums": [1, 2, 3], "target": 6}
    with pytest.raises(ValueError, match=message):
        load_problems(task("countdown"), write(tmp_path / "p.jsonl", [good, "", line, good]))


def test_a_file_with_too_little_to_split(tmp_path):
    with pytest.raises(ValueError, match="both sides need at least one"):
        load_problems(task("countdown"), write(tmp_path / "p.jsonl", [{"nums": [1, 2, 3], "target": 6}]))
