"""Tables of raters by who they are, in which no small group can be seen or computed from what is shown.

A slice of fewer than k raters is not shown; nor is any other from which, with all that is shown, it could be had by
adding and subtracting. Protects tables of one set of raters published together; tables published at different times
about changing raters can still be compared, so publish rarely. Knows declared categories; knows nothing of votes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import linalg

from karat.errors import InputError

K = 10
"""Fewest raters in a slice that is shown."""
MOST_CELLS = 3000
"""Slices that are examined together; more fields than that are not a summary any more."""
UNSAID = "not said"
"""The category of raters who did not say."""


@dataclass(frozen=True)
class Slice:
    """Raters of some categories: shown with their number and places, or suppressed with neither."""

    table: tuple[str, ...]
    """The fields that the table crosses; () = all raters."""
    categories: tuple[str, ...]
    """One category a field."""
    n: int | None
    """Raters; None = suppressed: fewer than k, or others could be computed from it. Which of the two is not told."""
    members: tuple[int, ...] = ()
    """Their places among the raters, for figures about them; never part of what is published."""

    @property
    def shown(self) -> bool:
        """True = it may be published."""
        return self.n is not None


def protected_slices(
    raters: Sequence[Mapping[str, str | None]], tables: Sequence[Sequence[str]], *, k: int = K
) -> list[Slice]:
    """Every slice of some tables of the same raters, with all that must not be shown suppressed.

    A slice is suppressed where (1) it has fewer than k raters; or it must go so that (2) no suppressed slice is a sum and
    difference of shown ones, and (3) what is left of a shown slice, when the shown slices of another table inside it are
    subtracted, is nobody or at least k raters. The smallest that helps is taken. It is assumed that a reader knows which
    combinations of categories occur (that a country lies in one region, say).

    Args:
        raters: declared categories by field; None = not said, a category of its own.
        tables: the fields that each crosses; all raters together, (), are always one more.
        k: fewest raters of a slice that is shown, ≥ 2.
    Returns: every combination of the categories of each table, shown or not, in the order of the tables.
    Raises: InputError for unknown fields or more than 3,000 slices.
    Source: Hundepool et al. 2012, Statistical Disclosure Control, chapter 4 (secondary suppression).
    Differs: greedy, so it may hide more than the fewest possible; and the same for nested and overlapping tables.
    """
    if k < 2:
        raise InputError(f"protected_slices: found k = {k}; expected 2 or more")
    keys = [(), *dict.fromkeys(tuple(table) for table in tables if table)]
    fields = sorted({field for key in keys for field in key})
    for field in fields:
        if not all(field in rater for rater in raters):
            raise InputError(
                f"protected_slices: not every rater has the field {field!r}; give None where she did not say"
            )
    if not raters:
        return [Slice((), (), None)]
    rows = [tuple(UNSAID if rater[field] is None else str(rater[field]) for field in fields) for rater in raters]
    support, joint = np.unique(
        np.array(rows, dtype=object).astype(str).reshape(len(rows), -1), axis=0, return_inverse=True
    )
    joint = joint.ravel()
    cells = _cells(keys, fields, support)
    if len(cells) > MOST_CELLS:
        raise InputError(
            f"protected_slices: found {len(cells)} slices; expected at most {MOST_CELLS}: cross fewer fields"
        )
    inside = np.array([_inside(key, values, fields, support) for key, values in cells]).reshape(len(cells), -1)
    counts = np.bincount(joint, minlength=len(support)).astype(float)
    shown = _protected(inside, counts, [key for key, _ in cells], k)
    return [
        Slice(key, values, int(inside[i] @ counts), tuple(np.flatnonzero(inside[i][joint]).tolist()))
        if shown[i]
        else Slice(key, values, None)
        for i, (key, values) in enumerate(cells)
    ]


def _cells(
    keys: Sequence[tuple[str, ...]], fields: list[str], support: np.ndarray
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    found = []
    for key in keys:
        categories = [sorted(set(support[:, fields.index(field)].tolist())) for field in key]
        if np.prod([len(one) for one in categories], dtype=float) > MOST_CELLS:
            raise InputError(f"protected_slices: {' × '.join(key)} has over {MOST_CELLS} slices; cross fewer fields")
        found += [(key, values) for values in product(*categories)]
    return found


def _inside(key: tuple[str, ...], values: tuple[str, ...], fields: list[str], support: np.ndarray) -> np.ndarray:
    mask = np.ones(len(support), dtype=bool)
    for field, value in zip(key, values, strict=True):
        mask &= support[:, fields.index(field)] == value
    return mask


def _protected(inside: np.ndarray, counts: np.ndarray, tables: list[tuple[str, ...]], k: int) -> np.ndarray:
    """Which slices may be shown."""
    size = inside @ counts
    shown = size >= k
    place = {table: np.array([i for i, one in enumerate(tables) if one == table]) for table in dict.fromkeys(tables)}
    while True:
        hidden = _remainder_to_hide(inside, size, shown, place, counts, k)
        if hidden is None:
            hidden = _sum_to_hide(inside, size, shown, tables)
        if hidden is None:
            return shown
        shown[hidden] = False


def _remainder_to_hide(
    inside: np.ndarray,
    size: np.ndarray,
    shown: np.ndarray,
    place: Mapping[tuple[str, ...], np.ndarray],
    counts: np.ndarray,
    k: int,
) -> int | None:
    """A slice to hide because a shown one, less the shown slices of a table inside it, leaves few raters (rule 3)."""
    overlap = (inside * counts) @ inside.T
    narrow_first = np.flatnonzero(shown)[np.argsort(size[shown], kind="stable")]
    for outer in narrow_first:
        for rows in place.values():
            parts = rows[shown[rows] & (rows != outer) & (size[rows] < size[outer])]
            parts = parts[overlap[outer, parts] == size[parts]]
            left = size[outer] - size[parts].sum()
            if len(parts) and 0 < left < k:
                return int(parts[np.argmin(size[parts])])
    return None


def _sum_to_hide(inside: np.ndarray, size: np.ndarray, shown: np.ndarray, tables: list[tuple[str, ...]]) -> int | None:
    """A slice to hide because a suppressed one is a sum and difference of shown ones (rule 2)."""
    secret = np.flatnonzero(~shown & (size > 0))
    if not len(secret) or not shown.any():
        return None
    basis, triangle, _ = linalg.qr(inside[shown].T.astype(float), mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    basis = basis[:, diagonal > 1e-9 * max(diagonal.max(), 1.0)]
    vectors = inside[secret].astype(float)
    rest = vectors - (vectors @ basis) @ basis.T
    exposed = secret[(rest**2).sum(axis=1) < 1e-9]
    if not len(exposed):
        return None
    one = exposed[np.argmin(size[exposed])]
    # the smallest shown slice of the same table; failing that, the smallest of those that hold the exposed one
    same = np.array([i for i in np.flatnonzero(shown) if tables[i] == tables[one] and _related(inside, i, one, shown)])
    if len(same):
        return int(same[np.argmin(size[same])])
    around = np.flatnonzero(shown & (inside[:, inside[one]].all(axis=1)))
    around = around if len(around) else np.flatnonzero(shown)
    return int(around[np.argmin(size[around])])


def _related(inside: np.ndarray, candidate: int, one: int, shown: np.ndarray) -> bool:
    """True where some shown slice holds both, but is not everything unless nothing else holds the exposed one."""
    both = inside[candidate] | inside[one]
    around = shown & inside[:, inside[one]].all(axis=1)
    narrow = around & (inside.sum(axis=1) < inside.shape[1])
    holds = narrow if narrow.any() else around
    return bool((inside[holds][:, both].all(axis=1)).any())
