"""The likelihood of comparisons with raters in it, and its first and second derivatives, in numpy.

    P(y ≤ k) = σ(c_k − a_w·Δ − b_w·side)        Δ = s_a − s_b        with probability ε_w a level drawn uniformly

The same likelihood as `karat.choice`, which learns rewards from it; here it needs no tensors and gives curvature too.
Knows comparisons as columns of numbers. Knows nothing about texts, files or how the parameters are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, log_expit

from karat.errors import InputError


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Comparisons as columns; several scales may be mixed, each has cutpoints of its own."""

    a: np.ndarray
    """Index of response a in the scores."""
    b: np.ndarray
    """Index of response b."""
    level: np.ndarray
    """0 = b much better … n_levels − 1 = a much better."""
    n_levels: np.ndarray
    """Levels of the scale of each comparison, ≥ 2 (one number = all on the same scale)."""
    side: np.ndarray
    """+1 = a was shown first, −1 = b was, 0 = not known."""
    annotator: np.ndarray
    """Index of the rater."""
    n_scores: int
    """Responses there are."""
    n_annotators: int
    """Raters there are; those without a comparison keep their prior."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_levels", np.broadcast_to(np.asarray(self.n_levels), np.shape(self.level)))
        columns = {name: np.asarray(getattr(self, name)) for name in _COLUMNS}
        shapes = {name: column.shape for name, column in columns.items()}
        if len(set(shapes.values())) != 1 or len(shapes["a"]) != 1:
            raise InputError(f"Comparisons: found shapes {shapes}; expected one length for all columns")
        for name, column in columns.items():
            if column.dtype.kind not in "iu" and not (column == np.floor(column)).all():
                raise InputError(f"Comparisons.{name}: found values of type {column.dtype}; expected whole numbers")
            object.__setattr__(self, name, column.astype(np.int64))
        if not len(self.a):
            return
        for name, top in (("a", self.n_scores), ("b", self.n_scores), ("annotator", self.n_annotators)):
            column = getattr(self, name)
            if column.min() < 0 or column.max() >= top:
                raise InputError(f"Comparisons.{name}: found {column.min()} … {column.max()}; expected 0 … {top - 1}")
        if self.n_levels.min() < 2 or (self.level < 0).any() or (self.level >= self.n_levels).any():
            raise InputError("Comparisons: found a level outside its scale; expected 0 … n_levels − 1 and n_levels ≥ 2")
        if (np.abs(self.side) > 1).any():
            raise InputError(f"Comparisons.side: found {np.abs(self.side).max()}; expected +1, −1 or 0")
        if (self.a == self.b).any():
            raise InputError("Comparisons: found a response compared with itself; leave such votes out")

    def __len__(self) -> int:
        return len(self.a)

    def select(self, rows: np.ndarray) -> Comparisons:
        """The comparisons at some rows (or where a mask is True)."""
        return Comparisons(*(getattr(self, name)[rows] for name in _COLUMNS), self.n_scores, self.n_annotators)

    def one_way(self) -> Comparisons:
        """The same comparisons with a the lower index of each: levels of one pair mean the same, whoever was named first."""
        turned, other = self.a > self.b, self.swapped()
        own = (np.where(turned, getattr(other, name), getattr(self, name)) for name in _COLUMNS)
        return Comparisons(*own, self.n_scores, self.n_annotators)

    def swapped(self) -> Comparisons:
        """The same comparisons with a and b exchanged; their likelihood is the same."""
        top = self.n_levels - 1
        return Comparisons(
            self.b,
            self.a,
            top - self.level,
            self.n_levels,
            -self.side,
            self.annotator,
            self.n_scores,
            self.n_annotators,
        )

    @cached_property
    def scales(self) -> Scales:
        """The cutpoints that these comparisons meet."""
        return Scales(tuple(int(k) for k in np.unique(self.n_levels)))

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the cutpoints above and below each level given."""
        starts = np.array([self.scales.starts[int(k)] for k in self.scales.n_levels])
        start = starts[np.searchsorted(self.scales.n_levels, self.n_levels)]
        return start + self.level + 1, start + self.level


_COLUMNS = ("a", "b", "level", "n_levels", "side", "annotator")


