from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.testbed.tasks.expressions import evaluate, numbers, parse_expression

EXPRESSIONS = st.recursive(
    st.integers(0, 50).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (
            f"({t[0][0]}{t[1]}{t[2][0]})",
            {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]],
        )
    ),
    max_leaves=5,
)


@given(EXPRESSIONS)
def test_the_value_is_the_value(expression):
    text, value = expression
    assert evaluate(parse_expression(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("2+3*4", 14), ("(2+3)*4", 20), ("8-3-2", 3), ("8/4/2", 1), ("7/2", Fraction(7, 2)), (" 1 + 1 ", 2), ("1/3*3", 1)],
)
def test_precedence_and_associativity(text, value):
    assert evaluate(parse_expression(text)) == value


def test_numbers_from_left_to_right():
    assert numbers(parse_expression("(12+3)*4-12")) == [12, 3, 4, 12]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "1+",
        "-1",
        "(1",
        "1)",
        "1 2",
        "2**3",
        "2//3",
        "a",
        "1.5",
        "1e9",
        "__import__('os')",
        "٣",
        "²",
        "1\x00",
        "9" * 30,
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_expression(text)


def test_bounds():
    with pytest.raises(ValueError, match="deeper"):
        parse_expression("(" * 60 + "1" + ")" * 60)
    with pytest.raises(ValueError, match="characters"):
        parse_expression("1+" * 150 + "1")
    with pytest.raises(ValueError, match="past"):
        evaluate(parse_expression("*".join(["999999"] * 4)))
    with pytest.raises(ValueError, match="zero"):
        evaluate(parse_expression("1/(2-2)"))
