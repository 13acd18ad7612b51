"""Rings: raters who agree with one another more than the questions explain, found from votes alone.

An agreement is evidence in proportion to how unlikely it was for these two people on this question; popular answers
prove nothing. Pairs are the seed, groups are what is tested, because five people who agree leave ten pairs behind.

Knows columns of votes, the others' opinion and each rater's habits. Knows no times, devices or texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord
from karat.feedback.detect.habits import Habits
from karat.feedback.detect.pool import Pool, pool_view

FOLLOWING = 0.9
"""Probability that a member gives the ring's answer; else she answers as herself."""
KEY = np.array([0.45, 0.1, 0.45])
"""What a ring without regard for the question would agree on: the second text, a tie, the first."""
LEAST_SHARED = 6
"""Questions that two raters must share to be compared."""
SEED_LOG_ODDS = 1.0
"""Pairs with less evidence than this seed no group; smaller only costs time."""
PATIENCE = 2
"""Steps of growth without more evidence after which a group is taken as it was at its best."""
NEARLY = 8.0
"""Groups that miss the bar by less, in nats, are judged again with texts whose strengths they had no part in."""
LARGEST_RING = 60
"""A group is not grown beyond this."""
MOST_FALSE_RINGS = 0.05
"""Chance of naming any ring where there is none, however many raters there are."""
MEMBER_ALPHA = 0.05
"""Chance that a ring that is there drags in one honest rater."""