@dataclass(frozen=True)
class Scales:
    """Symmetric cutpoints of one or more scales, made of positive steps: c = J·e^ρ, with −∞ and +∞ at the ends.

    K levels have (K − 1) // 2 steps: the first cutpoint above 0 is e^ρ₁, the next e^ρ₁ + e^ρ₂; K = 2 has none.
    """

    n_levels: tuple[int, ...]
    """Levels of each scale, ascending."""

    @property
    def n_steps(self) -> int:
        """Steps of all scales together: the length of ρ."""
        return sum((k - 1) // 2 for k in self.n_levels)

    @property
    def starts(self) -> dict[int, int]:
        """Row at which the cutpoints of each scale start."""
        rows = np.cumsum([0, *(k + 1 for k in self.n_levels)])
        return dict(zip(self.n_levels, rows.tolist(), strict=False))

    @cached_property
    def jacobian(self) -> np.ndarray:
        """J, one row a cutpoint (infinite ones have none of it), one column a step."""
        rows, before = [], 0
        for k in self.n_levels:
            half = (k - 1) // 2
            steps = np.zeros((half, self.n_steps))
            steps[:, before : before + half] = np.tril(np.ones((half, half)))
            middle = np.zeros(((k + 1) % 2, self.n_steps))
            end = np.zeros((1, self.n_steps))
            rows += [end, -steps[::-1], middle, steps, end]
            before += half
        return np.concatenate(rows)

    def cutpoints(self, log_steps: np.ndarray) -> np.ndarray:
        """All cutpoints of all scales, infinite ends included, one scale after the other."""
        cuts = self.jacobian @ np.exp(log_steps)
        for k, start in self.starts.items():
            cuts[start], cuts[start + k] = -np.inf, np.inf
        return cuts

    def log_steps(self, cutpoints: Mapping[int, np.ndarray]) -> np.ndarray:
        """ρ of the finite cutpoints of each scale: the inverse of `named`."""
        steps = [np.diff(cutpoints[k][-((k - 1) // 2) :], prepend=0.0) if k > 2 else np.empty(0) for k in self.n_levels]
        return np.log(np.concatenate(steps))

    def named(self, log_steps: np.ndarray) -> dict[int, np.ndarray]:
        """The finite cutpoints of each scale by its number of levels."""
        cuts = self.cutpoints(log_steps)
        return {k: cuts[start + 1 : start + k] for k, start in self.starts.items()}


@dataclass(frozen=True, eq=False)
class Derivatives:
    """log P of each comparison, its slope and curvature in η = a·Δ + b·side and in the cutpoints around the level."""

    loglik: np.ndarray
    """log P(y = level), lapses included."""
    eta: np.ndarray
    """∂/∂η."""
    upper: np.ndarray
    """∂/∂(cutpoint above)."""
    lower: np.ndarray
    """∂/∂(cutpoint below)."""
    lapse: np.ndarray
    """∂/∂ε."""
    second: Mapping[str, np.ndarray]
    """∂² by the pair: ee, eu, el, uu, ll, ul (e = η, u = above, l = below)."""
    attentive: np.ndarray
    """Probability that the answer was no lapse."""

    def rough(self) -> Derivatives:
        """The same with a curvature that is never positive and slopes of 0: all that a Gauss–Newton step needs."""
        first = {"e": self.eta, "u": self.upper, "l": self.lower}
        odds = np.divide(1 - self.attentive, self.attentive, out=np.zeros_like(self.eta), where=self.attentive > 0)
        second = {name: bend - odds * first[name[0]] * first[name[1]] for name, bend in self.second.items()}
        none = np.zeros_like(self.eta)
        return Derivatives(self.loglik, none, none, none, self.lapse, second, self.attentive)


def derivatives(
    eta: np.ndarray, upper: np.ndarray, lower: np.ndarray, lapse: np.ndarray, k: np.ndarray, *, curved: bool = True
) -> Derivatives:
    """Log-likelihood of levels between two cutpoints, with first and second derivatives, exact in the tails.

        q = σ(u − η) − σ(l − η) = σ(u − η)·σ(η − l)·(1 − e^{l − u})        p = (1 − ε)·q + ε / K

    Args:
        eta: a·Δ + b·side.    upper, lower: the cutpoints around the level, ±∞ at the ends.
        lapse: ε in [0, 1).    k: levels of the scale.    curved: False = no second derivatives.
    """
    with np.errstate(over="ignore", divide="ignore"):
        gap = upper - lower
        inverse = 1 / np.expm1(gap)
        log_q = log_expit(upper - eta) + log_expit(eta - lower) + np.log1p(-np.exp(-gap))
        log_lapse = np.log(lapse) - np.log(k)
    above, below = expit(eta - upper), expit(lower - eta)
    first = {"e": below - above, "u": above + inverse, "l": -below - inverse}
    loglik = np.logaddexp(np.log1p(-lapse) + log_q, log_lapse)
    attentive = np.exp(np.log1p(-lapse) + log_q - loglik)  # how likely it was no lapse
    second: dict[str, np.ndarray] = {}
    if curved:
        curve, at_upper, at_lower = inverse * (1 + inverse), above * (1 - above), below * (1 - below)
        bend = {
            "ee": -at_upper - at_lower, "eu": at_upper, "el": at_lower,
            "uu": -at_upper - curve, "ll": -at_lower - curve, "ul": curve,
        }  # fmt: skip
        for name, value in bend.items():
            second[name] = attentive * (value + (1 - attentive) * first[name[0]] * first[name[1]])
    return Derivatives(
        loglik=loglik,
        eta=attentive * first["e"],
        upper=attentive * first["u"],
        lower=attentive * first["l"],
        lapse=np.exp(-np.log(k) - loglik) - np.exp(log_q - loglik),
        second=second,
        attentive=attentive,
    )


def level_probs(eta: np.ndarray, cutpoints: np.ndarray, lapse: np.ndarray | float) -> np.ndarray:
    """Probability of every level of one scale, [..., K], for known η.

    Args:
        cutpoints: the K − 1 finite ones, ascending.    lapse: ε, broadcast against η.
    """
    below = np.concatenate([[-np.inf], cutpoints])
    above = np.concatenate([cutpoints, [np.inf]])
    eta = np.asarray(eta)[..., None]
    with np.errstate(over="ignore"):
        log_q = log_expit(above - eta) + log_expit(eta - below) + np.log1p(-np.exp(below - above))
    lapse = np.asarray(lapse)[..., None]
    return (1 - lapse) * np.exp(log_q) + lapse / len(above)
