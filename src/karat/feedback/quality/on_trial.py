"""The choice model on trial: does it make votes like those that were given, and would another link do better?

The model is `karat.feedback.quality.reliability`'s: scores of responses, competence and side bias of raters, an ordinal
logistic link. Knows comparisons as columns of numbers; nothing about texts, files or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy.special import expit, log_expit, log_ndtr

from karat.errors import InputError
from karat.feedback.quality.expectation import predicted_probs
from karat.feedback.quality.ordinal import Comparisons
from karat.feedback.quality.reliability import Priors, Reliability, fit_reliability
from karat.records import Estimate
from karat.stats import paired_difference

N_REPLICATES = 400
N_FOLDS = 4
N_PERMUTATIONS = 999
LEAST_VOTES = 50
"""Below this nothing here can say anything."""


@dataclass(frozen=True)
class Check:
    """A figure of the votes beside what the model makes of it."""

    name: str
    """What it is."""
    observed: float
    """Of the votes given."""
    low: float
    """2.5 % quantile of the model's own votes."""
    high: float
    """97.5 % quantile."""
    p_value: float
    """Two-sided posterior predictive p: 2·min of the shares of replicates at or beyond the observed one, at most 1."""


@dataclass(frozen=True)
class LinkTrial:
    """How well a link predicts votes that it has not seen."""

    name: str
    """ordinal logistic (Bradley–Terry, Rao–Kupper), Davidson, Thurstone."""
    loglik: float
    """Mean log-likelihood of a held-out vote, in nats."""
    difference: Estimate
    """What it is better than the ordinal logistic by, nats a vote, clustered by rater."""


@dataclass(frozen=True)
class Drift:
    """Whether what raters like in a trait changes over time."""

    trait: str
    """Whose weight is asked about."""
    change: float
    """Change of its weight from the first vote to the last, in logits a unit of the trait."""
    p_value: float
    """Two-sided, times permuted within raters."""
    n: int
    """Decided votes."""


def signs(level: np.ndarray, n_levels: np.ndarray) -> np.ndarray:
    """+1 = a preferred, −1 = b, 0 = a tie."""
    return np.sign(2 * level - (n_levels - 1)).astype(np.int64)


