"""How many votes are needed and what they cost, from the votes there are; and which to ask again.

Every answer carries the uncertainty of what it was computed from: a plan made from a small pilot has a wide interval.
Knows outcomes, items, raters and seconds as numbers. Knows nothing about queues, payments or pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from karat.errors import InputError
from karat.records import Estimate
from karat.resampling import FEW_CLUSTERS, cluster_weights, finite_row, paired_rows

LEVEL = 0.95
Z = float(distributions.norm.ppf((1 + LEVEL) / 2))
PLANS = (1, 2, 3, 5)
"""Overlaps that a plan compares."""


@dataclass(frozen=True)
class Spread:
    """Where the variance of a vote's outcome comes from."""

    rate: float
    """Mean outcome."""
    between: float
    """Variance between items: some pairs are clear, others not."""
    within: float
    """Variance between votes on the same item: raters who disagree."""
    raters: float
    """Part of it that is the raters' own leaning, which more votes of the same raters do not remove."""
    n_items: int
    """Items it rests on."""
    n_votes: int
    """Votes it rests on."""


@dataclass(frozen=True)
class VotePlan:
    """What one overlap needs for the wanted interval."""

    overlap: int
    """Raters an item."""
    items: Estimate
    """Items to be judged, those that are judged already included."""
    votes: Estimate
    """items · overlap."""
    hours: Estimate
    """Of raters' active time."""
    cost: Estimate
    """hours · pay or votes · pay, in the currency of the pay."""


@dataclass(frozen=True)
class AskAgain:
    """Which items to ask again, the most useful first."""

    items: tuple[int, ...]
    """Places of the chosen items."""
    change: np.ndarray
    """Probability of each item (chosen or not) that its consensus would change."""
    expected: Estimate
    """How many of the chosen will change."""
    votes: int
    """Votes it takes."""
    left_out: int
    """Items that a flagged rule touches and the budget does not reach."""


Amount = Callable[[Spread, float], float]
"""A figure of a plan, of a spread and the mean seconds of a vote."""


def vote_spread(outcomes: ArrayLike, item: ArrayLike, annotator: ArrayLike) -> Spread:
    """Variance of outcomes between items, within items, and of raters' own leanings, by analysis of variance.

        within = MS_within        between = max(0, (MS_items − MS_within) / n₀)        raters from residuals alike

    Args:
        outcomes: of each vote, a win 1, a tie ½, a loss 0.    item, annotator: which item and rater, any labels.
    Raises: InputError where no item has two votes: then `spread_of_agreement` splits the variance by a pilot's agreement.
    Source: Searle, Casella & McCulloch 1992, Variance Components, section 3.6.
    """
    y, codes, raters = _columns(outcomes, item, annotator)
    return _spread(_item_sums(y, codes), np.ones(int(codes.max()) + 1), _rater_variance(y, codes, raters))


def spread_of_agreement(rate: float, agreement: float) -> Spread:
    """The spread of two-valued outcomes of which only the rate and the raters' agreement are known.

    within = (1 − agreement) / 2        between = rate·(1 − rate) − within

    Raises: InputError where no probabilities have this rate and agreement.
    """
    within = (1 - agreement) / 2
    between = rate * (1 - rate) - within
    if not 0 <= rate <= 1 or not 0 <= agreement <= 1 or between < -1e-9:
        raise InputError(
            f"spread_of_agreement: found rate {rate} and agreement {agreement}; expected agreement of at least "
            f"{1 - 2 * rate * (1 - rate):.3f}, that of chance at this rate"
        )
    return Spread(rate, max(between, 0.0), within, 0.0, 0, 0)


def votes_for_half_width(
    spread: Spread, half_width: float, *, overlap: int, n_raters: int | None = None
) -> float | None:
    """Items needed for a 95 % interval of ±half_width, not rounded.

        h² = z²·(between / n + within / (n·m) + raters / R)

    Args:
        overlap: m, votes an item.    n_raters: R; None = as many as it takes, the last term is 0.
    Returns: n; None where R raters alone are too few, however much they vote.
    """
    if not 0 < half_width < 1 or overlap < 1:
        raise InputError(f"votes_for_half_width: found ±{half_width} at overlap {overlap}; expected (0, 1) and ≥ 1")
    free = half_width**2 - (0.0 if n_raters is None else Z**2 * spread.raters / n_raters)
    return None if free <= 0 else Z**2 * (spread.between + spread.within / overlap) / free


