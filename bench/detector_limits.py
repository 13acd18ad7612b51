"""How well any test could do: the likelihood-ratio test that is told everything but whether the rater is honest.

In the simulated world it knows every difference of utility, the population, and the ring's answers or the trigger: no
test of one rater's answers with 1 % false flags has more power (Neyman & Pearson 1933). In the real votes nobody knows
the truth: there it knows an opinion that no attacker has bent, and its 1 % is that of the real raters themselves.
"""

from __future__ import annotations

import numpy as np

from detector_worlds import (
    COMPETENCE_SD,
    FOLLOWS,
    LAPSE_PRIOR,
    SIDE_BIAS,
    SIDE_SD,
    TRIGGER_FRAC,
    Arguments,
    Simulated,
    draw_levels,
    honest_traits,
    level_probs,
    plant,
)
from karat.feedback.detect.habits import KINDS, fit_habits, kind_log_odds, tally
from karat.feedback.detect.pool import pool_view

FALSE_FLAGS = 0.01
LIMITED = ("side-clicker", "flipper", "random clicker", "ring", "trigger")
"""Kinds that show in the answers alone; time, paste and copied words have no such limit."""


def power(honest: np.ndarray, attackers: np.ndarray) -> float:
    """Share of attackers above the 99 % quantile of the honest."""
    return float((attackers > np.quantile(honest, 1 - FALSE_FLAGS)).mean())


def simulated_limit(world: Simulated, kind: str, n_votes: int, rng: np.random.Generator) -> float:
    """Power of the likelihood-ratio test at 1 % false flags, by simulation."""
    n_draws = 1500 if n_votes <= 30 else 500
    told = round(TRIGGER_FRAC * n_votes) if kind == "trigger" else n_votes
    scores = []
    for attacks in (False, True):
        shape = (n_draws, told)
        delta, side = world.delta[rng.integers(0, len(world.delta), shape)], rng.choice([-1, 1], shape)
        key = rng.random(shape) < 0.5
        a, b, lapse = (column[:, None] for column in honest_traits(rng, n_draws))
        if attacks and kind == "side-clicker":
            a, b = 0 * a, SIDE_BIAS * rng.choice([-1.0, 1.0], (n_draws, 1))
        a, lapse = (
            (-a if attacks and kind == "flipper" else a),
            (0 * lapse + 1 if attacks and kind == "random clicker" else lapse),
        )
        level = draw_levels(rng, delta, side, *np.broadcast_arrays(a + 0 * delta, b + 0 * delta, lapse + 0 * delta))
        if attacks and kind in ("ring", "trigger"):
            level = np.where(rng.random(shape) < FOLLOWS, world.toward(rng, key.ravel()).reshape(shape), level)
        scores.append(_simulated_score(kind, delta, side, key, level))
    return power(*scores)


def _simulated_score(kind: str, delta: np.ndarray, side: np.ndarray, key: np.ndarray, level: np.ndarray) -> np.ndarray:
    """log P(levels | attacker) − log P(levels | honest), each integrated over competence, side habit and lapse."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    # Gauss–Legendre in the quantile of Beta(1, 19)
    inner, inner_weights = np.polynomial.legendre.leggauss(3)
    lapses, lapse_weights = 1 - (1 - (inner + 1) / 2) ** (1 / LAPSE_PRIOR[1]), inner_weights / 2
    honest, attack = [], []
    for a, wa in zip(1 + COMPETENCE_SD * nodes, weights / weights.sum(), strict=True):
        for b, wb in zip(SIDE_SD * nodes, weights / weights.sum(), strict=True):
            for lapse, wl in zip(lapses, lapse_weights, strict=True):
                weight = np.log(wa * wb * wl)
                p = _at(delta, side, a, b, lapse, level)
                honest.append(weight + np.log(p).sum(axis=1))
                if kind == "flipper":
                    attack.append(weight + np.log(_at(delta, side, -a, b, lapse, level)).sum(axis=1))
                elif kind in ("ring", "trigger"):
                    follows = np.where(key, level >= 3, level <= 1) / 2
                    attack.append(weight + np.log(FOLLOWS * follows + (1 - FOLLOWS) * p).sum(axis=1))
    if kind == "side-clicker":
        attack = [
            np.log(w / 2) + np.log(_at(delta, side, 0.0, sign * SIDE_BIAS, lapse, level)).sum(axis=1)
            for sign in (-1, 1)
            for lapse, w in zip(lapses, lapse_weights, strict=True)
        ]
    if kind == "random clicker":
        attack = [np.full(len(level), level.shape[1] * np.log(1 / 5))]
    return np.logaddexp.reduce(attack, axis=0) - np.logaddexp.reduce(honest, axis=0)


def _at(delta: np.ndarray, side: np.ndarray, a: float, b: float, lapse: float, level: np.ndarray) -> np.ndarray:
    probs = level_probs(delta, side, np.float64(a), np.float64(b), np.full(delta.shape, lapse))
    return np.take_along_axis(probs, level[..., None], axis=-1)[..., 0]


def arguments_limit(world: Arguments, kind: str, n_votes: int, rng: np.random.Generator) -> float:
    """Power of the same test against an unbent opinion, at the level that 1 % of the real raters exceed."""
    n_attackers = 600
    record, _ = plant(world, kind if kind in LIMITED[:3] else "chatbot", n_attackers, n_votes, rng)
    planted = np.arange(record.n_annotators) >= world.n_raters
    pool = pool_view(record, np.where(planted, 0.0, 1.0))
    population = fit_habits(tally(record, pool, ~planted[record.annotator])).population
    judged = np.flatnonzero(~planted & (record.n_votes >= n_votes))
    told = round(TRIGGER_FRAC * n_votes) if kind == "trigger" else n_votes
    honest, attackers = [], np.empty(0)
    for _ in range(10):
        order = np.lexsort((rng.random(len(record)), record.annotator))
        rank = np.empty(len(record), dtype=np.int64)
        rank[order] = np.arange(len(record)) - np.searchsorted(record.annotator[order], record.annotator[order])
        mask = rank < told
        if kind in LIMITED[:3]:
            odds = kind_log_odds(tally(record, pool, mask), population)
            columns = {"side-clicker": (2, 3), "flipper": (0,), "random clicker": (KINDS.index("random"),)}[kind]
            score = np.logaddexp.reduce(odds[:, columns], axis=1)
        else:
            score = _told_score(record, pool, population, mask, planted, rng)
        honest.append(score[judged])
        attackers = np.concatenate([attackers, score[planted]])
    return power(np.concatenate(honest), attackers)


def _told_score(record, pool, population, mask, planted, rng) -> np.ndarray:
    """Evidence that a rater gives answers that the test was told, where planted raters do."""
    logit = population.competence * pool.logit + population.side_habit * record.shown
    up = np.clip(1 / (1 + np.exp(-logit)), 0.03, 0.97)
    probs = np.column_stack([(1 - pool.tie) * (1 - up), pool.tie, (1 - pool.tie) * up])
    key = np.where(rng.random(len(record)) < 0.5, 2, 0)
    answer = np.where(planted[record.annotator] & (rng.random(len(record)) < FOLLOWS), key, record.direction + 1)
    p = probs[np.arange(len(record)), answer]
    gain = np.log((FOLLOWS * (answer == key) + (1 - FOLLOWS) * p) / p)
    return np.bincount(record.annotator[mask], gain[mask], record.n_annotators)