def predictive_checks(
    votes: Comparisons, fit: Reliability, item: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> list[Check]:
    """Figures that a wrong choice model gets wrong, beside those of votes drawn from the fitted one.

    Ties; the first shown preferred; the ends of the scale; agreement of two raters on a pair; how far raters differ in
    their ties; cycles among three responses. The fit has seen the votes, so that the p-values lean to the middle: a small
    one is evidence, a large one is none.

    Args:
        item: question of each vote [C].    group: what each response answers [N]; three of one group can be a cycle.
    Source: Rubin 1984, Annals of Statistics 12(4); Gelman, Meng & Stern 1996, Statistica Sinica 6.
    """
    _check_size(votes)
    k = int(np.bincount(votes.n_levels).argmax())
    rows = votes.n_levels == k
    main = votes.select(rows)
    delta, var = fit.difference(main.a, main.b)
    cumulative = predicted_probs(fit, delta, var, main.side, main.annotator, k).cumsum(1)
    figures = _figures(main, k, item[rows], group)
    observed = {name: figure(main.level) for name, figure in figures.items()}
    draws: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(N_REPLICATES):
        level = (rng.random(len(main))[:, None] > cumulative[:, :-1]).sum(1)
        for name, figure in figures.items():
            draws[name].append(figure(level))
    return [_check(name, observed[name], np.array(draws[name])) for name in figures if np.isfinite(observed[name])]


def rival_links(votes: Comparisons, rng: np.random.Generator, priors: Priors | None = None) -> list[LinkTrial]:
    """Held-out likelihood of better, tie and worse under three links, scores and raters fitted on other votes.

        ordinal logistic   P(a) = σ(sη − t), P(b) = σ(−sη − t)          η = a_w·Δ + b_w·side
        Thurstone          P(a) = Φ(sη − t), P(b) = Φ(−sη − t)
        Davidson           P(a) ∝ e^{sη/2}, P(b) ∝ e^{−sη/2}, P(tie) ∝ t

    Each vote's η comes from the other folds, s and t from the held-out votes of the other folds. Regret (Knox et al.
    2022, arXiv:2206.02231) needs no row: of whole responses to one prompt it differs from the reward by what is the
    same for both.

    Source: Rao & Kupper 1967, JASA 62; Davidson 1970, JASA 65; Thurstone 1927, Psychological Review 34.
    """
    _check_size(votes)
    fold = rng.permutation(np.arange(len(votes)) % N_FOLDS)
    eta = np.empty(len(votes))
    for number in range(N_FOLDS):
        fit = fit_reliability(votes.select(fold != number), priors)
        out = votes.select(fold == number)
        eta[fold == number] = _log_odds(fit, out)
    said = signs(votes.level, votes.n_levels)
    found = {name: _held_out(link, eta, said, fold) for name, link in LINKS.items()}
    base = found["ordinal logistic"]
    return [
        LinkTrial(name, float(each.mean()), paired_difference(each, base, votes.annotator, rng))
        for name, each in found.items()
    ]


def drift(
    votes: Comparisons, fit: Reliability, traits: dict[str, np.ndarray], time: np.ndarray, rng: np.random.Generator
) -> list[Drift]:
    """Whether the weight of a trait moves with time: the score test of z·t beside z and the fitted scores.

        logit P(a) = η + α·z + β·z·t        U = Σ z·t·(y − σ(η + α̂·z)),  t from −½ to ½ by rank, less each rater's mean

    Args:
        traits: by name, trait of a minus trait of b [C].    time: of each vote [C], NaN = not known.
    Returns: β̂ by one Newton step from 0; the p-value from times permuted within raters, which keeps who votes when.
    """
    said = signs(votes.level, votes.n_levels)
    rows = np.flatnonzero((said != 0) & np.isfinite(time))
    if len(rows) < LEAST_VOTES or np.ptp(time[rows]) == 0:
        return []
    rater, y = votes.annotator[rows], (said[rows] + 1) / 2
    order = time[rows].argsort(kind="stable").argsort()
    t = order / (len(rows) - 1) - 0.5
    n = np.maximum(np.bincount(rater), 1)
    t -= (np.bincount(rater, t) / n)[rater]  # who judges when is no drift: each rater is compared with herself
    eta = _log_odds(fit, votes.select(rows))
    found = []
    for name, each in traits.items():
        z = each[rows]
        alpha = float(optimize.minimize_scalar(lambda a, z=z: -log_expit((2 * y - 1) * (eta + a * z)).sum()).x)
        p = expit(eta + alpha * z)
        rest = z * (y - p)
        information = float((z**2 * p * (1 - p)) @ t**2)
        observed = float(rest @ t)
        permuted = np.array([abs(rest @ _within(t, rater, rng)) for _ in range(N_PERMUTATIONS)])
        p_value = (1 + int((permuted >= abs(observed) * (1 - 1e-12)).sum())) / (1 + N_PERMUTATIONS)
        change = observed / information if information > 0 else 0.0
        found.append(Drift(name, change, p_value, len(rows)))
    return found


def _log_odds(fit: Reliability, votes: Comparisons) -> np.ndarray:
    """η = a_w·Δ + b_w·side of each vote, at the fit's point estimates."""
    delta = fit.scores[votes.a] - fit.scores[votes.b]
    return fit.competence[votes.annotator] * delta + fit.side_bias[votes.annotator] * votes.side


Figure = Callable[[np.ndarray], float]


def _figures(votes: Comparisons, k: int, item: np.ndarray, group: np.ndarray) -> dict[str, Figure]:
    """The figures by name, each a function of the levels."""
    top = k - 1
    figures: dict[str, Figure] = {}
    if k % 2:
        figures["ties"] = lambda level: float((2 * level == top).mean())
        figures["spread of raters' ties"] = lambda level: _spread(2 * level == top, votes.annotator)
    if (votes.side != 0).any():
        figures["first shown preferred"] = lambda level: _first_share(np.sign(2 * level - top) * votes.side)
    if k > 3:
        figures["ends of the scale"] = lambda level: float(((level == 0) | (level == top)).mean())
    figures["two raters agree on a pair"] = lambda level: _agreement(np.sign(2 * level - top), item)
    cycle = CycleShare.of(votes.a, votes.b, group)
    if cycle is not None:
        figures["cycles of three"] = lambda level: cycle.share(np.sign(2 * level - top))
    return figures


@dataclass(frozen=True, eq=False)
class CycleShare:
    """Which votes are about which pair, and which three pairs make a triangle."""

    pair: np.ndarray
    """Pair of each vote [C]."""
    turn: np.ndarray
    """+1 = the vote's a is the pair's lower response, −1 = its b [C]."""
    triangles: np.ndarray
    """Pairs (low, middle), (middle, high), (low, high) of each triangle [T, 3]."""

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray, group: np.ndarray) -> CycleShare | None:
        """None where no three responses of a group were compared with one another."""
        low, high = np.minimum(a, b), np.maximum(a, b)
        names, pair = np.unique(np.stack([low, high], 1), axis=0, return_inverse=True)
        index = {(int(i), int(j)): n for n, (i, j) in enumerate(names)}
        above: dict[int, list[int]] = {}
        for i, j in index:
            if group[i] == group[j]:
                above.setdefault(i, []).append(j)
        triangles = [
            (index[i, j], index[j, k], index[i, k])
            for i, some in above.items()
            for j in some
            for k in above.get(j, ())
            if (i, k) in index
        ]
        return cls(pair.ravel(), np.where(a == low, 1, -1), np.array(triangles)) if triangles else None

    def share(self, said: np.ndarray) -> float:
        """Cycles among triangles whose three pairs have a majority each; NaN without any.

        Args:
            said: +1, 0, −1 for each vote [C].
        """
        majority = np.sign(np.bincount(self.pair, said * self.turn, minlength=self.pair.max() + 1))
        one, two, across = majority[self.triangles].T
        decided = (one != 0) & (two != 0) & (across != 0)
        return float(((one == two) & (two != across))[decided].mean()) if decided.any() else float("nan")


