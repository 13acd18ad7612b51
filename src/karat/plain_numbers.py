"""Plain features of answers that are worked out in numbers: what a reader checks without knowing the right answer.

Every equation is computed; numbers are followed from the prompt into operands and from results into later operands. Two
numbers are the same where six digits are. Nothing is learned here, and no answer is known. Knows texts; knows nothing about
votes or models. An answer that copies, adds and uses every number once looks well worked out whatever it says.

Dimension letters: N responses, T tokens of one response.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from karat.arithmetic import MOST_CHARS, Equation, Number, equations_in, numbers_in
from karat.plain_features import words_of

SPOKEN = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "dozen": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "hundred": 100, "thousand": 1000, "half": 0.5, "quarter": 0.25, "twice": 2, "double": 2, "thrice": 3, "triple": 3,
}  # fmt: skip
"""English words that are quantities of a prompt; "one" is mostly none."""
MAYBE = {"one": 1, "third": 1 / 3, "thirds": 2 / 3, "week": 7}
"""Words whose number may be used, and may as well not be."""
CONSTANTS = (0.01, 1, 2, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)
"""Numbers that everybody may bring along: of days, months, hours, minutes, of parts of a whole."""
LARGEST = 1e9
"""Beyond it a number is as large as this."""

MOST = 10
"""Counts stop here, so that no answer gains by more and more of the same."""

CHECKED = ("no equation", "share that hold", "any wrong", "any rounded", "lines with one")
COUNTED = (
    "log equations", "log operators", "log quantities", "log digit quantities", "log operators a quantity", "operators missing",
    "operators too many", "one equation at most", "most numbers in one",
)  # fmt: skip
USED = ("share used", "unused", "all used", "share named", "not named", "share of digits used", "digits unused")
SOURCES = ("prompt", "earlier result", "constant", "nowhere", "constants", "from nowhere", "used again")
FLOW = (
    "dangling", "share dangling", "any dangling", "depth", "last takes a result", "last takes the one before",
    "last takes the prompt's", "repeated results", "repeated equations",
)  # fmt: skip
FINAL = (
    "none", "last result", "some result", "prompt's", "whole", "zero", "one", "any negative", "log", "log²", "log over largest",
    "|log over largest|", "far above largest", "below smallest", "of 5", "of 10", "decimals", "share of fractions",
    "any fraction", "long decimals", "two decimals",
)  # fmt: skip
SIGNS = (*(f"{what} {sign}" for sign in "+-*/" for what in ("share", "log", "last")), "kinds")
NUMBER_COLUMNS = tuple(
    f"{family}: {name}"
    for family, names in (
        ("checked", CHECKED), ("counted", COUNTED), ("used", USED), ("sources", SOURCES), ("flow", FLOW), ("final", FINAL),
        ("signs", SIGNS),
    )
    for name in names
)  # fmt: skip
"""What each column of `response_numbers` says."""


def response_numbers(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Columns as `NUMBER_COLUMNS` names them, [N, 71]."""
    given = {prompt: _asked(prompt) for prompt in dict.fromkeys(prompts)}
    rows = [_row(given[prompt], text) for prompt, text in zip(prompts, texts, strict=True)]
    return np.array(rows, dtype=float).reshape(len(texts), len(NUMBER_COLUMNS))


def final_number(text: str) -> float | None:
    """The last number of a text, which is what an answer comes to where it says so at its end; None = there is none."""
    numbers = numbers_in(text)
    return numbers[-1].value if numbers and math.isfinite(numbers[-1].value) else None


