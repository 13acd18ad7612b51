"""How honest raters differ, and how far one rater lies outside of that: competence, side habit, and their likelihoods.

    log-odds(lower-index text preferred | decided) = a_w·m + b_w·s       m = the others' log-odds, s = shown first ±1

Honest raters have (a_w, b_w) from a normal population, estimated while a share of the raters may be something else.
Ties are conditioned away, so that a rater fond of ties is no suspect. Knows columns, not texts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from karat.feedback.detect.evidence import VoteRecord
from karat.feedback.detect.pool import Pool, pool_view

N_BINS = 12
"""Bins of |m|: a rater's votes become counts, which makes 10⁵ votes and 10⁴ simulated raters cheap."""
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
MOST_ATTACKERS = 0.2
"""Largest share of raters that the estimate of the population may set aside."""
LEAST_SPREAD = 0.05
"""Smallest sd of a and b among honest raters, so that no crowd is taken for copies of one person."""
FEW_DECIDED = 4
"""Raters with fewer decided votes say nothing about how raters differ."""
KINDS = ("flipper", "random", "first side", "second side")
"""What a rater may be who is not honest, in the order of the columns of `Habits.log_odds`."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Decided votes of each rater, counted in cells of equal |m| and shown order; W raters, G cells."""

    n: np.ndarray
    """Decided votes, "W G"."""
    n_agree: np.ndarray
    """Those that preferred what the others prefer, "W G"."""
    gap: np.ndarray
    """|m| of each cell, "G"."""
    shown: np.ndarray
    """+1 = what the others prefer was shown first, −1 = second, 0 = not known, "G"."""

    def loglik(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Log-likelihood of each rater's votes under each (a, b), "W N"."""
        return _loglik(self.n_agree, self.n, self.gap, self.shown, a, b)


@dataclass(frozen=True)
class Population:
    """How honest raters differ."""

    competence: float
    """Mean of a: 1 = as decided as the others' log-odds say."""
    competence_sd: float
    """sd of a."""
    side_habit: float
    """Mean of b, logits towards what is shown first, beyond what the others' votes already hold of it."""
    side_habit_sd: float
    """sd of b."""

    @property
    def nodes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Quadrature nodes a, b and log weights."""
        a, b = np.meshgrid(self.competence + self.competence_sd * NODES, self.side_habit + self.side_habit_sd * NODES)
        weight = np.outer(NODE_WEIGHTS, NODE_WEIGHTS) / NODE_WEIGHTS.sum() ** 2
        return a.ravel(), b.ravel(), np.log(weight).ravel()

    @property
    def attacks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(a, b) of each of KINDS: the opposite, nothing at all, the first side, the second side."""
        flips = -self.competence * np.array([0.5, 1.0, 1.5, 2.0])
        strong, dim = (
            grid.ravel() for grid in np.meshgrid([2.0, 3.0, 4.0, 6.0], self.competence * np.array([0, 0.5, 1]))
        )
        return [(flips, np.full(4, self.side_habit)), (np.zeros(1), np.zeros(1)), (dim, strong), (dim, -strong)]


@dataclass(frozen=True, eq=False)
class Habits:
    """What the votes say about each rater; W raters."""

    tally: Tally
    """The counts."""
    population: Population
    """Honest raters."""
    shares: np.ndarray
    """Estimated shares of honest raters and of each of KINDS."""
    log_odds: np.ndarray
    """log P(votes | kind) − log P(votes | honest), honest integrated over the population, "W 4"."""
    competence: np.ndarray
    """Posterior mean of a for each rater, if honest."""
    side_habit: np.ndarray
    """Posterior mean of b for each rater, if honest."""

    @property
    def honest(self) -> np.ndarray:
        """Posterior probability of being none of KINDS."""
        odds = np.exp(np.clip(self.log_odds, -50, 50)) @ self.shares[1:]
        return self.shares[0] / (self.shares[0] + odds)


def tally(record: VoteRecord, pool: Pool, keep_mask: np.ndarray | None = None) -> Tally:
    """Count the decided votes of each rater by the strength of the others' opinion and the shown order.

    Args:
        keep_mask: True = the vote counts; None = all count.
    """
    direction, m = record.direction, pool.logit
    decided = direction != 0 if keep_mask is None else (direction != 0) & keep_mask
    turn = np.where(m < 0, -1, 1)
    size = np.abs(m)
    edges = np.quantile(size[decided], np.linspace(0, 1, N_BINS + 1)[1:-1]) if decided.any() else np.zeros(N_BINS - 1)
    bins = np.searchsorted(edges, size, side="right")
    n_bin = np.bincount(bins[decided], minlength=N_BINS)
    gap = np.bincount(bins[decided], size[decided], N_BINS) / np.maximum(n_bin, 1)
    cell = (bins * 3 + (record.shown * turn + 1))[decided]
    place = record.annotator[decided] * (3 * N_BINS) + cell
    shape, length = (record.n_annotators, 3 * N_BINS), record.n_annotators * 3 * N_BINS
    agrees = (direction == turn)[decided]
    return Tally(
        np.bincount(place, minlength=length).reshape(shape).astype(np.float64),
        np.bincount(place, agrees, length).reshape(shape),
        np.repeat(gap, 3),
        np.tile([-1.0, 0.0, 1.0], N_BINS),
    )


def fit_habits(counts: Tally, *, start: Habits | None = None, most_steps: int = 60) -> Habits:
    """Estimate the honest population by EM, attackers of each kind taken out by their probabilities.

        P(votes of w) = π₀·∫ P(votes | a, b) N(a; μ_a, τ_a²) N(b; μ_b, τ_b²) + Σ_kinds π_k·P(votes | kind)

    The shares π of attackers are held to MOST_ATTACKERS together: a crowd that mostly clicks at random is a crowd
    that cannot be judged by itself, and is then called honest.

    Args:
        start: an earlier fit to begin from.    most_steps: of EM; fewer where nothing moves by more than 10⁻³.
    """
    used = counts.n.sum(axis=1) >= FEW_DECIDED
    some = Tally(counts.n[used], counts.n_agree[used], counts.gap, counts.shown)
    population = start.population if start else Population(1.0, 0.5, 0.0, 0.3)
    shares = start.shares if start else np.array([0.9, 0.025, 0.025, 0.025, 0.025])
    for _ in range(most_steps if used.any() else 0):
        honest, kinds, moments = _evidence(some, population)
        joint = np.log(shares) + np.column_stack([honest, kinds])
        resp = np.exp(joint - joint.max(axis=1, keepdims=True))
        resp /= resp.sum(axis=1, keepdims=True)
        shares = (resp.sum(axis=0) + np.array([1, 0.05, 0.05, 0.05, 0.05])) / (len(resp) + 1.2)
        excess = (1 - shares[0]) / MOST_ATTACKERS
        if excess > 1:
            shares = np.concatenate([[1 - MOST_ATTACKERS], shares[1:] / excess])
        before, population = population, _moments(resp[:, 0], *moments)
        if max(abs(getattr(population, one.name) - getattr(before, one.name)) for one in fields(Population)) < 1e-3:
            break
    honest, kinds, (mean_a, mean_b, _, _) = _evidence(counts, population)
    return Habits(counts, population, shares, kinds - honest[:, None], mean_a, mean_b)


def posterior_means(counts: Tally, population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Competence a and side habit b of each rater, if honest, where the population is known, "W" each."""
    _, _, (mean_a, mean_b, _, _) = _evidence(counts, population)
    return mean_a, mean_b


def kind_log_odds(counts: Tally, population: Population) -> np.ndarray:
    """log P(votes | kind) − log P(votes | honest) of each of KINDS where the honest population is known, "W 4"."""
    honest, kinds, _ = _evidence(counts, population)
    return kinds - honest[:, None]


def robust_habits(record: VoteRecord, *, trust: np.ndarray | None = None, n_rounds: int = 2) -> tuple[Pool, Habits]:
    """Pool and habits, estimated in turn: each round hears a rater as much as the round before found him competent.

        ω_w = P(honest)·clip(a_w / μ_a, 0, 1.5)

    So that a tenth of the raters cannot bend the opinion that they are measured against.

    Args:
        trust: a factor on ω for each rater, from what is known otherwise; 0 = heard by nobody. None = 1.
    """
    known = np.ones(record.n_annotators) if trust is None else trust
    pool = pool_view(record, known)
    habits = fit_habits(tally(record, pool))
    for _ in range(n_rounds):
        relative = np.clip(habits.competence / max(habits.population.competence, 0.1), 0.0, 1.5)
        pool = pool_view(record, known * habits.honest * relative)
        habits = fit_habits(tally(record, pool), start=habits)
    return pool, habits


def habit_p_values(
    habits: Habits, kind: str, raters: np.ndarray, rng: np.random.Generator, *, n_draws: int = 4000
) -> np.ndarray:
    """P(log-odds for a kind at least as large) for an honest rater asked the same questions.

        p = min(1, 1/odds, (1 + #{simulated ≥ observed}) / (1 + draws))

    Honest raters are drawn from the population (own competence, own side habit) and answer the same cells. The draws
    stop early where p is plainly large, and are spared where the odds alone bound p (Markov's inequality) below a
    tenth of what they can resolve.

    Args:
        raters: indices.    n_draws: the most draws for one rater.
    Returns: one p-value for each of `raters`.
    Source: Besag & Clifford 1991, Biometrika 78, for stopping early; Ville 1939 for the bound.
    """
    column = KINDS.index(kind)
    p = np.minimum(1.0, np.exp(-np.clip(habits.log_odds[raters, column], -700, 700)))
    for i, rater in enumerate(raters):
        if 0.1 / n_draws < p[i] < 1.0:
            p[i] = min(p[i], _simulated_p(habits, column, int(rater), rng, n_draws))
    return p


def _simulated_p(habits: Habits, column: int, rater: int, rng: np.random.Generator, n_draws: int) -> float:
    counts, population = habits.tally, habits.population
    asked = counts.n[rater] > 0
    n, gap, shown = counts.n[rater, asked], counts.gap[asked], counts.shown[asked]
    observed = habits.log_odds[rater, column]
    done = reached = 0
    for size in (200, 800, n_draws - 1000):
        a, b = rng.standard_normal((2, size))
        a = population.competence + population.competence_sd * a
        b = population.side_habit + population.side_habit_sd * b
        p = 1 / (1 + np.exp(-(a[:, None] * gap + b[:, None] * shown)))
        agree = rng.binomial(n.astype(np.int64), p)
        honest, kinds, _ = _evidence(Tally(np.broadcast_to(n, agree.shape), agree, gap, shown), population)
        reached += int((kinds[:, column] - honest >= observed - 1e-9).sum())
        done += size
        if reached >= 20:
            break
    return (1 + reached) / (1 + done)


def _evidence(counts: Tally, population: Population) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Log evidence of honest and of each kind, and the moments of a and b if honest."""
    a, b, weight = population.nodes
    joint = counts.loglik(a, b) + weight
    top = joint.max(axis=1, keepdims=True)
    parts = np.exp(joint - top)
    total = parts.sum(axis=1)
    parts /= total[:, None]
    mean_a, mean_b = parts @ a, parts @ b
    moments = (mean_a, mean_b, parts @ a**2 - mean_a**2, parts @ b**2 - mean_b**2)
    kinds = [_log_mean(counts.loglik(*nodes)) for nodes in population.attacks]
    return np.log(total) + top[:, 0], np.column_stack(kinds), moments


def _log_mean(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=1, keepdims=True)
    return np.log(np.exp(values - top).mean(axis=1)) + top[:, 0]


def _moments(
    weight: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray, var_a: np.ndarray, var_b: np.ndarray
) -> Population:
    def both(mean: np.ndarray, var: np.ndarray) -> tuple[float, float]:
        centre = float((weight * mean).sum() / weight.sum())
        spread = float((weight * (var + (mean - centre) ** 2)).sum() / weight.sum())
        return centre, max(spread**0.5, LEAST_SPREAD)

    return Population(*both(mean_a, var_a), *both(mean_b, var_b))


def _loglik(
    n_agree: np.ndarray, n: np.ndarray, gap: np.ndarray, shown: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    logit = np.outer(gap, a) + np.outer(shown, b)
    return n_agree @ logit - n @ np.logaddexp(0.0, logit)