def _check(name: str, observed: float, draws: np.ndarray) -> Check:
    draws = draws[np.isfinite(draws)]
    tail = min(int((draws >= observed).sum()), int((draws <= observed).sum()))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Check(name, observed, float(low), float(high), min(1.0, 2 * (1 + tail) / (1 + len(draws))))


def _first_share(toward_first: np.ndarray) -> float:
    decided = toward_first[toward_first != 0]
    return float((decided > 0).mean()) if len(decided) else float("nan")


def _spread(hit: np.ndarray, rater: np.ndarray) -> float:
    n = np.bincount(rater)
    share = np.bincount(rater, hit) / np.maximum(n, 1)
    return float(share[n >= 5].std()) if (n >= 5).sum() > 1 else float("nan")


def _agreement(said: np.ndarray, item: np.ndarray) -> float:
    """Share of pairs of raters on one question who said the same of three."""
    n = np.bincount(item)
    same = sum((c * (c - 1)).sum() for c in (np.bincount(item, said == each, len(n)) for each in (-1, 0, 1)))
    pairs = (n * (n - 1)).sum()
    return float(same / pairs) if pairs else float("nan")


def _logistic(eta: np.ndarray, t: float) -> np.ndarray:
    return _ordinal(log_expit(eta - t), log_expit(-eta - t))


def _thurstone(eta: np.ndarray, t: float) -> np.ndarray:
    return _ordinal(log_ndtr(eta - t), log_ndtr(-eta - t))


def _ordinal(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    tie = np.log(np.maximum(-np.expm1(np.logaddexp(better, worse)), 1e-12))
    return np.stack([worse, tie, better], 1)


def _davidson(eta: np.ndarray, t: float) -> np.ndarray:
    logits = np.stack([-eta / 2, np.full_like(eta, np.log(max(t, 1e-12))), eta / 2], 1)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


Link = Callable[[np.ndarray, float], np.ndarray]
LINKS: dict[str, Link] = {"ordinal logistic": _logistic, "Davidson": _davidson, "Thurstone": _thurstone}


def _held_out(link: Link, eta: np.ndarray, said: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Log-likelihood of each vote, scale and tie width from the other folds."""
    found = np.empty(len(eta))
    has_ties = bool((said == 0).any())
    for number in range(N_FOLDS):
        rest, own = fold != number, fold == number

        def loss(x: np.ndarray, rest: np.ndarray = rest) -> float:
            probs = link(np.exp(x[0]) * eta[rest], float(np.exp(x[1])) if has_ties else 0.0)
            return -float(probs[np.arange(rest.sum()), said[rest] + 1].mean())

        x = optimize.minimize(
            loss, np.array([0.0, -0.5]), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8}
        ).x
        probs = link(np.exp(x[0]) * eta[own], float(np.exp(x[1])) if has_ties else 0.0)
        found[own] = probs[np.arange(own.sum()), said[own] + 1]
    return found


def _within(t: np.ndarray, rater: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Times shuffled among the votes of each rater."""
    order, shuffled = np.lexsort((np.arange(len(t)), rater)), np.lexsort((rng.random(len(t)), rater))
    found = np.empty_like(t)
    found[order] = t[shuffled]
    return found


def _check_size(votes: Comparisons) -> None:
    if len(votes) < LEAST_VOTES:
        raise InputError(f"trial: found {len(votes)} comparisons; expected {LEAST_VOTES} or more to say anything")


__all__ = ["Check", "CycleShare", "Drift", "LinkTrial", "drift", "predictive_checks", "rival_links", "signs"]
