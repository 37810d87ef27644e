"""Methods as text."""

from dataclasses import dataclass
from importlib import import_module

import pytest

from tokencredit.methods import methods
from tokencredit.methods.specs import (
    EVERY_METHOD,
    build_specs,
    check_specs,
    expand_specs,
    parse_spec,
    sketch,
    split_specs,
)


def test_parameters_may_hold_commas():
    text = "uniform, rhythm:strategy=local,q=0.3,horizon=[1,4] ,attnpo:heads=[[1,0],[2,1]],beta=1"
    assert split_specs(text) == (
        "uniform",
        "rhythm:strategy=local,q=0.3,horizon=[1,4]",
        "attnpo:heads=[[1,0],[2,1]],beta=1",
    )


def test_all_stands_for_every_method_alone_or_among_others():
    assert {parse_spec(spec)[0] for spec in EVERY_METHOD} == set(methods())
    assert expand_specs("all") == EVERY_METHOD
    assert expand_specs("atpo:floor=0.5, all,uniform") == (
        "atpo:floor=0.5",
        *(spec for spec in EVERY_METHOD if spec != "uniform"),
        "uniform",
    )
    assert expand_specs("all,oracle", every=("a", "oracle")) == ("a", "oracle")
    with pytest.raises(ValueError, match="each once"):
        check_specs(expand_specs("all,all"))


def test_of_all_those_that_need_heads_are_left_out_and_named_ones_refused():
    built, left_out = build_specs("all")
    assert (*built, *left_out) == (*(spec for spec in EVERY_METHOD if spec != "attnpo"), "attnpo")
    assert "heads=heads.json" in left_out["attnpo"]
    assert build_specs("atpo:floor=0.5")[0]["atpo:floor=0.5"].floor == 0.5
    built, left_out = build_specs("all,attnpo:heads=[[0,1]]")
    assert built["attnpo:heads=[[0,1]]"].heads == ((0, 1),)
    with pytest.raises(ValueError, match="attnpo:beta=1: it reads key-focus heads"):
        build_specs("uniform,attnpo:beta=1")


def test_values_are_json_or_text():
    spec = "rhythm:strategy=coupled,q=0.3,horizon=[1,4]"
    assert parse_spec(spec) == ("rhythm", {"strategy": "coupled", "q": 0.3, "horizon": [1, 4]})
    assert sketch(spec).horizon == (1, 4)
    assert parse_spec("attnpo:heads=heads.json,incorrect=true") == (
        "attnpo",
        {"heads": "heads.json", "incorrect": True},
    )
    assert parse_spec("attnpo:incorrect=True,model=None")[1] == {"incorrect": True, "model": None}
    assert sketch("attnpo").name == "attnpo"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("stub:size=1,shape=2", "method stub: shape=2 is of a type"),
        ("stub:size=1,shape=2,colour=3", "method stub: shape=2, colour=3 is of a type"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(spec, named, monkeypatch):
    """`stub` is a method whose constructor does not look at types, as those of users may not."""

    @dataclass(frozen=True)
    class Stub:
        size: int = 1
        shape: tuple = ()
        colour: str = ""

        def __post_init__(self):
            len(self.shape), len(self.colour)

    monkeypatch.setitem(import_module("tokencredit.methods")._METHODS, "stub", Stub)
    with pytest.raises(ValueError, match=named):
        check_specs((spec,))


def test_a_parameter_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="gives floor twice"):
        parse_spec("atpo:floor=0.1, floor=0.9")


@pytest.mark.parametrize(
    "specs", [(), ("uniform", "uniform"), ("nope",), ("atpo:floor",), ("atpo:floor=2",), ("attnpo:incorrect=yes",)]
)
def test_bad_specs_are_refused(specs):
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own message
        check_specs(specs)
