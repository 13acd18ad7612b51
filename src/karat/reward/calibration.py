"""What the scores say in probabilities: predictions for raters never seen, temperature, and how far to trust them.

Everything here is in logits; the optimiser's scale never enters. Knows scores and votes as columns; knows nothing
about texts or trunks.

Dimension letters: S heads, C comparisons, K levels, N texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from karat.choice import VoteBatch, marginal_probs
from karat.errors import InputError
from karat.records import Estimate, Finding
from karat.reward.raters import RaterPriors

BOUND = 20.0
LOG_TEMPERATURE_BOUND = math.log(BOUND)  # beyond it the scores say nothing (or everything), which is a finding
TEMPERATURE = "reward.temperature"

N_TEMPERATURES = 32
"""Temperatures at which a slice's likelihood is computed; log σ(Δ/T) is analytic within |Im log T| < π/2, so that the
polynomial between them is off by about ρ⁻³¹ = 2e-7 nats a vote (ρ = 1.65)."""
CHI2_95 = 3.841458820694124  # 95 % quantile of χ² with one degree of freedom


@dataclass(frozen=True)
class VoteModel:
    """What turns differences of scores into probabilities for a rater of whom no vote is known."""

    priors: RaterPriors
    """Priors over which raters are integrated."""
    cutpoints: tuple[float, ...]
    """Thresholds of the scale in logits, ascending and antisymmetric."""

    @property
    def n_levels(self) -> int:
        """Levels of the scale."""
        return len(self.cutpoints) + 1


def predicted_probs(
    scores: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel, *, temperature: float = 1.0
) -> Float[Tensor, "C K"]:
    """Probability of every level for each comparison: the mean over heads, with the rater integrated out.

        P(y = k) = (1/S)·Σ_s ∫ P(y = k | a·Δ_s/T + b·side) dprior(a, b)

    Args:
        scores: raw scores of each head (logits when T is already applied).    temperature: T > 0.
    """
    distinct, inverse = torch.stack([votes.a.double(), votes.b.double(), votes.side.double()]).unique(
        dim=1, return_inverse=True
    )
    a, b, side = distinct[0].long(), distinct[1].long(), distinct[2]
    wide = scores.detach().double()
    delta = (wide[:, a] - wide[:, b]) / temperature  # [S, distinct]
    if model.priors.modelled:
        spread = {"competence_sd": model.priors.competence_sd, "side_bias_sd": model.priors.side_bias_sd}
    else:
        spread = {"competence_sd": 0.0, "side_bias_sd": 0.0}
    probs = marginal_probs(
        delta.flatten(),
        **spread,
        lapse=model.priors.mean_lapse,
        cutpoints=torch.tensor(model.cutpoints, dtype=torch.float64),
        side=side.repeat(delta.shape[0]),
    )
    return probs.view(*delta.shape, model.n_levels).mean(0)[inverse]


def vote_nll(probs: Float[Tensor, "C K"], votes: VoteBatch) -> Float[Tensor, " C"]:
    """−log P(the level that was chosen), nats."""
    return -probs.gather(1, votes.level.unsqueeze(1)).squeeze(1).clamp_min(1e-300).log()


def fit_temperature(scores: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel) -> float:
    """The temperature T that makes held-out votes most likely; scores in logits are raw/T.

    Cutpoints stay: they are properties of the scale, T of the model's confidence.

    Returns: T in [1/20, 20]; a value at the bound means that the scores carry nothing.
    Source: Guo et al. 2017, arXiv:1706.04599 §4.2, for the ordinal link.
    """

    return best_temperature(
        lambda temperature: float(
            vote_nll(predicted_probs(scores, votes, model, temperature=temperature), votes).mean()
        )
    )


def best_temperature(mean_nll: Callable[[float], float]) -> float:
    """The T in [1/20, 20] at which a mean −log P of statements is smallest."""
    found = minimize_scalar(
        lambda log_temperature: mean_nll(math.exp(log_temperature)),
        bounds=(-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND), method="bounded", options={"xatol": 1e-3, "maxiter": 40},
    )  # fmt: skip
    return math.exp(float(found.x))


def temperature_interval(mean_nll: Callable[[float], float], n: int, best: float) -> tuple[float, float]:
    """95 % profile-likelihood interval of T: { T : 2n·(f(T) − f(T̂)) ≤ χ²₁(.95) }, within [1/20, 20].

    Args:
        mean_nll: f, mean −log P of n statements, taken as independent.    best: T̂.
    """
    least, centre = mean_nll(best), math.log(best)

    def above(log_temperature: float) -> float:
        return 2 * n * (mean_nll(math.exp(log_temperature)) - least) - CHI2_95

    ends = []
    for bound in (-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND):
        reached = above(bound) > 0 and above(centre) < 0
        ends.append(math.exp(brentq(above, *sorted((bound, centre)), xtol=1e-5) if reached else bound))
    return ends[0], ends[1]


def at_end_of_search(temperature: float) -> bool:
    """Whether the search for T ended at 1/20 or 20, so that the votes would have gone further."""
    return abs(math.log(temperature)) > 0.99 * LOG_TEMPERATURE_BOUND


def end_of_search(found: Estimate) -> str:
    """What it means where T, or an end of its interval, is an end of the search, in words; "" = neither is.

    >>> end_of_search(Estimate(1.2, 0.9, 1.6, 300, "profile likelihood"))
    ''
    """
    ends = [one for one in (found.value, found.low, found.high) if one is not None]
    reached = " and ".join(f"{end:.3g}" for end in sorted({min(ends), max(ends)}) if at_end_of_search(end))
    if not reached:
        return ""
    searched = f"the search goes from {1 / BOUND:.3g} to {BOUND:.3g}"
    if at_end_of_search(ends[0]) and ends[0] > 1:
        return f"{searched} and ends at {BOUND:.3g}: these votes would have the scores count for less still, which say nothing of them, or the opposite"
    if at_end_of_search(ends[0]):
        return f"{searched} and ends at {1 / BOUND:.3g}: these votes would have the scores count for more still, which were hardly trained, or the votes are few"
    return f"{searched} and the interval reaches {reached}: these votes hardly say how sure the scores may be"


def temperature_finding(found: Estimate | None) -> Finding:
    """The finding of the temperature that held-out votes gave; None = nothing held out compares."""
    question = "By what were the raw scores divided to become logits?"
    if found is None:
        nothing = Estimate(None, None, None, 0, "nothing held out compares responses; the temperature stays 1")
        return Finding(TEMPERATURE, question, "not measured", nothing)
    status = "warn" if at_end_of_search(found.value or 1.0) else "info"
    return Finding(TEMPERATURE, question, status, found, detail=end_of_search(found))


@dataclass(frozen=True)
class SliceCalibration:
    """How far the probabilities of one slice of held-out votes can be trusted."""

    n: int
    """Votes of the slice."""
    temperature: float | None
    """T that its votes would have chosen, relative to the model's; None = fewer than `MIN_SLICE`. 1 = no correction."""
    nll: float
    """Mean −log P at the model's own temperature, nats."""
    nll_corrected: float | None
    """The same at the slice's temperature, chosen on one half of its votes and measured on the other, and the reverse."""
    low: float | None = None
    """Lower end of the temperature's 95 % profile-likelihood interval, votes taken as independent; None without one."""
    high: float | None = None
    """Upper end."""


