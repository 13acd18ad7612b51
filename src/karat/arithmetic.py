"""Numbers and equations as people write them in running text, read and computed.

`200 GB / 2 GB/minute = 100 minutes` is an equation: words between a number and an operator are units. What is computed are
numbers, + − · / and brackets, in plain floating point; nothing is evaluated as code, and every text takes time linear in
its length. Knows texts; knows nothing about prompts, votes or models.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

MOST_CHARS = 20_000
"""Of a text; what stands behind is not read."""
MOST_EQUATIONS = 200
"""Of a text; those behind are not read."""
MOST_TERMS = 64
"""Numbers, operators and brackets of one side; a longer side is not computed."""
MOST_DIGITS = 30
"""Of a number; a longer one has no value."""
UNIT_WORDS = 4
"""Words that may stand between a number and the operator behind it, or between it and the equals sign."""

AS_WRITTEN = str.maketrans({"×": "*", "·": "*", "∙": "*", "÷": "/", "⁄": "/", "−": "-", "–": "-"})
PARTS = {"½": "1/2", "¼": "1/4", "¾": "3/4"}
MIXED = re.compile(r"(?:(?<![\d.,])(\d{1,15}) ?)?([½¼¾])")
"""Half, and one and a half, as what they are in brackets; with a bound, so that long rows of digits are not read again and again."""
SPOKEN = {"x": "*", "times": "*", "plus": "+", "minus": "-"}
VARIABLES = {"x", "y", "z", "n"}
"""Letters that are taken for an unknown where one is written against a number; others are units."""
TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|(?<=[$€£])\d{1,3}(?: \d{3})+(?!\d)|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?P<percent>\s?%)?"
    r"|(?P<operator>[-+*/])|(?P<equals>=)|(?P<open>\()|(?P<close>\))|(?P<unread>[\^√¹²³⁰⁴-⁹])"
    r"|(?P<word>[^\W\d_]+)|(?P<stop>[.,;:!?]|[<>](?==))"
)
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Number:
    """A number as written."""

    value: float
    """nan = too long to be read."""
    n_decimals: int
    """Digits behind the point."""
    percent: bool
    """True = a percent sign stands behind it; the value is what stands before it."""


@dataclass(frozen=True)
class Equation:
    """Two sides with an equals sign between, at least one of which has to be computed."""

    operands: tuple[Number, ...]
    """Numbers of the side that has to be computed."""
    operators: str
    """Between them."""
    result: float
    """The other side, as written; nan where it cannot be computed."""
    holds: bool
    """True = the sides are equal, as far as the digits written can say."""
    exact: bool
    """True = equal without rounding."""
    line: int
    """Of the text, from 0."""


def numbers_in(text: str) -> list[Number]:
    """Every number of a text, in order, without sign."""
    found = TOKEN.finditer(_as_read(text))
    return [_number(match) for match in found if match.lastgroup in ("number", "percent")]


def equations_in(text: str) -> list[Equation]:
    """Every equation of a text that can be read, in order; `a = b = c` is two."""
    found: list[Equation] = []
    for number, line in enumerate(_as_read(text).split("\n")):
        if "=" not in line:
            continue
        sides = [_runs(part) for part in _segments(line)]
        for before, after in itertools.pairwise(sides):
            left = before[-1] if before and before[-1].ends else None
            right = after[0] if after and after[0].begins else None
            equation = _equation(left, right, number) if left and right else None
            if equation is not None:
                found.append(equation)
                if len(found) == MOST_EQUATIONS:
                    return found
    return found


def _as_read(text: str) -> str:
    written = text[:MOST_CHARS].translate(AS_WRITTEN)
    return MIXED.sub(lambda found: f"({found[1]}+{PARTS[found[2]]})" if found[1] else f"({PARTS[found[2]]})", written)


Term = Number | str
Token = re.Match[str]


@dataclass(frozen=True)
class _Run:
    """Numbers and operators that follow one another."""

    terms: tuple[Term, ...]
    begins: bool
    """True = nothing but some words stands before it in its segment."""
    ends: bool
    """The same behind it."""


def _number(match: Token) -> Number:
    digits = match["number"].replace(",", "").replace(" ", "")
    decimals = len(digits.partition(".")[2])
    value = float(digits) if len(digits) <= MOST_DIGITS else math.nan
    return Number(value, decimals, match["percent"] is not None)


def _segments(line: str) -> list[list[Token]]:
    """Tokens between the equals signs of a line."""
    found: list[list[Token]] = [[]]
    for match in TOKEN.finditer(line):
        if match["equals"]:
            found.append([])
        else:
            found[-1].append(match)
    return found


def _runs(tokens: Sequence[Token]) -> list[_Run]:
    """Runs of a segment: number, operator, number …, brackets in between; one that leads to an unknown is none."""
    reader = _Reader()
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        reader.read(token, before, after)
    reader.flush(ends=True)
    return reader.found


class _Reader:
    """Goes through the tokens of a segment once."""

    def __init__(self) -> None:
        self.found: list[_Run] = []
        self.terms: list[Term] = []
        self.depth, self.n_words = 0, 0
        self.begins, self.whole, self.negative = True, True, False

    @property
    def has_operand(self) -> bool:
        """True = an operator may follow."""
        return bool(self.terms) and (isinstance(self.terms[-1], Number) or self.terms[-1] == ")")

    def flush(self, *, ends: bool = False, torn: bool = False) -> None:
        """The run ends here; it counts where it can be computed. Torn: within a number, so that the next one does not count either."""
        if (
            self.terms
            and self.whole
            and not torn
            and self.depth == 0
            and self.has_operand
            and len(self.terms) <= MOST_TERMS
        ):
            self.found.append(_Run(tuple(self.terms), self.begins, ends))
        self.begins = False
        self.terms, self.depth, self.whole, self.negative, self.n_words = [], 0, not torn, False, 0

    def read(self, token: Token, before: Token | None, after: Token | None) -> None:
        """One more token, with its neighbours."""
        word = (token["word"] or "").casefold()
        sign = token["operator"] or SPOKEN.get(word)
        operand_next = after is not None and (after["number"] or after["open"]) is not None
        if token["number"] or token["open"]:
            self._operand(token, before)
        elif token["close"]:
            if self.depth and self.has_operand:
                self.terms.append(")")
                self.depth -= 1
            else:
                self.flush()
        elif sign and self.has_operand and operand_next:
            self.terms.append(sign)
            self.n_words = 0
        elif token["operator"]:
            self._stray(token, before, after)
        elif word:
            glued = before is not None and before["number"] and before.end() == token.start()
            if glued and word in VARIABLES:
                self.whole = False
            self.n_words += 1
            if self.n_words > UNIT_WORDS:
                self.flush()
        elif token["unread"]:
            if token["unread"] in "^√" or before is None or not before["word"]:  # cm² is a unit, 5² is not read
                self.whole = False
                self.flush()
                self.whole = False
        else:
            # 1,5 and 12:30 are numbers that are not read
            inside = _joined(before, token) and _joined(token, after) and before["number"] and after["number"]
            self.flush(torn=bool(inside))

    def _operand(self, token: Token, before: Token | None) -> None:
        joined = _joined(before, token)
        named = joined and len(before["word"] or "") == 1  # x2, and the 5 of 1e5, are no numbers
        if self.has_operand:
            if (token["open"] and joined) or (self.n_words == 1 and before is not None and before["word"] == "of"):
                self.terms.append("*")
            else:
                # nor are the parts of 1 1/2 and of 1 000
                apart = token["number"] and before["number"] and token.string[before.end() : token.start()].isspace()
                self.flush(torn=bool(apart) or (named and before["word"] in "eE"))
                self.whole = self.whole and not token["open"]  # 70 (70 %) says one thing twice
        if named and not self.terms:
            self.whole = False
        if token["open"]:
            self.terms.append("(")
            self.depth += 1
        else:
            number = _number(token)
            self.terms.append(replace(number, value=-number.value) if self.negative else number)
        self.negative, self.n_words = False, 0

    def _stray(self, token: Token, before: Token | None, after: Token | None) -> None:
        """An operator that does not stand between two operands: of a unit (miles/hour), a sign, or beside an unknown."""
        if token["operator"] == "/" and after is not None and after["word"]:
            return
        beside_unknown = bool(before is not None and (before["word"] or before["unread"]))
        if self.has_operand:
            self.whole = False
            self.flush()
        if after is None or not (after["number"] or after["open"]):
            return
        if token["operator"] == "-" and after["number"] and after.start() == token.end() and not beside_unknown:
            self.negative = True
        elif beside_unknown:
            self.whole = False


def _joined(one: Token | None, other: Token | None) -> bool:
    return one is not None and other is not None and one.end() == other.start()


def _equation(left: _Run, right: _Run, line: int) -> Equation | None:
    """What two sides say; None where nothing is computed, or something cannot be."""
    computed, other = (left, right) if _operators(left) else (right, left)
    numbers, operators = tuple(term for term in computed.terms if isinstance(term, Number)), _operators(computed)
    if not operators or any(isinstance(term, Number) and math.isnan(term.value) for term in left.terms + right.terms):
        return None
    given = [_value(other.terms, percent) for percent in (True, False)]
    wanted = [_value(computed.terms, percent) for percent in (True, False)]
    lone = other.terms[0] if len(other.terms) == 1 else None
    half = 0.5 * 10.0 ** -min(lone.n_decimals, MOST_DIGITS) if isinstance(lone, Number) else 0.0
    halves = half / 100 if isinstance(lone, Number) and lone.percent else half, half  # of 33 %, rounded to a hundredth
    gaps = [(abs(a - b), 1e-9 * max(1.0, abs(a)), own) for a in wanted for b, own in zip(given, halves, strict=True)]
    exact = any(gap <= slack for gap, slack, _ in gaps)
    holds = exact or any(gap <= own + slack for gap, slack, own in gaps)
    return Equation(numbers, operators, given[1], holds, exact, line)


def _operators(side: _Run) -> str:
    return "".join(term for term in side.terms if isinstance(term, str) and term in PRECEDENCE)


def _value(terms: Sequence[Term], percent: bool) -> float:
    """What they come to; nan for a division by zero, an overflow or a number without value.

    Args:
        percent: True = 5 % is .05, otherwise 5.
    """
    values: list[float] = []
    waiting: list[str] = []

    def apply() -> None:
        sign, b, a = waiting.pop(), values.pop(), values.pop()
        if sign == "/":
            values.append(a / b if b else math.nan)
        else:
            values.append(a + b if sign == "+" else a - b if sign == "-" else a * b)

    for term in terms:
        if isinstance(term, Number):
            values.append(term.value / 100 if percent and term.percent else term.value)
        elif term == "(":
            waiting.append(term)
        elif term == ")":
            while waiting[-1] != "(":
                apply()
            waiting.pop()
        else:
            while waiting and waiting[-1] != "(" and PRECEDENCE[waiting[-1]] >= PRECEDENCE[term]:
                apply()
            waiting.append(term)
    while waiting:
        apply()
    return values[0] if math.isfinite(values[0]) else math.nan
