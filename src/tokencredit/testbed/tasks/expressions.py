"""A parser of arithmetic expressions for text that nobody trusts: no eval, bounded in size, depth and magnitude."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 20
MAX_MAGNITUDE = 10**9

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")


@dataclass(frozen=True)
class Number:
    value: int


@dataclass(frozen=True)
class Operation:
    left: Expression
    operator: str
    right: Expression


Expression = Number | Operation


def parse_expression(text: str) -> Expression:
    """Parse non-negative whole numbers, + - * / and parentheses, with the usual precedence.

    Raises:
        ValueError: not such an expression, or past a bound.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"expression of {len(text)} characters; at most {MAX_CHARACTERS} are read")
    parser = _Parser(_tokenize(text))
    expression = parser.sum(depth=0)
    if parser.peek() is not None:
        raise ValueError(f"unexpected {parser.peek()!r} in expression")
    return expression


def evaluate(expression: Expression) -> Fraction:
    """The exact value. Raises ValueError on division by zero or a value past the bound."""
    if isinstance(expression, Number):
        return Fraction(expression.value)
    left, right = evaluate(expression.left), evaluate(expression.right)
    if expression.operator == "/" and right == 0:
        raise ValueError("division by zero")
    value = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[expression.operator]()
    if abs(value.numerator) > MAX_MAGNITUDE or value.denominator > MAX_MAGNITUDE:
        raise ValueError(f"a value past {MAX_MAGNITUDE}")
    return value


def numbers(expression: Expression) -> list[int]:
    """The numbers it uses, from left to right."""
    if isinstance(expression, Number):
        return [expression.value]
    return numbers(expression.left) + numbers(expression.right)


def _tokenize(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise ValueError(f"unexpected {text[position]!r} in expression")
        tokens.append(match[1])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum = product (+|- product)*; product = atom (*|/ atom)*; atom = number | ( sum )."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    def peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def sum(self, depth: int) -> Expression:
        expression = self._product(depth)
        while self.peek() in ("+", "-"):
            expression = Operation(expression, self._take(), self._product(depth))
        return expression

    def _product(self, depth: int) -> Expression:
        expression = self._atom(depth)
        while self.peek() in ("*", "/"):
            expression = Operation(expression, self._take(), self._atom(depth))
        return expression

    def _atom(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ValueError(f"expression nested deeper than {MAX_DEPTH}")
        token = self.peek()
        if token == "(":
            self._take()
            expression = self.sum(depth + 1)
            if self.peek() != ")":
                raise ValueError("a parenthesis is not closed")
            self._take()
            return expression
        if token is None or not token.isdigit():
            raise ValueError(f"expected a number, found {token!r}")
        number = Number(int(self._take()))
        if number.value > MAX_MAGNITUDE:
            raise ValueError(f"a number past {MAX_MAGNITUDE}")
        return number

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]
