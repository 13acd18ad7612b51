"""Whose preferences these are: raking raters to a target population, what it costs, and what it changes.

Weights belong to raters, not to votes: whoever voted more does not speak for more people. Knows one row of declared
categories a rater; what a rater did not say is left out of that field's balance, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from karat.config import shares_problem
from karat.errors import ConvergenceError, InputError
from karat.records import Estimate
from karat.resampling import FEW_CLUSTERS, jackknife_interval, paired_rows, percentile_interval

IMBALANCE = 0.10
"""ASMD above which a category counts as out of balance (Austin 2009, Statistics in Medicine 28, pp. 3083–3107)."""
Categories = Mapping[str, Sequence[str | None]]
Target = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Balance:
    """One category of one field before and after weighting."""

    field: str
    """The field, like `age`."""
    category: str
    """One of its categories."""
    target: float
    """Its share in the target population."""
    before: float
    """Its share among the raters who said."""
    after: float
    """The same, weighted."""
    asmd_before: float
    """|before − target| / √(target·(1 − target))."""
    asmd_after: float
    """The same, weighted; above 0.10 = out of balance."""


@dataclass(frozen=True, eq=False)
class Raking:
    """Weights of raters that reproduce the margins of a target population."""

    weights: np.ndarray
    """One a rater, mean 1."""
    design_effect: float
    """Kish's 1 + cv² of the weights: how much larger variances become."""
    effective_n: float
    """(Σ w)² / Σ w²: as many raters would say as much, unweighted."""
    max_weight: float
    """The largest weight: how many raters one of them stands for."""
    n_trimmed: int
    """Raters whose weight was cut at the limit; above 0 the margins are not met exactly."""
    balance: tuple[Balance, ...]
    """Every category of the target, in its order."""
    empty: tuple[tuple[str, str], ...]
    """Categories of the target without a rater: nobody speaks for them, whatever the weights."""
    n_unsaid: Mapping[str, int]
    """Raters who did not say, by field."""


@dataclass(frozen=True)
class WeightedRate:
    """A win rate as the raters have it, and as the target population would."""

    unweighted: Estimate
    """Every rater counts alike."""
    weighted: Estimate
    """Every rater counts by her weight."""
    difference: Estimate
    """Weighted − unweighted, from the same draws."""


def rake(
    categories: Categories,
    target: Target,
    *,
    trim: float = 5.0,
    allow_empty: bool = False,
    tol: float = 1e-7,
    max_iter: int = 2000,
) -> Raking:
    """Weights that give the raters the margins of the target population, by iterative proportional fitting.

        w ← w·(target share / weighted share) for each category of each field in turn, until nothing moves

    Args:
        categories: by field, one entry a rater; None = she did not say.
        target: by field, category → share (or count; each field is divided by its sum). JSON as it stands.
        trim: largest weight, in means; a rater never speaks for more than that.
        allow_empty: True = categories of the target without a rater are left out and named; the weighted figures then
            say nothing about them. False = an error that names them.
    Raises: InputError for unknown fields, categories that the target lacks, or empty ones; ConvergenceError where no
        weights have these margins.
    Source: Deming & Stephan 1940, Annals of Mathematical Statistics 11, pp. 427–444; Kish 1965, Survey Sampling, 11.7.
    """
    shares = checked_target(target)
    n = _n_raters(categories, shares)
    if not trim > 1:
        raise InputError(f"rake: found trim = {trim}; expected a largest weight above 1")
    codes, empty = _coded(categories, shares, n)
    if empty and not allow_empty:
        named = ", ".join(f"{field} = {category}" for field, category in empty)
        raise InputError(
            f"rake: no rater for {named}; ask some, merge categories, or pass allow_empty=True (nobody speaks for them)"
        )
    goals = [np.where(np.isin(np.arange(len(goal)), column), goal, 0.0) for column, goal in _pairs(codes, shares)]
    cells, place, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    fitted = _fit(cells, counts.astype(float), goals, trim=trim, tol=tol, max_iter=max_iter)
    weights = fitted[place.ravel()]
    return Raking(
        weights=weights,
        design_effect=float(n * (weights @ weights) / weights.sum() ** 2),
        effective_n=float(weights.sum() ** 2 / (weights @ weights)),
        max_weight=float(weights.max()),
        n_trimmed=int((weights >= trim * (1 - 1e-6)).sum()),
        balance=_balance(codes, shares, weights),
        empty=tuple(empty),
        n_unsaid={field: int((codes[:, i] < 0).sum()) for i, field in enumerate(shares)},
    )


