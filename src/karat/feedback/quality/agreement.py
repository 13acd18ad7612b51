"""How far raters agree: raw agreement, Krippendorff's alpha, the kappas and AC1, with intervals over items or raters.

Individual answers in, Estimates out; what is not defined is None with the reason. Knows nothing about models of
raters; a consensus is somebody else's view.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from scipy import stats as distributions

from karat.errors import InputError
from karat.feedback.quality.answer_table import AnswerTable, vote_table
from karat.feedback.quality.coefficients import COEFFICIENTS, Coefficient
from karat.records import Estimate, Vote
from karat.resampling import FEW_CLUSTERS, cluster_weights, jackknife_interval
from karat.stats import wilson

Over = Literal["item", "annotator"]
LEVEL = 0.95
N_GROUPS = 20
"""Groups of raters in the jackknife: t with 19 degrees of freedom."""
NO_OVERLAP = "undefined: no item has two votes"
NO_VARIATION = "undefined: no variation"


def pairwise_agreement(
    votes: Sequence[Vote], rng: np.random.Generator, *, ties: bool = True, over: Over = "item", n_draws: int = 1000
) -> Estimate:
    """How often two different raters of the same pair of responses gave the same answer.

        Σ_items Σ_levels n(n − 1) / Σ_items N(N − 1)        n votes of one level, N votes on the item

    Strength counts only by its direction: a better, tie, b better.

    Args:
        ties: False = votes that are ties are left out first.
        over: "item" = bootstrap of items; "annotator" = jackknife over groups of raters.
    Returns: the estimate; n counts items with at least two votes (or raters), value None where there are none.
    """
    return coefficient(vote_table(votes, ties=ties), "agreement", rng, over=over, n_draws=n_draws)


def alpha(
    votes: Sequence[Vote],
    rng: np.random.Generator,
    *,
    measurement: Literal["nominal", "ordinal", "interval"] = "nominal",
    over: Over = "item",
    n_draws: int = 300,
) -> Estimate:
    """Krippendorff's alpha of the direction of votes: 1 = perfect agreement, 0 = that of chance.

        α = 1 − observed disagreement / disagreement expected from the pooled votes

    Args:
        measurement: metric of the difference between two votes.    over: as in `pairwise_agreement`.
    Returns: the estimate; value None with method "undefined: …" where all votes are equal or no item has two votes.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    return coefficient(vote_table(votes), f"{measurement} alpha", rng, over=over, n_draws=n_draws)


def coefficient(
    table: AnswerTable, name: str, rng: np.random.Generator, *, over: Over = "item", n_draws: int = 1000
) -> Estimate:
    """One coefficient of agreement of any answers, with its interval.

    Args:
        name: one of `COEFFICIENTS`.    rng: draws the items, or the groups of raters.
        over: "item" = other items might have been asked: percentile bootstrap of items, jackknife below ten. "annotator" =
            other raters might have answered: jackknife over 20 groups of raters, t interval. Report both; the wider one counts.
    Returns: value None with method "undefined: …" where no item has two answers, or where the answers do not vary.
        The interval is None, with the reason in the method, where it would have no width (all agree) or cannot be had.
    Raises: InputError for an unknown name, for Cohen's kappa without exactly two raters, and where values that are not
        numbers are asked for an interval alpha.
    """
    if over not in ("item", "annotator"):
        raise InputError(f"{name}: found over={over!r}; expected 'item' or 'annotator'")
    if name not in COEFFICIENTS:
        raise InputError(f"coefficient: found {name!r}; expected one of {', '.join(COEFFICIENTS)}")
    n_raters = len(np.unique(table.annotator))
    measure = COEFFICIENTS[name]
    n_items, evaluate = measure(table) if len(table) else (0, None)
    n = n_items if over == "item" else n_raters
    if evaluate is None or n_items == 0:
        return Estimate(None, None, None, n, NO_OVERLAP)
    value = float(evaluate(np.ones((1, n_items)))[0])
    if np.isnan(value):
        return Estimate(None, None, None, n, NO_VARIATION)
    if over == "annotator":
        return _jackknife(table, measure, rng, value, name)
    if n_items < FEW_CLUSTERS:
        return _few_items(evaluate(1 - np.eye(n_items)), value, name)
    draws = np.concatenate([evaluate(weights) for weights in cluster_weights(n_items, rng, n_draws)])
    return _bootstrap(draws, value, n_items, name)


def agreement_table(
    table: AnswerTable, names: Sequence[str], rng: np.random.Generator, *, n_draws: int = 1000
) -> dict[str, tuple[Estimate, Estimate]]:
    """Several coefficients of the same answers, each with its interval by item and by rater."""
    return {
        name: (
            coefficient(table, name, rng, n_draws=n_draws),
            coefficient(table, name, rng, over="annotator", n_draws=n_draws),
        )
        for name in names
    }


