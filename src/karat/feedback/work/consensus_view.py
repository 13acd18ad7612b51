"""What the answers of a store come to: the consensus of every kind of answer, where it is open, and how sure of whom.

A view for people, computed from the store alone; the reward model reads every vote with its rater and never this.
Knows the store; the estimators are `karat.feedback.quality.consensus`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.answer_table import AnswerTable
from karat.feedback.quality.consensus import Consensus, dawid_skene, majority, one_coin
from karat.feedback.schema import StoredJudgement
from karat.feedback.snapshot import current_judgements, of_work
from karat.feedback.store import Store
from karat.feedback.work.dashboard import answer_tables
from karat.records import Estimate, Judgement
from karat.stats import not_estimable

FEW, MANY = 2.0, 3.0
"""Mean answers an item from which one coin, and each rater's own confusion, can be told from luck (docs/quality.md)."""
SURE = 0.95
"""An item whose most probable value has less than this is open."""
MOST_OPEN, MOST_RATERS = 20, 20
"""Open items and raters that are listed."""


@dataclass(frozen=True)
class OpenItem:
    """An item of which nobody can be sure."""

    task_id: str
    """Task.id of one of its answers, by which the page finds it."""
    n_answers: int
    """Answers to it."""
    certainty: float
    """Posterior of its most probable value."""


@dataclass(frozen=True)
class RaterAccuracy:
    """How often a rater answers as the consensus has it."""

    annotator: str
    """Annotator.id."""
    n_answers: int
    """Answers of hers."""
    accuracy: Estimate
    """With a 95 % Beta interval that takes the items' posteriors as given."""


@dataclass(frozen=True)
class ConsensusRow:
    """The consensus about one kind of answer."""

    about: str
    """What was answered: `comparison: which is better`, `label: good or bad`."""
    n_items: int
    """Items with an answer."""
    n_answers: int
    """Answers to them."""
    n_split: int
    """Items with two answers or more where no value leads."""
    n_open: int | None
    """Items with a posterior below 95 %; None = no model, see `why`."""
    n_other: int | None
    """Items where the model's value is not that of the majority; None = no model."""
    certainty: float | None
    """Mean posterior of the items' most probable values; None = no model."""
    prevalence: tuple[tuple[str, float], ...]
    """Share of each value among the items, by the model, of comparisons only that of ties; () = no model."""
    open_items: tuple[OpenItem, ...]
    """The least certain, at most 20."""
    raters: tuple[RaterAccuracy, ...]
    """Those whose interval ends lowest, at most 20."""
    method: str
    """Which model; "" = none."""
    why: str
    """Why there is no model; "" = there is one."""


def consensus_rows(store: Store, records: Sequence[StoredJudgement]) -> tuple[list[ConsensusRow], int]:
    """The consensus of every kind of answer that is one of a few values.

    All current answers count, but those of raters in quarantine and to silent checks. Ratings, ranks and strengths
    have an order that these models do not know; `reliability` reads them.

    Args:
        records: all judgements of the store, or those of a batch.
    Returns: the rows, and how many current answers were left out.
    """
    current = sorted(current_judgements(records)[0], key=lambda one: one.seq)
    used = [record.judgement for record in of_work(store, current)]
    tasks: dict[frozenset[str], str] = {}
    for one in used:
        tasks.setdefault(frozenset(one.response_ids), one.task_id)
    named = [table for table in answer_tables(used) if _has_few_values(table[0])]
    return [_row(about, table, tasks) for about, _, table in named], len(current) - len(used)


def certainties(used: Iterable[Judgement]) -> dict[str, float]:
    """By Task.id the posterior of its most probable value, the least of several, where a model can be fitted.

    Args:
        used: current answers to work.
    """
    answers = list(used)
    tasks: dict[frozenset[str], set[str]] = {}
    for one in answers:
        tasks.setdefault(frozenset(one.response_ids), set()).add(one.task_id)
    known = frozenset().union(*tasks)
    found: dict[str, float] = {}
    for about, _, table in answer_tables(answers):
        model = _model(table)[0] if _has_few_values(about) else None
        if model is None:
            continue
        for item, sure in zip(table.items, model.certainty.tolist(), strict=True):
            for task in tasks.get(frozenset(_strings(item)) & known, ()):
                found[task] = min(found.get(task, 1.0), sure)
    return found