def weighted_win_rate(
    outcomes: ArrayLike,
    annotator: ArrayLike,
    categories: Categories,
    target: Target,
    rng: np.random.Generator,
    *,
    trim: float = 5.0,
    n_draws: int = 500,
) -> WeightedRate:
    """A win rate with and without weights, raters as the unit.

        Σ_w weight_w·(mean outcome of w) / Σ_w weight_w

    Args:
        outcomes: of each vote, in [0, 1], a tie ½.    annotator: index of its rater into the categories.
        rng: draws raters with replacement; the weights are fitted anew on each draw, as they would be on other raters.
    Returns: 95 % percentile intervals, of fewer than ten raters the jackknife's; None where more than 5 % of the draws, or
        one of the few that are left out in turn, lack a category of the target.
    """
    y, w = paired_rows("weighted_win_rate", outcomes, annotator)
    shares = checked_target(target)
    n = _n_raters(categories, shares)
    if y.size and not (y.min() >= 0 and y.max() <= 1):
        raise InputError(f"weighted_win_rate: found outcomes from {y.min()} to {y.max()}; expected 0 … 1")
    place = w.astype(int)
    if w.size and not (w.min() >= 0 and w.max() < n and (w == place).all()):
        raise InputError(f"weighted_win_rate: found annotators {w.min()} … {w.max()}; expected indices below {n}")
    votes = np.bincount(place, minlength=n)
    voted = np.flatnonzero(votes)
    means = np.bincount(place, y, n)[voted] / votes[voted]
    rows = {field: [categories[field][i] for i in voted] for field in shares}
    raking = rake(rows, target, trim=trim, allow_empty=True)
    codes, _ = _coded(rows, shares, len(voted))
    cells, place = np.unique(codes, axis=0, return_inverse=True)
    place = place.ravel()
    goals = [np.where(np.isin(np.arange(len(goal)), column), goal, 0.0) for column, goal in _pairs(codes, shares)]
    few = len(voted) < FEW_CLUSTERS
    draws = np.full((len(voted) if few else n_draws, 2), np.nan)
    for draw in range(len(draws)):
        chosen = np.delete(np.arange(len(voted)), draw) if few else rng.integers(0, len(voted), len(voted))
        draws[draw, 0] = means[chosen].mean()
        counts = np.bincount(place[chosen], minlength=len(cells)).astype(float)
        weights = _redrawn(cells, counts, goals, trim)
        if weights is not None:
            draws[draw, 1] = weights[place[chosen]] @ means[chosen] / len(chosen)
    plain, weighted = float(means.mean()), float(raking.weights @ means / raking.weights.sum())
    columns = (draws[:, 0], draws[:, 1], draws[:, 1] - draws[:, 0])
    names = ("win rate, raters alike", "win rate, raters weighted to the target", "weighted − unweighted win rate")
    values = (plain, weighted, weighted - plain)
    found = [
        jackknife_interval(value, column, level=0.95, what=name, within=ends)
        if few
        else percentile_interval(value, column, len(voted), level=0.95, what=name)
        for value, column, name, ends in zip(values, columns, names, ((0, 1), (0, 1), (-1, 1)), strict=True)
    ]
    return WeightedRate(*found)


def checked_target(target: Target) -> dict[str, dict[str, float]]:
    """The target with every field's shares adding up to 1.

    Raises: InputError for no fields, no categories, a share that is not a positive number, or shares, other than whole
        counts, that do not sum to 1.
    """
    if not target:
        raise InputError("target population: found no fields; expected {field: {category: share, …}, …}")
    found = {}
    for field, shares in target.items():
        if problem := shares_problem(shares):
            raise InputError(f"target population: {field}: {problem}")
        total = float(sum(shares.values()))
        found[field] = {category: float(share) / total for category, share in shares.items() if share > 0}
    return found


def _n_raters(categories: Categories, shares: Target) -> int:
    missing = [field for field in shares if field not in categories]
    if missing:
        raise InputError(f"target population: raters have no field {missing[0]!r}; they have {sorted(categories)}")
    lengths = {len(categories[field]) for field in shares}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"target population: found {sorted(lengths)} raters by field; expected one entry a rater in each"
        )
    return lengths.pop()


