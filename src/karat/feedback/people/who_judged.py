"""Who judged, as tables by what raters chose to say about themselves, in which no small group can be seen.

Which groups may be shown is `karat.feedback.quality.slices`' to say. Knows demographics and judgements; joins them nowhere
else, and never by a single rater.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from karat.feedback.people.care import Demographics, consented_demographics
from karat.feedback.people.standing import quarantined
from karat.feedback.quality.slices import K, protected_slices
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.records import Judgement

LEAST = K
"""Raters below which a group is not shown."""
MOST_GROUPS = 40
"""Different answers beyond which a field is not shown."""


@dataclass(frozen=True)
class Cell:
    """One group of one field."""

    group: str
    """What its raters said."""
    suppressed: bool
    """True = nothing of it is shown, and every figure here is None."""
    n_raters: int | None
    """Raters who judged."""
    n_judgements: int | None
    """Their current judgements."""
    median_s: float | None
    """Median over raters of their median active seconds; None = suppressed or not measured."""
    missing: float | None
    """Share of their judgements without an answer."""


@dataclass(frozen=True)
class SliceTable:
    """One field."""

    field: str
    """Its name."""
    cells: tuple[Cell, ...]
    """Its groups: those shown by size, then those suppressed by name."""


def slice_tables(store: Store, *, least: int = LEAST) -> list[SliceTable]:
    """A table for each field in which at least one group can be shown.

    Raters in quarantine are left out; what was said under a consent that was taken back counts as not said.
    Fields with more than `MOST_GROUPS` different answers are words, not groups, and are not shown.
    """
    mine = _judged(store)
    raters, rows = sorted(mine), said_rows(consented_demographics(store), sorted(mine))
    fields = shown_fields(rows)
    cells: dict[str, list[Cell]] = {name: [] for name in fields}
    for one in protected_slices(rows, [(name,) for name in fields], k=least) if fields else []:
        if one.table:
            own = [mine[raters[i]] for i in one.members]
            cells[one.table[0]].append(_cell(one.categories[0], own) if one.shown else _suppressed(one.categories[0]))
    tables = [SliceTable(name, tuple(sorted(found, key=_place))) for name, found in cells.items()]
    return [table for table in tables if any(not cell.suppressed for cell in table.cells)]


def said_groups(store: Store) -> tuple[list[str], list[dict[str, str | None]]]:
    """The raters of `slice_tables` and, for each, what she said by field; for estimators that suppress small groups."""
    raters = sorted(_judged(store))
    return raters, said_rows(consented_demographics(store), raters)


def said_mark(store: Store) -> int:
    """A number that differs after anybody said something about herself, took it back, or took her consent back."""
    return hash(tuple((who, one.saved_at) for who, one in sorted(consented_demographics(store).items())))


def said_rows(said: Mapping[str, Demographics], raters: Sequence[str]) -> list[dict[str, str | None]]:
    """One row a rater with every field that anybody filled in; None = not said."""
    mine = [said[who].fields if who in said else {} for who in raters]
    names = sorted({name for fields in mine for name in fields})
    return [{name: _group(fields.get(name)) for name in names} for fields in mine]


def shown_fields(rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    """The fields that are groups, not words."""
    names = sorted(rows[0]) if rows else []
    return [name for name in names if len({row[name] for row in rows}) <= MOST_GROUPS]


def _judged(store: Store) -> dict[str, list[Judgement]]:
    """Current judgements by rater: named ones, not in quarantine."""
    left_out = quarantined(store)
    mine: dict[str, list[Judgement]] = {}
    for record in current_judgements(store.records())[0]:
        who = record.judgement.annotator
        if who not in left_out and who != UNKNOWN_ANNOTATOR:
            mine.setdefault(who, []).append(record.judgement)
    return mine


def _cell(group: str, raters: Sequence[Sequence[Judgement]]) -> Cell:
    own = [judgement for each in raters for judgement in each]
    times = [[one.active_s for one in each if one.active_s is not None] for each in raters]
    return Cell(
        group=group,
        suppressed=False,
        n_raters=len(raters),
        n_judgements=len(own),
        median_s=float(np.median([np.median(each) for each in times])) if all(times) else None,
        missing=sum("missing" in one.value for one in own) / len(own),
    )


def _suppressed(group: str) -> Cell:
    return Cell(group, True, None, None, None, None)


def _place(cell: Cell) -> tuple[int, str]:
    return (-(cell.n_raters or 0), cell.group)


def _group(said: object) -> str | None:
    if said is None or said == "":
        return None
    return " + ".join(sorted(map(str, said))) if isinstance(said, list | tuple) else str(said)
