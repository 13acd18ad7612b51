"""How raters answered the silent checks: gold, qualification and hidden repeats, each counted apart from work.

Knows the answers and what was expected; knows nothing about when a check is handed out. Figures are evidence for a
person who looks: none of them changes a rater's standing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions
from sqlalchemy import Connection, select

from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.detect.evidence import MIN_VOTES, Flag
from karat.feedback.quality.agreement import rater_agreement
from karat.feedback.quality.answer_table import vote_table
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.work.matching import gist, is_right, same_answer
from karat.records import Estimate, vote_of
from karat.stats import wilson

GOLD, QUALIFY, REPEAT = "gold", "qualification", "repeat"
"""Purposes of checks."""

EDGE = 1e-3
"""Rates are kept this far from 0 and 1 where their logit is taken."""


@dataclass(frozen=True)
class CheckResult:
    """How one rater answered her checks."""

    annotator: str
    """Annotator.id."""
    gold: Estimate
    """Share of gold items answered rightly; n = items answered."""
    n_gold: int
    """Gold items answered."""
    n_right: int
    """Of those, rightly."""
    n_missing: int
    """Of those, with "cannot judge" or the like, which is not right."""
    repeat: Estimate
    """Share of hidden repeats answered as the first time; n = repeats where both times an answer was given."""
    n_repeats: int
    """Repeats with an answer both times."""
    n_same: int
    """Of those, with the same answer."""
    n_same_side: int
    """Of those, comparisons in which she took the same side of the page both times, and so the other response."""
    n_qualification: int
    """Qualification items answered, in all attempts."""
    n_qualification_right: int
    """Of those, rightly."""


@dataclass(frozen=True)
class CheckAnswer:
    """The answer that counts of one rater to one check."""

    task_id: str
    """Task.id of the check."""
    kind: str
    """What was asked for."""
    annotator: str
    """Who answered."""
    value: Mapping[str, Any]
    """What she answered, in identity order."""
    expected: Mapping[str, Any] | None
    """The right answer; None for repeats."""
    repeats: str | None
    """Judgement.id that was asked again."""
    shown_order: tuple[int, ...]
    """Identity indices in the order shown."""
    batch: str
    """The task's batch."""
    seq: int
    """Order of arrival of the judgement."""


def current_answers(connection: Connection, purpose: str, annotator: str | None = None) -> list[CheckAnswer]:
    """The newest answer of every rater to every check of a purpose, in order of arrival."""
    given = tables.judgements.c
    question = (
        select(
            given.task_id, given.kind, given.annotator, given.value, people.checks.c.expected, people.checks.c.repeats,
            given.shown_order, tables.tasks.c.batch, given.seq,
        )
        .join(people.checks, people.checks.c.task_id == given.task_id)
        .join(tables.tasks, tables.tasks.c.id == given.task_id)
        .where(people.checks.c.purpose == purpose)
        .order_by(given.seq)
    )  # fmt: skip
    if annotator is not None:
        question = question.where(given.annotator == annotator)
    newest: dict[tuple[str, str], CheckAnswer] = {}
    for row in connection.execute(question):
        expected = None if row.expected is None else json.loads(row.expected)
        newest.pop((row.task_id, row.annotator), None)
        newest[row.task_id, row.annotator] = CheckAnswer(
            row.task_id, row.kind, row.annotator, json.loads(row.value), expected, row.repeats,
            tuple(json.loads(row.shown_order)), row.batch, row.seq,
        )  # fmt: skip
    return list(newest.values())


@dataclass(frozen=True)
class RepeatPair:
    """Two answers of one rater to one question, shown in opposite orders."""

    annotator: str
    """Annotator.id."""
    kind: str
    """What was asked for."""
    first: Mapping[str, Any]
    """The answer to the work, in identity order."""
    second: Mapping[str, Any]
    """The answer to the hidden repeat, in identity order."""
    first_order: tuple[int, ...]
    """Identity indices in the order shown the first time."""
    second_order: tuple[int, ...]
    """Identity indices in the order shown the second time."""


def repeat_pairs(connection: Connection, annotator: str | None = None) -> list[RepeatPair]:
    """Every answered repeat beside the judgement that it repeats, in order of arrival."""
    answers = current_answers(connection, REPEAT, annotator)
    given = tables.judgements.c
    question = select(given.id, given.value, given.shown_order).join(people.checks, people.checks.c.repeats == given.id)
    first = {row.id: row for row in connection.execute(question)}
    return [
        RepeatPair(
            each.annotator, each.kind, json.loads(first[each.repeats].value), each.value,
            tuple(json.loads(first[each.repeats].shown_order)), each.shown_order,
        )
        for each in answers
        if each.repeats in first
    ]  # fmt: skip