def plan_votes(
    outcomes: ArrayLike,
    item: ArrayLike,
    annotator: ArrayLike,
    half_width: float,
    rng: np.random.Generator,
    *,
    seconds: ArrayLike,
    pay_per_hour: float = 0.0,
    pay_per_vote: float = 0.0,
    n_raters: int | None = None,
    overlaps: Sequence[int] = PLANS,
    n_draws: int = 400,
) -> tuple[VotePlan, ...]:
    """Votes, hours and cost of a win rate known to ±half_width, for several overlaps.

    Args:
        outcomes, item, annotator: the votes so far, as in `vote_spread`.    half_width: of the wanted 95 % interval.
        rng: draws items (of the spread) and raters (of the seconds).
        seconds: active seconds of each of these votes; NaN = not measured.
        pay_per_hour, pay_per_vote: in any currency, fees included; 0 = nothing. Votes that are paid one by one cost what
            they cost however long they take: the time's uncertainty is none of the money's.
        n_raters: raters that will vote; None = as many as have so far.
    Returns: one plan an overlap. Overlap 1 is always the cheapest for a rate alone; take 2 or more to measure agreement.
        Values are None where so few raters cannot reach it.
    Raises: InputError without seconds, or where no item has two votes.
    """
    y, codes, raters = _columns(outcomes, item, annotator)
    if not (pay_per_hour >= 0 and pay_per_vote >= 0):
        raise InputError(
            f"plan_votes: found a pay of {pay_per_hour} an hour and {pay_per_vote} a vote; expected 0 or more"
        )
    pilot = _pilot(
        _item_sums(y, codes), _rater_variance(y, codes, raters), _seconds_by_rater(seconds, raters), rng, n_draws
    )
    crew = int(raters.max()) + 1 if n_raters is None else n_raters
    plans = []
    for overlap in overlaps:
        spread = pilot.spread
        if votes_for_half_width(spread, half_width, overlap=overlap, n_raters=crew) is None:
            fewest = int(np.ceil(Z**2 * spread.raters / half_width**2)) + 1
            none = Estimate(
                None, None, None, spread.n_items, f"undefined: {crew} raters are too few, ask at least {fewest}"
            )
            plans.append(VotePlan(overlap, none, none, none, none))
            continue
        amounts = _amounts(half_width, overlap, crew, pay_per_hour, pay_per_vote)
        plans.append(VotePlan(overlap, *(_planned(pilot, name, one) for name, one in amounts.items())))
    return tuple(plans)


def held_out_needed(accuracy: float, half_width: float, *, design_effect: float = 1.0) -> int:
    """Held-out votes for a 95 % interval of ±half_width around an accuracy: z²·p(1 − p)·deff / h², rounded up.

    Args:
        design_effect: how much wider votes on the same prompts make the interval; 1 = all independent.
    """
    if not 0 < accuracy < 1 or not 0 < half_width < 1 or design_effect < 1:
        raise InputError(
            f"held_out_needed: found accuracy {accuracy} ± {half_width}, deff {design_effect}; expected (0, 1) and deff ≥ 1"
        )
    return int(np.ceil(Z**2 * accuracy * (1 - accuracy) * design_effect / half_width**2 - 1e-9))


def ask_again(
    certainty: ArrayLike,
    touched: ArrayLike,
    *,
    budget_votes: int,
    overlap: ArrayLike = 3,
    changed: int = 0,
    asked: int = 0,
) -> AskAgain:
    """Which items to ask again after a change of the guideline, within a budget: those most likely to change.

        P(change) = u + t·ρ·(1 − u)        u = 1 − certainty,  t = 1 where a changed rule touches the item

    Args:
        certainty: posterior of each item's consensus, [0, 1].    touched: True = a changed rule applies to it.
        budget_votes: votes that can be paid.    overlap: votes for each item asked again, one for all or one each; those
            most likely to change come first, and the next that does not fit ends it.
        changed, asked: of some touched items asked already, how many changed: ρ = (changed + 1) / (asked + 2), so that
            ρ = ½ while nothing is known.
    Returns: items by falling probability; `expected` with a 95 % interval (sum of independent changes, ρ from its Beta).
    """
    sure = finite_row("ask_again", certainty)
    mask = np.asarray(touched, dtype=bool)
    if mask.shape != sure.shape or (sure.size and not (sure.min() >= 0 and sure.max() <= 1)):
        raise InputError(
            f"ask_again: found {mask.shape} flags for {sure.shape} certainties; expected one each, in 0 … 1"
        )
    each = np.broadcast_to(np.asarray(overlap, dtype=np.int64), sure.shape)
    if not 0 <= changed <= asked or (each.size and each.min() < 1) or budget_votes < 0:
        raise InputError(
            f"ask_again: found {changed} changed of {asked}, overlap {overlap}, budget {budget_votes}; "
            "expected changed ≤ asked, overlap ≥ 1 and a budget ≥ 0"
        )
    share = (changed + 1) / (asked + 2)
    doubt = 1 - sure
    change = doubt + mask * share * (1 - doubt)
    order = np.argsort(-change, kind="stable")
    order = order[(change[order] > 0) & (np.cumsum(each[order]) <= budget_votes)]
    chance, at_stake = change[order], float((mask * sure)[order].sum())
    beta_var = share * (1 - share) / (asked + 3)
    half = Z * float(np.sqrt((chance * (1 - chance)).sum() + at_stake**2 * beta_var))
    mean = float(chance.sum())
    method = (
        f"expected changes, ρ = {share:.2f} from {changed} of {asked} touched items asked, {LEVEL:.0%} normal interval"
    )
    expected = Estimate(mean, max(0.0, mean - half), min(float(len(order)), mean + half), len(order), method)
    left_out = int(mask.sum() - mask[order].sum())
    return AskAgain(tuple(order.tolist()), change, expected, int(each[order].sum()), left_out)