def token_numbers(prompt: str, text: str, spans: np.ndarray) -> np.ndarray:
    """What the equations of a token's line say, [T, 8]; 0 on a line without one.

    It has one; one does not hold; one holds only rounded; shares of operands from the prompt, from results of earlier lines,
    from nowhere (constants aside); its last result is taken up later or is the last of all; log(1 + operators).

    Args:
        spans: first and behind-last code point of each token, [T, 2]; (0, 0) = the end of the response.
    """
    asked, equations = _asked(prompt), equations_in(text)
    lines: dict[int, list[Equation]] = {}
    for one in equations:
        lines.setdefault(one.line, []).append(one)
    last_use = {same(number.value): one.line for one in equations for number in one.operands}
    known, before = set(map(same, CONSTANTS)), set[str]()
    rows = np.zeros((text.count("\n") + 1, 8))
    for line, own in lines.items():
        keys = [same(number.value) for one in own for number in one.operands]
        results = [same(one.result) for one in own]
        here = before | set(results)
        nowhere = [not (key in asked.forms or key in here or key in known) for key in keys]
        taken = last_use.get(results[-1], -1) > line or own[-1] is equations[-1]
        rows[line] = [
            1, not all(one.holds for one in own), any(one.holds and not one.exact for one in own),
            _share([key in asked.forms for key in keys]), _share([key in before for key in keys]), _share(nowhere), taken,
            math.log1p(sum(len(one.operators) for one in own)),
        ]  # fmt: skip
        before = here
    starts = np.array([0, *(k + 1 for k, letter in enumerate(text) if letter == "\n")])
    start = np.where(spans[:, 1] > 0, spans[:, 0], max(0, len(text) - 1))
    return rows[np.searchsorted(starts, start, side="right") - 1]


def same(value: float) -> str:
    """What two numbers that are the same share: six digits."""
    return f"{value:.6g}"


@dataclass(frozen=True)
class _Asked:
    """Numbers of a prompt."""

    digits: tuple[float, ...]
    """Written in digits, each once."""
    quantities: tuple[float, ...]
    """These and spoken ones, each once."""
    n_digits: int
    """How often digits stand there."""
    n_quantities: int
    """The same with spoken ones."""
    forms: frozenset[str]
    """What an operand from the prompt may look like: the quantities, and a percentage as share, rest and factor."""


def _asked(prompt: str) -> _Asked:
    numbers = [number for number in numbers_in(prompt) if math.isfinite(number.value)]
    words = words_of(prompt[:MOST_CHARS])
    digits, spoken = [number.value for number in numbers], [SPOKEN[word] for word in words if word in SPOKEN]
    forms = {*digits, *spoken, *(MAYBE[word] for word in words if word in MAYBE)}
    for number in numbers:
        if number.percent:
            part = number.value / 100
            forms |= {part, 1 - part, 1 + part, 100 - number.value, 100 + number.value}
    every = [*digits, *spoken]
    return _Asked(_once(digits), _once(every), len(digits), len(every), frozenset(map(same, forms)))


def _once(values: Sequence[float]) -> tuple[float, ...]:
    return tuple({same(value): value for value in values}.values())


def _row(asked: _Asked, text: str) -> list[float]:
    equations, numbers = equations_in(text), numbers_in(text)
    n_lines = sum(bool(line.strip()) for line in text[:MOST_CHARS].split("\n"))
    return [
        *_checked(equations, n_lines), *_counted(asked, equations), *_used(asked, equations, numbers),
        *_sources(asked, equations), *_flow(asked, equations), *_final(asked, equations, numbers), *_signs(equations),
    ]  # fmt: skip


def _checked(equations: Sequence[Equation], n_lines: int) -> list[float]:
    n = len(equations)
    holding = sum(one.holds for one in equations)
    rounded = any(one.holds and not one.exact for one in equations)
    return [n == 0, holding / max(1, n), holding < n, rounded, len({one.line for one in equations}) / max(1, n_lines)]


def _counted(asked: _Asked, equations: Sequence[Equation]) -> list[float]:
    n, n_operators = len(equations), sum(len(one.operators) for one in equations)
    spare = n_operators + 1 - asked.n_quantities
    logs = np.log1p([n, n_operators, asked.n_quantities, asked.n_digits]).tolist()
    each = math.log1p(n_operators) - math.log(max(1, asked.n_quantities))
    widest = max((len(one.operands) for one in equations), default=0)
    return [*logs, each, min(max(0, -spare), MOST), min(max(0, spare), MOST), n <= 1, min(widest, MOST)]


def _used(asked: _Asked, equations: Sequence[Equation], numbers: Sequence[Number]) -> list[float]:
    operands = _ways(number for one in equations for number in one.operands)
    said = {same(number.value) for number in numbers}
    used, named, digits = (
        [bool({same(value), same(value / 100)} & where) for value in values]
        for values, where in ((asked.quantities, operands), (asked.quantities, said), (asked.digits, operands))
    )
    unused, unnamed, undigits = (min(flags.count(False), MOST) for flags in (used, named, digits))
    return [_share(used), unused, all(used), _share(named), unnamed, _share(digits), undigits]