def _coded(categories: Categories, shares: Target, n: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Index of each rater's category in each field, −1 = not said, and the categories that nobody has."""
    codes = np.full((n, len(shares)), -1)
    empty = []
    for column, (field, goal) in enumerate(shares.items()):
        place = {category: i for i, category in enumerate(goal)}
        given = categories[field]
        strange = sorted({str(one) for one in given if one is not None and one not in place})
        if strange:
            raise InputError(
                f"target population: raters have {field} = {strange[0]!r}, which the target lacks or gives no share; "
                "add it, merge it, or leave these raters out"
            )
        codes[:, column] = [-1 if one is None else place[one] for one in given]
        seen = set(codes[:, column].tolist())
        empty += [(field, category) for category, i in place.items() if i not in seen]
    return codes, empty


def _pairs(codes: np.ndarray, shares: Target) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(codes[:, i], np.array(list(goal.values()))) for i, goal in enumerate(shares.values())]


def _fit(
    cells: np.ndarray, counts: np.ndarray, goals: list[np.ndarray], *, trim: float, tol: float, max_iter: int
) -> np.ndarray:
    """Weight of each kind of rater, mean 1 over raters."""
    weights = np.ones(len(cells))
    for _ in range(max_iter):
        before = weights
        for column, goal in enumerate(goals):
            code = cells[:, column]
            said = code >= 0
            if not said.any():
                continue  # nobody speaks for any category of this field
            now = np.bincount(code[said], (weights * counts)[said], len(goal))
            wanted = goal / goal.sum() * now.sum()
            factor = np.divide(wanted, now, out=np.ones_like(now), where=now > 0)
            weights = np.where(said, weights * factor[np.where(said, code, 0)], weights)
        weights = _capped(weights, counts, trim)
        if np.abs(weights - before).max() < tol:
            if weights.max() < trim * (1 - 1e-9):
                _check_margins(cells, counts, goals, weights)
            return weights
    raise ConvergenceError(
        f"rake: after {max_iter} rounds weights still move by {np.abs(weights - before).max():.2g}; no weights have these "
        "margins (a combination of categories is missing): merge categories or drop a field"
    )


def _capped(weights: np.ndarray, counts: np.ndarray, trim: float) -> np.ndarray:
    """Weights of mean 1 over raters, none above `trim`: what is cut off goes to the others in proportion."""
    capped = np.zeros(len(weights), dtype=bool)
    while True:
        rest = counts.sum() - trim * counts[capped].sum()
        free = float(weights[~capped] @ counts[~capped])
        found = np.where(capped, trim, weights * (rest / free if free > 0 else 1.0))
        over = (found > trim) & ~capped
        if not over.any():
            return found
        capped |= over


def _check_margins(cells: np.ndarray, counts: np.ndarray, goals: list[np.ndarray], weights: np.ndarray) -> None:
    for column, goal in enumerate(goals):
        said = cells[:, column] >= 0
        now = np.bincount(cells[said, column], (weights * counts)[said], len(goal))
        off = float(np.abs(now / now.sum() - goal / goal.sum()).max()) if now.sum() > 0 else 0.0
        if off > 1e-3:
            raise ConvergenceError(
                f"rake: the weights stand still with a margin {off:.2g} off; no weights have these margins (a combination "
                "of categories is missing): merge categories or drop a field"
            )


def _redrawn(cells: np.ndarray, counts: np.ndarray, goals: list[np.ndarray], trim: float) -> np.ndarray | None:
    """Weights on a bootstrap draw of raters; None where a category is missing that the raters themselves had."""
    for column, goal in enumerate(goals):
        said = cells[:, column] >= 0
        now = np.bincount(cells[said, column], counts[said], len(goal))
        if ((now == 0) & (goal > 0)).any():
            return None
    try:
        return _fit(cells, counts, goals, trim=trim, tol=1e-5, max_iter=500)
    except ConvergenceError:
        return None


def _balance(codes: np.ndarray, shares: Target, weights: np.ndarray) -> tuple[Balance, ...]:
    found = []
    for column, (field, goal) in enumerate(shares.items()):
        said = codes[:, column] >= 0
        code, mine = codes[said, column], weights[said]
        before = np.bincount(code, minlength=len(goal)) / max(said.sum(), 1)
        after = np.bincount(code, mine, len(goal)) / max(mine.sum(), 1e-300)
        for i, (category, share) in enumerate(goal.items()):
            spread = max(share * (1 - share), 1e-12) ** 0.5
            gaps = [abs(float(one[i]) - share) / spread for one in (before, after)]
            found.append(Balance(field, category, share, float(before[i]), float(after[i]), *gaps))
    return tuple(found)