@dataclass(frozen=True, eq=False)
class _Votes:
    """Votes of raters with enough of them, sorted by item; n votes, I items."""

    row: np.ndarray
    """Row of the record."""
    item: np.ndarray
    rater: np.ndarray
    answer: np.ndarray
    """0 … 2: higher-index text, tie, lower-index text."""
    pool: Pool
    """What the others say to each vote's question."""
    habit: np.ndarray
    """a_w, b_w·s and log odds of ties relative to the others of each vote's rater, "n 3"."""
    start: np.ndarray
    """Where each item's votes begin; one more entry than items."""

    def of(self, rater: int) -> np.ndarray:
        """Rows of one rater."""
        return np.flatnonzero(self.rater == rater)

    def probs(self, rows: np.ndarray, unheard: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """P(answer) of these votes if honest, and what a ring would agree on there, "R 3" each."""
        pool = self.pool.without(rows, np.zeros((len(rows), 3)) if unheard is None else unheard)
        return _own_probs(pool, self.habit[rows]), 0.5 * KEY + 0.5 * pool.probs

    def gain(self, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
        """log [P(answer | member, the ring's answer is k) / P(answer | honest)] for each k, "R 3"."""
        answer = self.answer[rows]
        follows = answer[:, None] == np.arange(3)
        return np.log(FOLLOWING * follows / own[np.arange(len(rows)), answer][:, None] + (1 - FOLLOWING))


def _rater_habits(record: VoteRecord, pool: Pool, habits: Habits) -> np.ndarray:
    n = record.n_annotators
    ties = np.bincount(record.annotator, record.direction == 0, n)
    expected = np.bincount(record.annotator, pool.tie, n)
    a, b, fondness = habits.competence, habits.side_habit, np.log((ties + 2) / (expected + 2))
    return np.column_stack([a[record.annotator], b[record.annotator] * record.shown, fondness[record.annotator]])


def _own_probs(pool: Pool, habit: np.ndarray) -> np.ndarray:
    """P(answer) under the others' opinion and the rater's own habits, "R 3".

    log-odds(decided) = a_w·m + b_w·s      odds(tie) = odds of the others × (ties + 2) / (expected ties + 2)
    """
    logit = habit[:, 0] * pool.logit + habit[:, 1]
    odds = np.exp(habit[:, 2]) * pool.tie / (1 - pool.tie)
    # everybody may be distracted: no answer is ever taken for impossible
    tie, up = np.clip(odds / (1 + odds), 0.01, 0.95), np.clip(1 / (1 + np.exp(-logit)), 0.03, 0.97)
    return np.column_stack([(1 - tie) * (1 - up), tie, (1 - tie) * up])


def rings(
    record: VoteRecord, pool: Pool, habits: Habits, *, alpha: float, linked: np.ndarray | None = None
) -> tuple[Flag, ...]:
    """Groups of raters who answer together.

    A ring has one answer a question; each member gives it with probability 0.9, otherwise her own. Members are taken
    in turn, and what those to come have said is not heard while one is judged:

        log Λ = Σ_members Σ_{questions that an earlier member answered}
                log [P(vote | earlier members' votes, ring) / P(vote | the others' votes, her habits)]

    A group grows by the rater whose answers its answers predict best, and is flagged where

        Λ ≥ (pairs compared)·Π(raters who could have been added) / (ways·α)

    ways = C(n, 2)·(n − 2)! orders lead to one group of n, and 1 / n(n − 1) of the wager is on groups of n. Each Λ has mean
    1 for honest raters, so that by Markov's inequality no ring is named among them but with probability α, whatever the
    groups tried;

        α = alpha·(raters with enough votes) / 2, at most MOST_FALSE_RINGS

    Args:
        alpha: expected share of honest raters named (a ring that is none has two members, hardly ever more).
        linked: pairs of rater indices "P 2" that something else links already (a device); then only these seed a
            group, and only they are paid for. None = all pairs that share enough questions.
    Returns: one flag a ring; its p_value is the bound for the group, all choices allowed for.
    Source: likelihood-ratio e-values, Vovk & Wang 2021, Annals of Statistics 49(3); excess agreement as evidence of
        copying: Wesolowsky 2000, Journal of Applied Statistics 27(7), pp. 909–921.
    Differs: pairs with Benjamini–Hochberg and connected components need each pair to stand alone; here the group does.
    """
    votes = _eligible(record, pool, habits)
    pairs, log_odds, n_pairs = _pairs(votes, record.n_annotators, linked)
    bar = -math.log(min(MOST_FALSE_RINGS, alpha * max(1, len(np.unique(votes.rater))) / 2))
    found: list[Flag] = []
    taken: set[int] = set()
    for i in np.argsort(-log_odds, kind="stable"):
        if log_odds[i] < SEED_LOG_ODDS:
            break
        if taken & set(pairs[i].tolist()):
            continue
        members, evidence = _grow(votes, pairs[i], taken, math.log(n_pairs))
        if bar - NEARLY < evidence < bar:
            again = _unbent(record, pool, votes, members)
            members, evidence = max(
                [_grow(again, pairs[i], taken, math.log(n_pairs)), (members, evidence)], key=_second
            )
        if evidence >= bar:
            taken |= set(members)
            found.append(_flag(record, votes, members, evidence))
    return tuple(found)


def _second(entry: tuple[list[int], float]) -> float:
    return entry[1]


def _unbent(record: VoteRecord, pool: Pool, votes: _Votes, members: list[int]) -> _Votes:
    """The votes with the strengths of the texts estimated without these raters, who would bend them their way."""
    weights = np.zeros(record.n_annotators)
    weights[record.annotator] = pool.weight
    weights[members] = 0.0
    return replace(votes, pool=replace(votes.pool, prior=pool_view(record, weights).prior[votes.row]))


def _eligible(record: VoteRecord, pool: Pool, habits: Habits) -> _Votes:
    order = np.argsort(record.item, kind="stable")
    order = order[(record.n_votes >= MIN_VOTES)[record.annotator[order]]]
    # a rater who answers one question twice counts once, with the first answer
    _, first = np.unique(record.item[order] * record.n_annotators + record.annotator[order], return_index=True)
    order = order[np.sort(first)]
    start = np.searchsorted(record.item[order], np.arange(record.n_items + 1))
    some = pool.without(order, np.zeros((len(order), 3)))
    habit = _rater_habits(record, pool, habits)[order]
    return _Votes(order, record.item[order], record.annotator[order], record.direction[order] + 1, some, habit, start)


def _pairs(votes: _Votes, n_raters: int, linked: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs that share enough questions, their log evidence, and how many were compared."""
    sizes = np.diff(votes.start)
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes >= 2]):
        left, right = np.triu_indices(int(size), 1)
        begin = votes.start[:-1][sizes == size][:, None]
        firsts.append((begin + left).ravel())
        seconds.append((begin + right).ravel())
    one, two = np.concatenate(firsts), np.concatenate(seconds)
    turned = votes.rater[one] > votes.rater[two]
    one, two = np.where(turned, two, one), np.where(turned, one, two)
    names = votes.rater[one] * n_raters + votes.rater[two]
    if linked is not None:
        wanted = np.isin(names, np.sort(linked, axis=1) @ np.array([n_raters, 1]))
        one, two, names = one[wanted], two[wanted], names[wanted]
    unique, place, count = np.unique(names, return_inverse=True, return_counts=True)
    enough = count >= LEAST_SHARED
    one, two, place = one[enough[place]], two[enough[place]], place[enough[place]]
    own, key = votes.probs(one, _said(votes, two))
    gain = _added(np.log(key) + votes.gain(one, own), votes.gain(two, votes.probs(two)[0]))
    log_odds = np.bincount(place, gain, len(unique))[enough]
    return np.column_stack([unique // n_raters, unique % n_raters])[enough], log_odds, int(enough.sum())


def _said(votes: _Votes, rows: np.ndarray) -> np.ndarray:
    """The weight of these votes in the pool, by answer, "R 3"."""
    return votes.pool.weight[rows][:, None] * (votes.answer[rows][:, None] == np.arange(3))


def _added(before: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """log of what one more vote adds, where `before` is the log joint weight of each answer of the ring."""
    return np.logaddexp.reduce(before + gain, axis=1) - np.logaddexp.reduce(before, axis=1)


def _grow(votes: _Votes, pair: np.ndarray, taken: set[int], cost: float) -> tuple[list[int], float]:
    """Grow a group from a pair; returns members and the log evidence left after paying for the choices."""
    members, prices = [int(one) for one in pair], cost
    best, idle = (members, _group_evidence(votes, members) - prices + _ways(2), prices), 0
    while len(members) < LARGEST_RING and idle < PATIENCE:
        raters, gain = _candidates(votes, members, taken)
        if len(raters) == 0:
            break
        members, prices = [*members, int(raters[np.argmax(gain)])], prices + math.log(len(raters))
        left = _group_evidence(votes, members) - prices + _ways(len(members))
        best, idle = ((members, left, prices), 0) if left > best[1] else (best, idle + 1)
    members, left, prices = best
    # whoever is in it must agree with all the others, not only with the first
    kept = [one for one in members if _needed(votes, members, one)]
    if len(kept) in (0, 1, len(members)):
        return members, left
    return kept, _group_evidence(votes, kept) - prices + _ways(len(kept))


def _ways(size: int) -> float:
    """log of how many orders lead to one group, times the share 1 / (size·(size − 1)) of the wager on groups of a size."""
    return math.log(math.comb(size, 2)) + math.lgamma(size - 1) - math.log(size * (size - 1))


def _needed(votes: _Votes, members: list[int], one: int) -> bool:
    if len(members) == 2:
        return True
    others = [member for member in members if member != one]
    return _group_evidence(votes, [*others, one]) - _group_evidence(votes, others) >= -math.log(MEMBER_ALPHA)


def _group_evidence(votes: _Votes, members: list[int]) -> float:
    """log Λ of a group, each member judged by those outside and the members before."""
    n_items = len(votes.start) - 1
    unheard, weight = np.zeros((n_items, 3)), np.full((n_items, 3), np.nan)
    own_rows = [votes.of(member) for member in members]
    for rows in own_rows:
        unheard[votes.item[rows]] += _said(votes, rows)
    total = 0.0
    for rows in own_rows:
        item = votes.item[rows]
        unheard[item] -= _said(votes, rows)
        own, key = votes.probs(rows, unheard[item])
        gain = votes.gain(rows, own)
        known = ~np.isnan(weight[item, 0])
        total += float(_added(weight[item[known]], gain[known]).sum())
        weight[item[~known]] = np.log(key[~known])
        weight[item] += gain
    return total


def _candidates(votes: _Votes, members: list[int], taken: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Raters who share enough questions with a group, and roughly the log evidence of adding each."""
    weight = np.full((len(votes.start) - 1, 3), np.nan)
    for rows in (votes.of(member) for member in members):
        item = votes.item[rows]
        own, key = votes.probs(rows)
        weight[item] = np.where(np.isnan(weight[item]), np.log(key), weight[item]) + votes.gain(rows, own)
    on = np.flatnonzero(~np.isnan(weight[votes.item, 0]))
    on = on[~np.isin(votes.rater[on], [*taken, *members])]
    n_shared = np.bincount(votes.rater[on], minlength=1)
    added = _added(weight[votes.item[on]], votes.gain(on, votes.probs(on)[0]))
    raters = np.flatnonzero(n_shared >= LEAST_SHARED)
    return raters, np.bincount(votes.rater[on], added, len(n_shared))[raters]


def _flag(record: VoteRecord, votes: _Votes, members: list[int], log_lr: float) -> Flag:
    inside = np.isin(votes.rater, members)
    n_on = np.bincount(votes.item[inside], minlength=len(votes.start) - 1)
    shared = inside & (n_on[votes.item] >= 2)
    counts = np.zeros((len(votes.start) - 1, 3))
    np.add.at(counts, (votes.item[shared], votes.answer[shared]), 1)
    said = np.zeros_like(counts)
    np.add.at(said, votes.item[inside], _said(votes, np.flatnonzero(inside)))
    rows = np.flatnonzero(shared)
    own, _ = votes.probs(rows, said[votes.item[rows]] - _said(votes, rows))
    expected, squares = np.zeros_like(counts), np.zeros_like(counts)
    np.add.at(expected, votes.item[rows], own)
    np.add.at(squares, votes.item[rows], own**2)
    n = counts.sum(axis=1)
    n_pairs = (n * (n - 1)).sum()
    seen = (counts * (counts - 1)).sum() / n_pairs
    usual = (expected**2 - squares).sum() / n_pairs
    return Flag(
        tuple(record.annotators[one] for one in sorted(members)),
        "ring",
        log_lr,
        math.exp(-max(log_lr, 0.0)),
        int(shared.sum()),
        f"{len(members)} raters gave the same answer in {seen:.0%} of {int(n_pairs) // 2} pairs of answers; these "
        f"questions and their habits explain {usual:.0%} (statistic: log evidence in nats, choices paid for)",
    )