MIN_SLICE = 40
"""Votes from which a temperature of their own is fitted: below, its standard error is about a quarter of it."""


def slice_calibration(
    logits: Float[Tensor, "S N"], votes: VoteBatch, model: VoteModel, names: Sequence[str]
) -> dict[str, SliceCalibration]:
    """Temperature of each slice of held-out votes: by group of raters, by kind of feedback, by topic.

    One temperature over all votes hides a group for whom the scores are too sure and one for whom they are not sure
    enough. Reported, and applied only where the corrected likelihood says that it helps (`nll_corrected` < `nll`).

    Args:
        logits: calibrated scores of each draw.    names: the slice of each vote.
    Raises: InputError when names and votes differ in number.
    """
    if len(names) != len(votes):
        raise InputError(f"slice_calibration: found {len(names)} names for {len(votes)} votes; expected one each")
    labels, found = np.asarray(names), {}
    for name in sorted(set(names)):
        own = votes.select(torch.from_numpy(np.flatnonzero(labels == name)))

        def nll_at(temperature: float, own: VoteBatch = own) -> Tensor:
            return vote_nll(predicted_probs(logits, own, model, temperature=temperature), own)

        found[name] = slice_figures(nll_at)
    return found


def slice_figures(nll_at: Callable[[float], Float[Tensor, " C"]]) -> SliceCalibration:
    """The figures of one slice.

    Args:
        nll_at: −log P of each of its statements at a temperature relative to the model's.
    """
    plain = nll_at(1.0)
    n, nll = len(plain), float(plain.mean())
    if n < MIN_SLICE:
        return SliceCalibration(n, None, nll, None)

    def halves_at(temperature: float) -> Tensor:
        each = nll_at(temperature)
        return torch.stack([each[0::2].sum(), each[1::2].sum()])

    found = halved_temperature(halves_at, n)
    return SliceCalibration(n, found.best, nll, found.crossed_nll, found.low, found.high)


