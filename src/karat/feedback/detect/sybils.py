"""One person with several accounts: copied words, answers in the same moments, one device with one opinion.

Each trace links pairs of raters; linked raters are one group, flagged once. Knows columns, the raters' words and hashes
of devices; never an address.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from karat.feedback.detect.collusion import rings
from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord
from karat.feedback.detect.habits import Habits
from karat.feedback.detect.marks import crowd_p_values, fit_crowd
from karat.feedback.detect.pool import Pool
from karat.feedback.detect.sketches import near_copies, sketches

MOMENT_S = 20.0
"""Two answers to one question within this many seconds were given in the same moment."""
LEAST_SHARED = 6
"""Times that two raters must have answered the same questions to be compared by time."""
LEAST_MOMENTS = 3
"""Fewer meetings are chance, however rare they are in the crowd."""
LEAST_COPIES = 3
"""Rationales that two accounts must share to be looked at."""
COPIED = (0.3, 0.8)
"""Tried shares of rationales that one account has from another."""
MOST_WRITERS = 200
"""A rationale written by more raters than this is the language of the place."""
CROWDED_DEVICE = 20
"""More raters than this behind one hash are an office or a university, not one person."""


@dataclass(frozen=True)
class _Link:
    one: int
    two: int
    p_value: float
    statistic: float
    n: int
    detail: str


def sybil_flags(
    record: VoteRecord, pool: Pool, habits: Habits, *, alpha: float, sketch: np.ndarray | None = None
) -> tuple[Flag, ...]:
    """Groups of accounts that may be one person.

    Three traces, each with a third of alpha: rationales copied from one another, answers in the same moments, and one
    device with answers that agree beyond what the questions explain (a shared device alone is a family). A pair is
    linked where

        p ≤ (alpha / 3)·(raters compared) / (2·pairs compared)        (= alpha / 3 / (raters − 1) for all pairs)

    so that at most alpha of honest raters are expected in any link.

    Args:
        alpha: expected share of honest raters named.    sketch: of record.rationales; None = made here.
    Returns: one flag a connected group; its p_value is that of its weakest link needed to be there, its largest.
    """
    enough = record.n_votes >= MIN_VOTES
    links = _copies(record, enough, alpha / 3, sketch) + _moments(record, enough, alpha / 3)
    groups = _components(links, record.n_annotators)
    flags = [_group_flag(record, members, links) for members in groups]
    return (*flags, *_devices(record, pool, habits, enough, alpha / 3))


def _copies(record: VoteRecord, enough: np.ndarray, alpha: float, sketch: np.ndarray | None) -> list[_Link]:
    """Pairs who share more different rationales than their frequency among the others explains.

        Λ = mean over ρ of Π_{rationales c of w} [v wrote c too ? (ρ + (1 − ρ)·p_c) / p_c : 1 − ρ]
        p_c = 1 − (1 − (others who wrote c + ½) / N)^{n_v}

    ρ is the share of his rationales that w has from v; Λ has mean 1 where they do not know one another.
    """
    if not any(record.rationales):
        return []
    group = near_copies(sketches(record.rationales) if sketch is None else sketch)
    use = np.flatnonzero((group >= 0) & enough[record.annotator])
    if len(use) == 0:
        return []
    # one rater's stock phrase is one rationale, however often he uses it
    held = np.unique(np.column_stack([record.annotator[use], group[use]]), axis=0)
    size = np.bincount(held[:, 1])
    n_held, n_raters = np.bincount(held[:, 0], minlength=record.n_annotators), len(np.unique(held[:, 0]))
    # what many write links nobody, and has size² pairs
    some = held[(size[held[:, 1]] >= 2) & (size[held[:, 1]] <= MOST_WRITERS)]
    table = sparse.csr_array((np.ones(len(some)), some.T), shape=(record.n_annotators, len(size)))
    shared = sparse.triu(table @ table.T, 1).tocoo()
    bar = alpha / max(n_raters - 1, 1)
    links = []
    for one, two in zip(*(index[shared.data >= LEAST_COPIES] for index in shared.coords), strict=True):
        w, v = (one, two) if n_held[one] <= n_held[two] else (two, one)
        own = held[held[:, 0] == w, 1]
        same = np.isin(own, held[held[:, 0] == v, 1])
        chance = 1 - (1 - (np.maximum(size[own] - 1 - same, 0) + 0.5) / len(held)) ** n_held[v]
        per_share = [np.log(np.where(same, (rho + (1 - rho) * chance) / chance, 1 - rho)).sum() for rho in COPIED]
        p = math.exp(-max(0.0, np.logaddexp.reduce(per_share) - math.log(len(COPIED))))
        if p <= bar:
            detail = f"{int(same.sum())} different rationales in nearly the same words (usual: {chance.sum():.2g})"
            links.append(_Link(int(one), int(two), p, float(same.sum()), int(n_held[w] + n_held[v]), detail))
    return links


def _moments(record: VoteRecord, enough: np.ndarray, alpha: float) -> list[_Link]:
    """Pairs who answered the same questions in the same moments more than the crowd's pairs do."""
    if len(record.submitted_at) == 0:
        return []
    use = np.flatnonzero(np.isfinite(record.submitted_at) & enough[record.annotator])
    use = use[np.lexsort((record.annotator[use], record.item[use]))]
    sizes = np.bincount(record.item[use], minlength=record.n_items)
    start = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes >= 2]):
        left, right = np.triu_indices(int(size), 1)
        begin = start[sizes == size][:, None]
        firsts.append((begin + left).ravel())
        seconds.append((begin + right).ravel())
    one, two = use[np.concatenate(firsts)], use[np.concatenate(seconds)]
    other = record.annotator[one] != record.annotator[two]
    one, two = one[other], two[other]
    names = record.annotator[one] * record.n_annotators + record.annotator[two]
    together = np.abs(record.submitted_at[one] - record.submitted_at[two]) <= MOMENT_S
    # answers sent together are one moment, however many questions they answer
    moments, place = np.unique(np.column_stack([names, record.submitted_at[one]]), axis=0, return_inverse=True)
    met = np.bincount(place.ravel(), together, len(moments)) > 0
    pairs, place, n = np.unique(moments[:, 0].astype(np.int64), return_inverse=True, return_counts=True)
    k = np.bincount(place, met, len(pairs)).astype(np.int64)
    compared = n >= LEAST_SHARED
    pairs, n, k = pairs[compared], n[compared], k[compared]
    if len(pairs) == 0:
        return []
    crowd = fit_crowd(k, n)
    p = crowd_p_values(k, n, crowd)
    raters = np.unique(np.concatenate([pairs // record.n_annotators, pairs % record.n_annotators]))
    bar = alpha * len(raters) / (2 * len(pairs))
    chosen = np.flatnonzero((p <= bar) & (k >= LEAST_MOMENTS))
    return [
        _Link(
            int(pairs[i] // record.n_annotators),
            int(pairs[i] % record.n_annotators),
            float(p[i]),
            float(k[i]),
            int(n[i]),
            f"{k[i]} of {n[i]} shared sittings sent within {MOMENT_S:g} s of one another (usual: {crowd.mean:.1%})",
        )
        for i in chosen
    ]


def _devices(record: VoteRecord, pool: Pool, habits: Habits, enough: np.ndarray, alpha: float) -> tuple[Flag, ...]:
    """Raters behind one hash whose answers agree as a ring's do; the hash spares the search through all pairs."""
    if len(record.device) == 0:
        return ()
    known = (record.device >= 0) & enough[record.annotator]
    seen = np.unique(np.column_stack([record.device[known], record.annotator[known]]), axis=0)
    pairs = []
    for device in np.unique(seen[:, 0]):
        raters = seen[seen[:, 0] == device, 1]
        if 2 <= len(raters) <= CROWDED_DEVICE:
            left, right = np.triu_indices(len(raters), 1)
            pairs.append(np.column_stack([raters[left], raters[right]]))
    if not pairs:
        return ()
    linked = np.unique(np.concatenate(pairs), axis=0)
    found = rings(record, pool, habits, alpha=alpha, linked=linked)
    return tuple(
        Flag(one.annotators, "sybil", one.statistic, one.p_value, one.n_votes, f"one device, and {one.detail}")
        for one in found
    )


def _components(links: list[_Link], n_raters: int) -> list[list[int]]:
    parent = list(range(n_raters))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for link in links:
        parent[root(link.one)] = root(link.two)
    groups: dict[int, list[int]] = {}
    for rater in sorted({link.one for link in links} | {link.two for link in links}):
        groups.setdefault(root(rater), []).append(rater)
    return list(groups.values())


def _group_flag(record: VoteRecord, members: list[int], links: list[_Link]) -> Flag:
    inside = [link for link in links if link.one in members]
    strongest = min(inside, key=lambda link: (link.p_value, -link.statistic))
    return Flag(
        tuple(record.annotators[one] for one in members),
        "sybil",
        float(len(inside)),
        max(link.p_value for link in inside),
        int(record.n_votes[members].sum()),
        f"{len(members)} accounts in {len(inside)} links; the strongest: {strongest.detail}",
    )
