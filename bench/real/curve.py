"""The curve of accuracy against accuracy where the shorter text won, as a length term is scaled.

    score = residual + s·log(1 + characters)        pair (longer l, shorter k): l is taken iff −(residual_l − residual_k)/Δlength < s

So s runs through the thresholds of one number a pair, t = −Δresidual/Δlength: the share right where the longer text won
against the share right where the shorter one did is an ROC curve, and its area, P(t where the longer won < t where the
shorter won), says how good the residual is whatever s is taken. Knows arrays.

Dimension letters: P pairs, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from karat.records import Response
from karat.resampling import percentile_interval
from karat.reward.model import log_lengths
from karat.reward.study import Consensus
from karat.seeding import numpy_generator

N_DRAWS = 1000
REFERENCES = ((0.47, 0.80), (0.57, 0.79), (0.62, 0.775), (0.65, 0.76))
"""Where the shorter won, overall: what was known of a plain fine-tune before."""
FACTORS = (1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0, -0.25)
"""By which a fit's own length term is multiplied."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Decided pairs of texts of different length, and of equal length, which no length term moves."""

    longer: np.ndarray
    """Column of the longer text, [P]."""
    shorter: np.ndarray
    """Column of the shorter, [P]."""
    gap: np.ndarray
    """Difference of log(1 + characters), > 0, or 0 where both are equally long, [P]."""
    longer_won: np.ndarray
    """Whether the longer text was the published answer, bool [P]."""
    topic: np.ndarray
    """[P]."""

    def __len__(self) -> int:
        return len(self.gap)


class Scored(Protocol):
    """Scores of all texts by one fit."""

    residual: np.ndarray
    gamma: float


def pairs_of(
    consensus: Sequence[Consensus], place: Mapping[str, int], responses: Mapping[str, Response], topics: Sequence[str]
) -> Pairs:
    """The pairs of some decided consensus."""
    length = log_lengths([one.text for one in responses.values()]).double().numpy()
    a, b = (np.array([place[getattr(one, side)] for one in consensus], dtype=int) for side in ("a", "b"))
    a_won = np.array([one.preferred == one.a for one in consensus], dtype=bool)
    a_longer = length[a] >= length[b]
    longer, shorter = np.where(a_longer, a, b), np.where(a_longer, b, a)
    topic = np.array([topics[i] for i in a], dtype=object)
    return Pairs(longer, shorter, length[longer] - length[shorter], a_won == a_longer, topic)


def thresholds(pairs: Pairs, residual: np.ndarray) -> np.ndarray:
    """t of each pair; ±inf where both texts are equally long and the residual alone decides."""
    difference = residual[pairs.longer] - residual[pairs.shorter]
    equal = np.where(difference > 0, -np.inf, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs.gap > 0, -difference / np.where(pairs.gap > 0, pairs.gap, 1.0), equal)


def area(pairs: Pairs, residual: np.ndarray) -> float:
    """Under the curve of one fold; pairs of equal length left out."""
    t = thresholds(pairs, residual)
    return weighted_area(t, pairs.longer_won, pairs.gap > 0, np.ones(len(t)))


def weighted_area(t: np.ndarray, longer_won: np.ndarray, used: np.ndarray, weight: np.ndarray) -> float:
    """P(t where the longer won < t where the shorter won), ties ½, pairs counted by weight."""
    t, won, w = t[used], longer_won[used], weight[used]
    order = np.argsort(t, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(t[order]) > 0]))
    below = np.add.reduceat(w[order] * won[order], starts)
    above = np.add.reduceat(w[order] * ~won[order], starts)
    total = below.sum() * above.sum()
    return float((above * (np.cumsum(below) - below / 2)).sum() / total) if total else float("nan")


def accuracies(pairs: Pairs, t: np.ndarray, s: float, weight: np.ndarray) -> tuple[float, float]:
    """Overall, and where the shorter won, with a length term of slope s."""
    taken = t < s
    right = taken == pairs.longer_won
    short = ~pairs.longer_won & (pairs.gap > 0)
    return float(weight @ right / weight.sum()), float(weight[short] @ right[short] / max(weight[short].sum(), 1e-12))


def points(pairs: Sequence[Pairs], fits: Sequence[Scored]) -> list[dict[str, float]]:
    """Of all folds together, each fold's own length term times each factor."""
    whole, t, gamma, weight = _joined(pairs, fits)
    found = []
    for factor in FACTORS:
        overall, short = _at(whole, t, gamma * factor, weight)
        found.append({"factor": factor, "overall": round(overall, 4), "shorter_won": round(short, 4)})
    return found


