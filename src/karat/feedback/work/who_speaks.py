"""Whose preferences the votes are: raters weighted to a target population by what they chose to say about themselves.

What is published must not give anybody away: figures exist only where every group of the target, and whoever said
nothing that fits it, is nobody or at least k raters, beside the tables that auditors see. No weight, name or place of a
single rater leaves this module. Knows demographics and arenas; the arithmetic is `quality.population`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from karat.errors import ConvergenceError, InputError
from karat.feedback.documents import document, put_document
from karat.feedback.people.who_judged import said_groups, shown_fields
from karat.feedback.quality.population import Target, WeightedRate, checked_target, rake, weighted_win_rate
from karat.feedback.quality.slices import UNSAID, K, protected_slices
from karat.feedback.store import Store
from karat.feedback.work.arena import PREFIX, arenas
from karat.feedback.work.vote_outcomes import outcomes_of

POPULATION = "population"
"""Name of the document that holds the target: {"target": {field: {group: share}}}."""
OR = " | "
"""Joins answers that are one group of the target: `18–24 | 25–34`."""
HIDDEN = (
    "a group of the target, or those who said nothing that fits it, has fewer than {k} raters, or could be worked out "
    "from what is shown elsewhere: merge groups (`18–24 | 25–34`, `65 or over | not said`), or leave a field out"
)


@dataclass(frozen=True)
class GroupShare:
    """One group of the target, before and after weighting."""

    field: str
    """The field, like `age`."""
    group: str
    """The group as the target names it."""
    target: float
    """Its share of the target population."""
    n_raters: int
    """Raters in it, at least k."""
    before: float
    """Its share among the raters who said."""
    after: float
    """The same, weighted."""


@dataclass(frozen=True)
class SpokenRate:
    """The win rate of an arena's first policy, as the raters have it and as the target population would."""

    arena: str
    """Which arena."""
    what: str
    """What the rate is of, in words."""
    rate: WeightedRate | None
    """None = cannot be had, see `why`."""
    why: str
    """Why there is none; "" = there is one."""


@dataclass(frozen=True)
class Spoken:
    """What weighting the raters to a target population comes to."""

    n_raters: int
    """Raters who judged, those in quarantine left out."""
    design_effect: float | None
    """1 + cv² of the weights, to one decimal; None = not shown, see `why`."""
    effective_n: int | None
    """As many raters would say as much unweighted, rounded down to tens; None = not shown."""
    max_weight: float | None
    """The largest weight in means, to one decimal; None = not shown."""
    groups: tuple[GroupShare, ...]
    """Every group of the target with raters; () = not shown."""
    empty: tuple[str, ...]
    """Groups of the target without a rater: nobody speaks for them, whatever the weights."""
    rates: tuple[SpokenRate, ...]
    """By arena."""
    why: str
    """Why nothing is shown; "" = it is."""


def read_target(text: str, name: str) -> dict[str, dict[str, float]]:
    """A target population as it is written down: JSON, {field: {group: share}}.

    Args:
        name: of the file or field, for the message.
    Raises: InputError for what is no JSON or no target.
    """
    try:
        said = json.loads(text)
        checked_target(said)
    except (ValueError, RecursionError, AttributeError):
        raise InputError(
            name + ': found no JSON object; expected {"age": {"18–24": 0.2, "25–34 | 35–44": 0.5, …}, …}'
        ) from None
    return said


def put_target(store: Store, target: Target | None, *, now: float) -> None:
    """Make this the target population of the store; None = there is none any more."""
    put_document(store, POPULATION, "", {"target": target}, now=now)


def target_of(store: Store) -> dict[str, dict[str, float]] | None:
    """The newest target population of the store, as it was written down; None where none is set."""
    found = document(store, POPULATION)
    return None if found is None else found.body["target"]