def check_results(store: Store, annotator: str | None = None) -> dict[str, CheckResult]:
    """How raters answered their checks, by Annotator.id; raters without an answer to any are left out.

    Args:
        annotator: only this rater.
    """
    with store.connection() as connection:
        gold = current_answers(connection, GOLD, annotator)
        tests = current_answers(connection, QUALIFY, annotator)
        pairs = repeat_pairs(connection, annotator)
    n: dict[str, Counter[str]] = {}
    for each in gold:
        right = is_right(each.kind, each.expected or {}, each.value)
        n.setdefault(each.annotator, Counter()).update(gold=1, right=right, missing="missing" in each.value)
    for each in tests:
        right = is_right(each.kind, each.expected or {}, each.value)
        n.setdefault(each.annotator, Counter()).update(tests=1, passed=right)
    for pair in pairs:
        if gist(pair.kind, pair.first) is None or gist(pair.kind, pair.second) is None:
            continue
        same = same_answer(pair.kind, pair.first, pair.second)
        n.setdefault(pair.annotator, Counter()).update(repeats=1, same=same, side=_same_side(pair))
    return {who: _result(who, count) for who, count in sorted(n.items())}


def _result(annotator: str, n: Counter[str]) -> CheckResult:
    return CheckResult(
        annotator=annotator,
        gold=wilson(n["right"], n["gold"]),
        n_gold=n["gold"],
        n_right=n["right"],
        n_missing=n["missing"],
        repeat=wilson(n["same"], n["repeats"]),
        n_repeats=n["repeats"],
        n_same=n["same"],
        n_same_side=n["side"],
        n_qualification=n["tests"],
        n_qualification_right=n["passed"],
    )


def _same_side(pair: RepeatPair) -> bool:
    first, second = gist(pair.kind, pair.first), gist(pair.kind, pair.second)
    sides = ("a", "b")
    if pair.kind != "comparison" or first not in sides or second not in sides:
        return False
    if not pair.first_order or not pair.second_order:
        return False
    return pair.first_order.index(sides.index(first)) == pair.second_order.index(sides.index(second))


def gold_leaks(store: Store, *, level: float = 0.01) -> list[Flag]:
    """Raters who answer gold far better than they work: perhaps they know which items are gold.

    The gold accuracy that a rater of her agreement with others would have is, with the others' figures g and q,

        logit(expected) = logit(g) + logit(q_w) − logit(q)

    where q_w is the upper end of the 95 % Wilson interval of her agreement, in her favour. Flagged is a binomial tail
    P(X ≥ right) below level / raters tested. Comparisons only, of raters with at least `evidence.MIN_VOTES` gold items
    and as many items shared with others.

    Returns: flags for a person to read, the most surprising first.
    """
    with store.connection() as connection:
        answers = [each for each in current_answers(connection, GOLD) if each.kind == "comparison"]
        hidden = set(connection.execute(select(people.checks.c.task_id)).scalars())
    right = {who: (n_right, n_gold) for who, n_right, n_gold in _right_by_rater(answers)}
    records = [each for each in store.records() if each.judgement.task_id not in hidden]
    votes = [vote for each in current_judgements(records)[0] if (vote := vote_of(each.judgement)) is not None]
    if not votes or not right:
        return []
    table = vote_table(votes)
    equal, pairs = rater_agreement(table)
    shared = np.bincount(table.item, minlength=len(table.items))[table.item] > 1
    n_items = np.bincount(table.annotator[shared], minlength=len(table.annotators))
    tested = [
        (i, who)
        for i, who in enumerate(table.annotators)
        if right.get(who, (0, 0))[1] >= MIN_VOTES and n_items[i] >= MIN_VOTES
    ]
    total_right, total_gold = (sum(each[k] for each in right.values()) for k in (0, 1))
    flags = []
    for i, who in tested:
        n_right, n_gold = right[who]
        others_gold, others_pairs = total_gold - n_gold, pairs.sum() - pairs[i]
        if others_gold < MIN_VOTES or others_pairs < MIN_VOTES:
            continue
        own = wilson(n_items[i] * equal[i] / pairs[i], int(n_items[i])).high or 1.0
        agreement = (equal.sum() - equal[i]) / others_pairs
        expected = _from_logit(_logit((total_right - n_right) / others_gold) + _logit(own) - _logit(agreement))
        p_value = float(distributions.binom.sf(n_right - 1, n_gold, expected))
        if p_value < level / len(tested):
            detail = (
                f"{n_right} of {n_gold} gold items right, where {expected:.0%} would be usual for raters who agree with "
                f"others on at most {own:.0%} of their work"
            )
            flags.append(Flag((who,), "gold_leak", n_right / n_gold - expected, p_value, n_gold, detail))
    return sorted(flags, key=lambda flag: flag.p_value)


def _right_by_rater(answers: Sequence[CheckAnswer]) -> list[tuple[str, int, int]]:
    n: dict[str, Counter[str]] = {}
    for each in answers:
        right = is_right(each.kind, each.expected or {}, each.value)
        n.setdefault(each.annotator, Counter()).update(right=right, gold=1)
    return [(who, count["right"], count["gold"]) for who, count in n.items()]


def _logit(rate: float) -> float:
    rate = min(max(rate, EDGE), 1 - EDGE)
    return math.log(rate / (1 - rate))


def _from_logit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
