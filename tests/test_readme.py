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

    listed = re.findall(r"^\| \[`(\w+)`\]\(docs/methods/(\w+)\.md\)", README.read_text("utf-8"), re.MULTILINE)
    assert all(name == card for name, card in listed)
    assert sorted(name for name, _ in listed) == tc.methods()


def test_every_method_has_a_card_with_its_parameters_and_their_defaults():
    import ast
    import dataclasses

    import tokencredit as tc
    from tokencredit.methods import _METHODS

    cards = README.parent / "docs" / "methods"
    assert sorted(path.stem for path in cards.glob("*.md") if path.stem != "README") == tc.methods()
    for name, cls in _METHODS.items():
        card = (cards / f"{name}.md").read_text("utf-8")
        rows = re.findall(r"^\| (`.*?) \| (.*?) \|", card, re.MULTILINE)
        documented = {parameter: default for names, default in rows for parameter in re.findall(r"`(\w+)`", names)}
        for field in dataclasses.fields(cls):
            assert field.name in documented, (name, field.name)
            if field.default not in (dataclasses.MISSING, None):
                assert ast.literal_eval(documented[field.name].strip("`")) == field.default, (name, field.name)