def _columns(outcomes: ArrayLike, item: ArrayLike, annotator: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    items, raters = (np.unique(np.asarray(column), return_inverse=True)[1] for column in (item, annotator))
    y, codes = paired_rows("votes", outcomes, items)
    if y.size == 0 or len(raters) != y.size or not (y.min() >= 0 and y.max() <= 1):
        raise InputError(
            f"votes: found {y.size} outcomes of {len(raters)} raters; expected outcomes in 0 … 1, one a vote"
        )
    if np.bincount(codes.astype(int)).max() < 2:
        raise InputError(
            "votes: no item has two votes, so raters cannot be told from items; ask some items twice, or use the "
            "agreement of a pilot (spread_of_agreement)"
        )
    return y, codes.astype(int), raters


def _item_sums(y: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(codes).astype(float), np.bincount(codes, y), np.bincount(codes, y * y)])


def _has_pairs(sums: np.ndarray, weights: np.ndarray) -> bool:
    return bool((weights[sums[0] >= 2] > 0).any() and (weights > 0).sum() > 1)


def _spread(sums: np.ndarray, weights: np.ndarray, leaning: float) -> Spread:
    n, total, squares = sums
    votes, items = float(weights @ n), float(weights.sum())
    grand = float(weights @ total) / votes
    within = float(weights @ (squares - total**2 / n)) / (votes - items)
    size = (votes - float(weights @ n**2) / votes) / max(items - 1, 1.0)
    among = float(weights @ (n * (total / n - grand) ** 2)) / max(items - 1, 1.0)
    between = max(0.0, (among - within) / size) if size > 0 else 0.0
    return Spread(grand, between, within, min(leaning, within), int(items), int(votes))


def _rater_variance(y: np.ndarray, codes: np.ndarray, raters: np.ndarray) -> float:
    """Variance of raters' own leanings: how far their residuals on shared items stray together, beyond chance."""
    n = np.bincount(codes)
    mine = n[codes] >= 2
    rest = (y - (np.bincount(codes, y) / n)[codes])[mine] / np.sqrt(1 - 1 / n[codes[mine]])
    _, who = np.unique(raters[mine], return_inverse=True)
    size = np.bincount(who)
    k, votes = len(size), len(rest)
    if k < 2 or votes <= k:
        return 0.0
    sums = np.bincount(who, rest)
    among = float((sums**2 / size).sum()) - float(rest.sum()) ** 2 / votes
    error = (float(rest @ rest) - float((sums**2 / size).sum())) / (votes - k)
    mean_size = (votes - float((size**2).sum()) / votes) / (k - 1)
    return max(0.0, (among / (k - 1) - error) / mean_size)


def _seconds_by_rater(seconds: ArrayLike, raters: np.ndarray) -> np.ndarray:
    """[sum, number] of each rater's measured seconds."""
    time = np.asarray(seconds, dtype=float)
    known = np.isfinite(time)
    if time.shape != raters.shape or not known.any() or time[known].min() < 0:
        raise InputError(
            f"found seconds for {int(known.sum())} of {len(raters)} votes; expected them for some at least, all ≥ 0"
        )
    _, who = np.unique(raters[known], return_inverse=True)
    return np.stack([np.bincount(who, time[known]), np.bincount(who).astype(float)])