def _at(pairs: Pairs, t: np.ndarray, s: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The same with a slope for each pair."""
    return accuracies(pairs, t - s, 0.0, weight)


def _joined(pairs: Sequence[Pairs], fits: Sequence[Scored]) -> tuple[Pairs, np.ndarray, np.ndarray, np.ndarray]:
    names = ("longer", "shorter", "gap", "longer_won", "topic")
    whole = Pairs(*(np.concatenate([getattr(own, name) for own in pairs]) for name in names))
    t = np.concatenate([thresholds(own, fit.residual) for own, fit in zip(pairs, fits, strict=True)])
    gamma = np.concatenate([np.full(len(own), fit.gamma) for own, fit in zip(pairs, fits, strict=True)])
    return whole, t, gamma, np.ones(len(t))


def overall_at(pairs: Pairs, u: np.ndarray, weight: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Overall accuracy where the share right among pairs that the shorter won is `wanted`, linear between two points.

    Args:
        u: thresholds in units that all folds share: t divided by the fold's own γ.
    """
    short = ~pairs.longer_won & (pairs.gap > 0)
    order = np.argsort(u, kind="stable")
    w, won, is_short = weight[order], pairs.longer_won[order], short[order]
    # with slope s the pairs before s take the longer text
    right = (
        np.concatenate([[0.0], np.cumsum(w * won)]) + (w * ~won).sum() - np.concatenate([[0.0], np.cumsum(w * ~won)])
    )
    short_right = 1 - np.concatenate([[0.0], np.cumsum(w * is_short)]) / max((w * is_short).sum(), 1e-12)
    return np.interp(-np.asarray(wanted), -short_right, right / w.sum())


def matched(pairs: Sequence[Pairs], fits: Sequence[Scored]) -> list[dict[str, float]]:
    """Overall accuracy at the shares of the reference."""
    whole, t, gamma, weight = _joined(pairs, fits)
    found = overall_at(whole, t / gamma, weight, [short for short, _ in REFERENCES])
    return [
        {"shorter_won": short, "overall": round(float(one), 4), "reference": overall}
        for (short, overall), one in zip(REFERENCES, found, strict=True)
    ]


def bootstrap(
    pairs: Sequence[Pairs], systems: Mapping[str, Sequence[Scored]], *, reference: str, seed: int
) -> dict[str, Any]:
    """Area, overall accuracy at each share and at the fit's own length term, and differences from the reference; over topics."""
    joined = {name: _joined(pairs, fits) for name, fits in systems.items()}
    whole = next(iter(joined.values()))[0]
    labels, codes = np.unique(whole.topic.astype(str), return_inverse=True)
    fold = np.concatenate([np.full(len(own), number) for number, own in enumerate(pairs)])
    rng = numpy_generator(seed, "ukp_curve", "bootstrap")
    weights = [np.ones(len(codes)), *(rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)))[codes] * 1.0
                                      for _ in range(N_DRAWS))]  # fmt: skip
    found: dict[str, Any] = {}
    draws: dict[str, dict[str, np.ndarray]] = {}
    for name, (own, t, gamma, _) in joined.items():
        rows = [_figures(own, t, gamma, fold, weight) for weight in weights]
        draws[name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    for name, own_draws in draws.items():
        found[name] = {key: _estimate(values, len(labels)) for key, values in own_draws.items()}
        if name != reference:
            found[f"{name} − {reference}"] = {
                key: _estimate(values - draws[reference][key], len(labels)) for key, values in own_draws.items()
            }
    return found


def _figures(pairs: Pairs, t: np.ndarray, gamma: np.ndarray, fold: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    overall, short = _at(pairs, t, gamma, weight)
    bare, bare_short = _at(pairs, t, 0 * gamma, weight)
    areas, sizes = [], []
    for number in np.unique(fold):  # thresholds of different fits are not compared
        own = (fold == number) & (pairs.gap > 0)
        if weight[own].sum():
            areas.append(weighted_area(t, pairs.longer_won, own, weight))
            sizes.append(weight[own].sum())
    found = {"overall": overall, "shorter_won": short, "overall_without": bare, "shorter_won_without": bare_short}
    known = np.isfinite(areas)
    found["area"] = float(np.average(np.array(areas)[known], weights=np.array(sizes)[known]))
    wanted = [short for short, _ in REFERENCES]
    reached = overall_at(pairs, t / gamma, weight, wanted)
    return found | {f"overall at {short:g}": float(one) for short, one in zip(wanted, reached, strict=True)}


def _estimate(values: np.ndarray, n: int) -> dict[str, Any]:
    one = percentile_interval(float(values[0]), values[1:], n, level=0.95, what="curve")
    return {key: None if getattr(one, key) is None else round(getattr(one, key), 4) for key in ("value", "low", "high")}
