"""The README's library example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_library_example_runs(capsys):
    example = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[0]
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)  # noqa: S102 - our own README
    assert names["credit"].advantages.shape == (4, 20)
    assert "tensor" in capsys.readouterr().out
    assert len([line for line in example.splitlines() if line.strip()]) <= 15


def test_the_table_of_methods_is_the_truth():
    import tokencredit as tc

    ready = [line for line in README.read_text("utf-8").splitlines() if line.endswith("| ready |")]
    assert sorted(name for line in ready for name in re.findall(r"`(\w+)`", line.split("|")[1])) == tc.methods()