@dataclass(frozen=True)
class HalvedTemperature:
    """The temperature of some statements, and of either half of them."""

    best: float
    """At which all of them are most likely."""
    low: float
    """Lower end of its 95 % profile-likelihood interval, statements taken as independent."""
    high: float
    """Upper end of that interval."""
    of_half: tuple[float, float]
    """At which each half is most likely."""
    crossed_nll: float
    """Mean −log P of each half at the temperature of the other, nats."""


def halved_temperature(sums_at: Callable[[float], Float[Tensor, " 2"]], n: int) -> HalvedTemperature:
    """Temperatures of statements in two halves, each of which can be judged without a part in the other's.

    Args:
        sums_at: Σ −log P of either half at a temperature.    n: statements in both.
    """
    halves = along_temperature(sums_at)
    first, second = (best_temperature(lambda t, half=half: float(halves(t)[half])) for half in (0, 1))
    crossed = float(halves(first)[1] + halves(second)[0])

    def mean_nll(temperature: float) -> float:
        return float(halves(temperature).sum()) / n

    best = best_temperature(mean_nll)
    return HalvedTemperature(best, *temperature_interval(mean_nll, n, best), (first, second), crossed / n)


def along_temperature(total_at: Callable[[float], Float[Tensor, " H"]]) -> Callable[[float], np.ndarray]:
    """Sums of −log P as functions of T in [1/20, 20], from their values at few temperatures: searches then cost nothing.

        f(log T) = Σ_j w_j·f_j/(x − x_j) / Σ_j w_j/(x − x_j)        x = log T/log 20, x_j Chebyshev points of [−1, 1]

    Args:
        total_at: the sums at a temperature; a likelihood is analytic in log T.
    Source: Berrut & Trefethen 2004, SIAM Review 46(3), eq. 4.2 and 5.4.
    """
    points = np.cos(np.pi * np.arange(N_TEMPERATURES) / (N_TEMPERATURES - 1))
    signs = (-1.0) ** np.arange(N_TEMPERATURES)
    signs[[0, -1]] /= 2
    known = np.stack([total_at(math.exp(LOG_TEMPERATURE_BOUND * x)).numpy() for x in points])

    def at(temperature: float) -> np.ndarray:
        gaps = math.log(temperature) / LOG_TEMPERATURE_BOUND - points
        if (np.abs(gaps) < 1e-14).any():
            return known[np.abs(gaps).argmin()]
        return (signs / gaps) @ known / (signs / gaps).sum()

    return at


def decided_probs(probs: Float[Tensor, "C K"], votes: VoteBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability that a is preferred, given that one is; what was preferred; and which votes these are.

    Returns: p [D], outcome [D] (1 = a preferred), positions [D] of the votes that are not ties.
    """
    k = votes.n_levels
    low, high = probs[:, : k // 2].sum(1), probs[:, (k + 1) // 2 :].sum(1)
    decided = (votes.level * 2 != k - 1).nonzero().squeeze(1)
    p = (high / (high + low))[decided].numpy()
    outcome = (votes.level[decided] * 2 > k - 1).double().numpy()
    return p, outcome, decided.numpy()