def _has_few_values(about: str) -> bool:
    return about != "comparison: how much" and not about.startswith(("rating", "ranking"))


def _row(about: str, table: AnswerTable, tasks: dict[frozenset[str], str]) -> ConsensusRow:
    votes = majority(table)
    split = int(((votes.winner < 0) & (votes.n_answers >= 2)).sum())
    counts = (len(table.items), len(table), split)
    found, why = _model(table)
    if found is None:
        return ConsensusRow(about, *counts, None, None, None, (), (), (), "", why)
    best, sure = found.posterior.argmax(axis=1), found.certainty
    order = np.argsort(sure, kind="stable")[:MOST_OPEN]
    open_items = [
        OpenItem(_task_of(table.items[i], tasks), int(votes.n_answers[i]), float(sure[i]))
        for i in order
        if sure[i] < SURE
    ]
    return ConsensusRow(
        about,
        *counts,
        n_open=int((sure < SURE).sum()),
        n_other=int(((votes.winner >= 0) & (votes.winner != best)).sum()),
        certainty=float(sure.mean()),
        prevalence=_shares(about, table, found),
        open_items=tuple(open_items),
        raters=_raters(table, found),
        method=found.method.split(";")[0],
        why="",
    )


def _model(table: AnswerTable) -> tuple[Consensus | None, str]:
    """The model that the answers can bear, or why there is none."""
    each = len(table) / max(len(table.items), 1)
    if each < FEW:
        return None, f"{each:.1f} answers an item; expected {FEW:g} or more: nobody can be told from luck with fewer"
    try:
        return (dawid_skene if each >= MANY else one_coin)(table), ""
    except (InputError, ConvergenceError) as error:
        return None, str(error)


def _raters(table: AnswerTable, found: Consensus) -> tuple[RaterAccuracy, ...]:
    rows = []
    for i, name in enumerate(table.annotators):
        if not found.n_answers[i]:
            continue
        low, high = float(found.accuracy_low[i]), float(found.accuracy_high[i])
        given = int(found.n_answers[i])
        accuracy = (
            Estimate(float(found.accuracy[i]), low, high, given, found.method)
            if low == low
            else not_estimable("no interval without variance", given)
        )
        rows.append(RaterAccuracy(name, given, accuracy))
    return tuple(
        sorted(rows, key=lambda one: (2.0 if one.accuracy.high is None else one.accuracy.high, one.annotator))[
            :MOST_RATERS
        ]
    )


def _task_of(item: object, tasks: dict[frozenset[str], str]) -> str:
    """The task of an item: its responses are somewhere in its name."""
    names = set(_strings(item))
    return next((task for responses, task in tasks.items() if responses <= names), "")


def _strings(part: object) -> Iterator[str]:
    """Every text in the name of an item."""
    if isinstance(part, tuple):
        for one in part:
            yield from _strings(one)
    elif isinstance(part, str):
        yield part


def _shares(about: str, table: AnswerTable, found: Consensus) -> tuple[tuple[str, float], ...]:
    """The prevalences by name; of a comparison only ties, because which response sorts first says nothing."""
    shares = dict(zip(table.domain, found.prevalence.tolist(), strict=True))
    if about.startswith("comparison"):
        return (("tie", shares[0]),) if 0 in shares else ()
    names: dict[object, str] = {1: "good", 0: "bad"} if about == "label: good or bad" else {}
    if not names and about.startswith(("label", "span")):
        names = {1: "marked", 0: "not marked"}
    return tuple((names.get(value, str(value)), share) for value, share in shares.items())
