"""Written sums by definition: exact fractions by recursive descent, and results followed by looking at every pair of steps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def value_of(expression: str) -> Fraction | None:
    """What a sum of numbers, + - * / and brackets comes to; None = it divides by zero."""
    text = expression.replace(" ", "")
    try:
        value, rest = _sum(text)
    except ZeroDivisionError:
        return None
    assert rest == ""
    return value


def _sum(text: str) -> tuple[Fraction, str]:
    total, text = _product(text)
    while text[:1] in ("+", "-") and text:
        sign = text[0]
        one, text = _product(text[1:])
        total = total + one if sign == "+" else total - one
    return total, text


def _product(text: str) -> tuple[Fraction, str]:
    total, text = _atom(text)
    while text[:1] in ("*", "/") and text:
        sign = text[0]
        one, text = _atom(text[1:])
        total = total * one if sign == "*" else total / one
    return total, text


def _atom(text: str) -> tuple[Fraction, str]:
    if text[0] == "(":
        value, text = _sum(text[1:])
        assert text[0] == ")"
        return value, text[1:]
    n = 0
    while n < len(text) and text[n] in "0123456789.":
        n += 1
    return Fraction(text[:n]), text[n:]


def dangling(steps: Sequence[tuple[Sequence[float], float]]) -> int:
    """Results, the last one aside, that no later step has among its numbers."""
    return sum(
        not any(result == number for later in range(k + 1, len(steps)) for number in steps[later][0])
        for k, (_, result) in enumerate(steps[:-1])
    )


def depth(steps: Sequence[tuple[Sequence[float], float]]) -> int:
    """Steps of the longest chain in which each takes the result of one before."""

    def of(k: int) -> int:
        return 1 + max((of(j) for j in range(k) if steps[j][1] in steps[k][0]), default=0)

    return max((of(k) for k in range(len(steps))), default=0)