def _ways(numbers: Iterable[Number]) -> set[str]:
    """Numbers as they stand, a percentage as a share too."""
    return {same(way) for one in numbers for way in ((one.value, one.value / 100) if one.percent else (one.value,))}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / max(1, len(flags))


def _sources(asked: _Asked, equations: Sequence[Equation]) -> list[float]:
    """Where operands come from: shares of all of them, two counts up to 3, and the share that is used once more."""
    known, results = set(map(same, CONSTANTS)), set[str]()
    counts, times = Counter[str](), Counter[str]()
    for one in equations:
        for operand in one.operands:
            key = same(operand.value)
            times[key] += 1
            if key in asked.forms:
                counts["prompt"] += 1
            elif key in results:
                counts["result"] += 1
            elif key in known or operand.percent:
                counts["constant"] += 1
            else:
                counts["nowhere"] += 1
        results.add(same(one.result))
    n = max(1, counts.total())
    again = sum(times[key] - 1 for key in times if key in asked.forms and key != "1")
    shares = [counts[name] / n for name in ("prompt", "result", "constant", "nowhere")]
    return [*shares, min(counts["constant"], 3), min(counts["nowhere"], 3), again / n]


def _flow(asked: _Asked, equations: Sequence[Equation]) -> list[float]:
    """Whether results are taken up later: a dangling one is not, and is not the last."""
    n = len(equations)
    results = [same(one.result) for one in equations]
    operands = [[same(operand.value) for operand in one.operands] for one in equations]
    last_use = {key: k for k, own in enumerate(operands) for key in own}
    dangling = sum(last_use.get(key, -1) <= k for k, key in enumerate(results[:-1]))
    depth_of: dict[str, int] = {}
    depth = 0
    for key, own in zip(results, operands, strict=True):
        here = 1 + max((depth_of.get(operand, 0) for operand in own), default=0)
        depth, depth_of[key] = max(depth, here), max(here, depth_of.get(key, 0))
    last = operands[-1] if operands else []
    repeated = n - len({(one.operators, *sorted(own)) for one, own in zip(equations, operands, strict=True)})
    return [
        min(dangling, 4), dangling / max(1, n - 1), dangling > 0, min(depth, MOST), bool(set(last) & set(results[:-1])),
        n > 1 and results[-2] in last, _share([key in asked.forms for key in last]), min(n - len(set(results)), MOST), min(repeated, MOST),
    ]  # fmt: skip


def _final(asked: _Asked, equations: Sequence[Equation], numbers: Sequence[Number]) -> list[float]:
    """What the last number looks like, and the results before it."""
    given = bool(numbers) and math.isfinite(numbers[-1].value)
    final = min(numbers[-1].value, LARGEST) if given else 0.0
    key, results = same(final), [one.result for one in equations if math.isfinite(one.result)]
    fractions = [abs(value) < LARGEST and value != round(value) for value in results]
    decimals = [number.n_decimals for number in numbers] or [0]
    size, most = math.log1p(final), math.log1p(min(max(asked.quantities, default=0.0), LARGEST))
    least = math.log1p(min(min(asked.quantities, default=0.0), LARGEST))
    is_last = bool(equations) and key == same(equations[-1].result)
    return [
        not given, is_last, key in set(map(same, results)), key in asked.forms, final == int(final), final == 0, final == 1,
        any(value < 0 for value in results), size, size**2 / 10, size - most, abs(size - most), max(0.0, size - most - 3),
        size < least, given and final % 5 == 0, given and final % 10 == 0, min(decimals[-1], 4), _share(fractions),
        any(fractions), max(decimals) > 3, max(decimals) == 2,
    ]  # fmt: skip


def _signs(equations: Sequence[Equation]) -> list[float]:
    every = "".join(one.operators for one in equations)
    last = equations[-1].operators[-1:] if equations else ""
    found: list[float] = []
    for sign in "+-*/":
        n = every.count(sign)
        found += [n / max(1, len(every)), math.log1p(n), last == sign]
    return [*found, len(set(every))]