def spoken(store: Store, target: Target, rng: np.random.Generator, *, k: int = K) -> Spoken:
    """Weights that give the raters the margins of the target, and what they change; aggregates only.

    A rater counts in a field by what she said, if the consent under which she said it stands; others keep their weight
    there. Groups that the target does not name are "not said".

    Args:
        target: field → group → share; a group may join answers, `18–24 | 25–34`, and `not said`.
        rng: draws raters for the intervals.    k: fewest raters of a group, ≥ 2.
    Raises: InputError for what is no target, or names one answer twice.
    """
    shares = checked_target(target)
    who, said = said_groups(store)
    rows = [_in_target(one, shares) for one in said]
    if why := _why_hidden(said, rows, shares, k):
        return Spoken(len(who), None, None, None, (), (), (), why)
    categories = {name: [row[name] for row in rows] for name in shares}
    try:
        raking = rake(categories, shares, allow_empty=True)
    except (InputError, ConvergenceError) as error:
        return Spoken(len(who), None, None, None, (), (), (), str(error))
    empty = set(raking.empty)
    groups = tuple(
        GroupShare(
            one.field, one.category, one.target, categories[one.field].count(one.category), one.before, one.after
        )
        for one in raking.balance
        if (one.field, one.category) not in empty
    )
    return Spoken(
        n_raters=len(who),
        design_effect=round(raking.design_effect, 1),
        effective_n=int(raking.effective_n // 10) * 10,
        max_weight=round(raking.max_weight, 1),
        groups=groups,
        empty=tuple(f"{name}: {group}" for name, group in raking.empty),
        rates=tuple(_rate(store, name, (who, categories), shares, rng, k=k) for name in arenas(store)),
        why="",
    )


def _in_target(said: Mapping[str, str | None], shares: Target) -> dict[str, str | None]:
    """Which group of the target a rater is in, by field; None = none that it names."""
    found: dict[str, str | None] = {}
    for name, groups in shares.items():
        members: dict[str, str] = {}
        for group in groups:
            for answer in group.split(OR.strip()):
                if members.setdefault(answer.strip(), group) != group:
                    raise InputError(
                        f"target population: found {answer.strip()!r} in two groups of {name}; name it once"
                    )
        found[name] = members.get(said.get(name) or UNSAID)
    return found


def _why_hidden(
    said: Sequence[Mapping[str, str | None]], rows: Sequence[Mapping[str, str | None]], shares: Target, k: int
) -> str:
    """Why raking these raters may not be shown; "" = it may."""
    known = {name for one in said for name in one}
    if missing := [name for name in shares if name not in known]:
        return f"no rater has said anything about {missing[0]!r}"
    open_tables = shown_fields(said)
    joint = [
        {**{f"said {name}": one.get(name) for name in open_tables}, **{f"group {name}": row[name] for name in shares}}
        for one, row in zip(said, rows, strict=True)
    ]
    alone = protected_slices(joint, [(f"said {name}",) for name in open_tables], k=k)
    tables = [*((f"said {name}",) for name in open_tables), *((f"group {name}",) for name in shares)]
    together = {(one.table, one.categories): one.shown for one in protected_slices(joint, tables, k=k)}
    target = [shown for (table, _), shown in together.items() if table and table[0].startswith("group ")]
    kept = all(together[one.table, one.categories] for one in alone if one.shown)
    return "" if all(target) and kept and together[(), ()] else HIDDEN.format(k=k)


def _rate(
    store: Store,
    name: str,
    raters: tuple[Sequence[str], Mapping[str, list]],
    shares: Target,
    rng: np.random.Generator,
    *,
    k: int,
) -> SpokenRate:
    who, categories = raters
    try:
        found = outcomes_of(store, PREFIX + name)
    except InputError as error:
        return SpokenRate(name, f"the win rate in {name}", None, str(error))
    place = {one: i for i, one in enumerate(who)}
    rows = [i for i, one in enumerate(found.annotator) if one in place]
    here = {place[found.annotator[i]] for i in rows}
    sizes = [n for column in categories.values() for n in Counter(column[i] for i in here).values()]
    if not here or min(sizes) < k:
        return SpokenRate(name, found.what, None, f"fewer than {k} raters of some group judged in this arena")
    try:
        rate = weighted_win_rate(
            [found.outcome[i] for i in rows], [place[found.annotator[i]] for i in rows], categories, shares, rng
        )
    except (InputError, ConvergenceError) as error:
        return SpokenRate(name, found.what, None, str(error))
    return SpokenRate(name, found.what, rate, "")