@dataclass(frozen=True)
class _Pilot:
    """What a plan is made from: as it is, and as it would have been with other items and raters."""

    spread: Spread
    time: float
    """Mean seconds of a vote."""
    spreads: list[Spread | None]
    """On items drawn with replacement; where they are few, without one at a time. None = undefined then."""
    times: np.ndarray
    """The same for raters."""
    few_items: bool
    few_raters: bool


def _pilot(sums: np.ndarray, leaning: float, seconds: np.ndarray, rng: np.random.Generator, n_draws: int) -> _Pilot:
    n_items, n_raters = sums.shape[1], seconds.shape[1]
    few_items, few_raters = n_items < FEW_CLUSTERS, n_raters < FEW_CLUSTERS
    rows = 1 - np.eye(n_items) if few_items else np.concatenate(cluster_weights(n_items, rng, n_draws))
    spreads = [_spread(sums, row, leaning) if _has_pairs(sums, row) else None for row in rows]
    if not few_items:
        spreads = [one for one in spreads if one is not None]
    rows = 1 - np.eye(n_raters) if few_raters else np.concatenate(cluster_weights(n_raters, rng, len(spreads)))
    counts = rows @ seconds[1]  # 0 without the only rater
    return _Pilot(
        _spread(sums, np.ones(n_items), leaning), float(seconds[0].sum() / seconds[1].sum()), spreads,
        (rows @ seconds[0])[counts > 0] / counts[counts > 0], few_items, few_raters,
    )  # fmt: skip


def _amounts(half_width: float, overlap: int, crew: int, pay_per_hour: float, pay_per_vote: float) -> dict[str, Amount]:
    """The figures of a plan by their names."""

    def items(spread: Spread, _: float) -> float:
        return math.ceil(votes_for_half_width(spread, half_width, overlap=overlap, n_raters=crew) or 0.0)

    def votes(spread: Spread, time: float) -> float:
        return items(spread, time) * overlap

    def hours(spread: Spread, time: float) -> float:
        return votes(spread, time) * time / 3600

    def cost(spread: Spread, time: float) -> float:
        return hours(spread, time) * pay_per_hour + votes(spread, time) * pay_per_vote

    return {"items": items, "votes": votes, "hours": hours, "cost": cost}


def _planned(pilot: _Pilot, name: str, amount: Amount) -> Estimate:
    """One figure of a plan, with the interval that the pilot's items and raters leave."""
    value, what, n = amount(pilot.spread, pilot.time), f"{name} needed", pilot.spread.n_items
    timed = amount(pilot.spread, 2 * pilot.time) != value
    spreads = [one for one in pilot.spreads if one is not None]
    if not pilot.few_items and not (timed and pilot.few_raters):
        times = pilot.times if timed else [pilot.time] * len(spreads)
        draws = [amount(one, time) for one, time in zip(spreads, times, strict=True)]
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high), n, f"{what}, {LEVEL:.0%} bootstrap over {n} items and raters")
    if lost := len(pilot.spreads) - len(spreads):
        return Estimate(value, None, None, n, f"{what}; no interval: undefined without {lost} of {n} items")
    if timed and not len(pilot.times):
        return Estimate(value, None, None, n, f"{what}; no interval: found 1 rater's seconds, an interval needs 2")
    parts = [_variance([amount(one, pilot.time) for one in spreads], value, few=pilot.few_items)]
    degrees = [n - 1] * pilot.few_items
    if timed:
        parts.append(_variance([amount(pilot.spread, time) for time in pilot.times], value, few=pilot.few_raters))
        degrees += [len(pilot.times) - 1] * pilot.few_raters
    if not value or not any(parts):
        return Estimate(value, None, None, n, f"{what}; no interval: the same with other items and raters")
    # items and raters are drawn apart, so that their variances add up; of what is never below 0 the logarithm is symmetric
    half = float(distributions.t.ppf((1 + LEVEL) / 2, min(degrees))) * math.sqrt(sum(parts)) / value
    few = " and ".join(["items"] * pilot.few_items + ["raters"] * (timed and pilot.few_raters))
    method = f"{what}, {LEVEL:.0%} t interval of the logarithm, {few} left out in turn, {n} items"
    return Estimate(value, value * math.exp(-half), value * math.exp(half), n, method)


def _variance(values: Sequence[float], value: float, *, few: bool) -> float:
    """Of a figure: the jackknife's, of values without one at a time, or that of bootstrap draws."""
    if few:
        return (len(values) - 1) / len(values) * sum((one - value) ** 2 for one in values)
    return float(np.var(values))
