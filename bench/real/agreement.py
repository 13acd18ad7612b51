"""How far answers to one question agree: what is known of an answer once its rivals lie beside it, and nobody has judged any.

A feature of a set of answers, so no reward of one response reads it. Knows texts.

Dimension letters: N answers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from bench.real.measures import members_of

from karat.arithmetic import equations_in
from karat.plain_numbers import final_number, same

COLUMNS = (
    "share of the others with its final number", "any of them has it", "share of its results that another has",
    "share of another's results that it has", "share of the others whose first result is its own",
    "share of the others with its final number among their results", "different final numbers an answer",
    "share of the others that agree against it", "results that two others share",
)  # fmt: skip


def agreement(texts: Sequence[str], key: np.ndarray) -> np.ndarray:
    """Columns as `COLUMNS` names them, [N, 9]; an answer without rivals has 0.

    Args:
        key: the question of each answer.
    """
    final = [final_number(text) for text in texts]
    results = [[same(one.result) for one in equations_in(text)] for text in texts]
    found = np.zeros((len(texts), len(COLUMNS)))
    for members in members_of(key):
        for one in members:
            others = [other for other in members if other != one]
            if others:
                ends = [_end(final[other]) for other in others]
                found[one] = _row(_end(final[one]), results[one], ends, [results[other] for other in others])
    return found


def _end(value: float | None) -> str:
    return "" if value is None else same(value)


def _row(end: str, own: Sequence[str], ends: Sequence[str], rivals: Sequence[Sequence[str]]) -> list[float]:
    mine, sets = set(own), [set(rival) for rival in rivals]
    alike = _mean([other == end for other in ends])
    against = max(Counter(other for other in ends if other != end).values(), default=0)
    between = [len(a & b) / max(1, len(a | b)) for a, b in itertools.combinations(sets, 2)]
    return [
        alike, alike > 0, _mean([len(mine & other) / max(1, len(mine)) for other in sets]),
        _mean([len(mine & other) / max(1, len(other)) for other in sets]), _mean([own[:1] == rival[:1] for rival in rivals]),
        _mean([end in other for other in sets]), len({end, *ends}) / (1 + len(ends)), against / len(ends), _mean(between),
    ]  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