def agreement_by(
    table: AnswerTable,
    groups: Sequence[Hashable],
    name: str,
    rng: np.random.Generator,
    *,
    over: Over = "item",
    n_draws: int = 1000,
) -> dict[Hashable, Estimate]:
    """A coefficient within each group of answers: a topic, a guideline version, a window of time, a group of raters.

    Args:
        groups: one key a row of the table; only answers with the same key are compared. None = in no group.
    Returns: one estimate a key, in the order in which keys occur; "undefined: …" where a group cannot tell.
    """
    if len(groups) != len(table):
        raise InputError(f"agreement_by: found {len(groups)} keys for {len(table)} answers; expected one each")
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(groups):
        if key is not None:
            rows.setdefault(key, []).append(row)
    found = {}
    for key, chosen in rows.items():
        part = table.select(np.array(chosen))
        if name == "Cohen's kappa" and len(np.unique(part.annotator)) != 2:
            found[key] = Estimate(None, None, None, 0, "undefined: Cohen's kappa is of two raters")
        else:
            found[key] = coefficient(part, name, rng, over=over, n_draws=n_draws)
    return found


def time_windows(seconds: Sequence[float], width_s: float) -> list[float]:
    """The start of the window of `width_s` seconds in which each time falls: keys for `agreement_by`."""
    times = np.asarray(seconds, dtype=float)
    if not width_s > 0 or not np.isfinite(times).all():
        raise InputError(f"time_windows: found a width of {width_s} s; expected a width above 0 and finite times")
    return (np.floor(times / width_s) * width_s).tolist()


def rater_agreement(table: AnswerTable) -> tuple[np.ndarray, np.ndarray]:
    """For each rater of the table, pairs that she forms with others on the same items: how many are equal, and of how many.

    Returns: (equal, pairs), one a rater in the order of `table.annotators`; their quotient is her agreement.
    """
    n_codes = max(len(table.domain), 1)
    per_item = np.bincount(table.item, minlength=len(table.items))
    per_cell = np.bincount(table.item * n_codes + table.code, minlength=len(table.items) * n_codes)
    equal = per_cell[table.item * n_codes + table.code] - 1
    size = len(table.annotators)
    return (
        np.bincount(table.annotator, weights=equal, minlength=size),
        np.bincount(table.annotator, weights=per_item[table.item] - 1, minlength=size),
    )


def _few_items(without: np.ndarray, value: float, name: str) -> Estimate:
    """Interval of fewer than ten items: the jackknife's, from the values without each of them."""
    if name == "agreement" and value in (0.0, 1.0):
        return _all_alike(value, len(without))
    return jackknife_interval(value, without, level=LEVEL, what=name, within=_ends(name))


def _ends(name: str) -> tuple[float, float]:
    """Between what a coefficient lies; how far below 0 agreement beyond chance may fall depends on the answers."""
    return (0.0 if name == "agreement" else -math.inf), 1.0


def _all_alike(value: float, n: int) -> Estimate:
    ends = wilson(value * n, n, level=LEVEL)
    return Estimate(value, ends.low, ends.high, n, f"agreement; {LEVEL:.0%} Wilson interval on items (all are alike)")


def _bootstrap(draws: np.ndarray, value: float, n: int, name: str) -> Estimate:
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (value, value)
    if high - low > 1e-12 and len(known) >= LEVEL * len(draws):
        method = f"{name}; {LEVEL:.0%} percentile bootstrap over items, {len(known)} draws"
        return Estimate(value, float(low), float(high), n, method)
    if name == "agreement" and value in (0.0, 1.0):
        return _all_alike(value, n)
    if len(known) < LEVEL * len(draws):
        why = f"undefined on {len(draws) - len(known)} of {len(draws)} draws of items"
    else:
        why = "all items are alike, a bootstrap has no width"
    return Estimate(value, None, None, n, f"{name}; no interval: {why}")


def _jackknife(table: AnswerTable, measure: Coefficient, rng: np.random.Generator, value: float, name: str) -> Estimate:
    """Interval from leaving out one group of raters at a time.

    Not a bootstrap: a rater drawn twice would agree with herself, and agreement would be biased upwards.
    """
    raters, row = np.unique(table.annotator, return_inverse=True)
    n_groups = min(N_GROUPS, len(raters))
    if name == "Cohen's kappa":
        return Estimate(value, None, None, 2, f"{name}; no interval over raters: it is a figure of these two")
    group = rng.permutation(len(raters)) % n_groups
    without = []
    for one in range(n_groups):
        rest = table.select(group[row] != one)
        n_items, evaluate = measure(rest) if len(rest) else (0, None)
        without.append(np.nan if evaluate is None or not n_items else float(evaluate(np.ones((1, n_items)))[0]))
    known = np.array(without)[np.isfinite(without)]
    if len(known) < max(2, n_groups):
        why = f"undefined without one of the {n_groups} groups of raters"
        return Estimate(value, None, None, len(raters), f"{name}; no interval over raters: {why}")
    error = np.sqrt((len(known) - 1) / len(known) * ((known - known.mean()) ** 2).sum())
    if error < 1e-12:
        return Estimate(value, None, None, len(raters), f"{name}; no interval over raters: they are all alike")
    reach = float(distributions.t.ppf((1 + LEVEL) / 2, len(known) - 1) * error)
    method = f"{name}; {LEVEL:.0%} jackknife over {n_groups} groups of raters, t interval"
    least, largest = _ends(name)
    return Estimate(value, max(value - reach, least), min(value + reach, largest), len(raters), method)
