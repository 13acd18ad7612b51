"""One response at a time: ratings and good/bad labels, and the ordinal link that they share with comparisons.

Knows scores in logits, levels and cutpoints. Knows nothing about pairs, side bias or lapses (`karat.choice`).

Dimension letters: C ratings or labels, A annotators, K levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from karat.errors import InputError


@dataclass(frozen=True, eq=False)
class RatingParams:
    """What the ratings of each rater depend on, apart from the response."""

    offset: Float[Tensor, "A"]
    """Added to every rating: in rating units (Gaussian) or logits (ordinal)."""
    gain: Float[Tensor, "A"]
    """Rating units (or logits) for one logit of score."""
    sd: Float[Tensor, "A"]
    """Noise of the Gaussian rating, in rating units, > 0; the ordinal rating does not read it."""
    cutpoints: Float[Tensor, "thresholds"] | None = None
    """Ascending thresholds of the ordinal rating; None = ratings are Gaussian."""


def symmetric_cutpoints(raw: Float[Tensor, "half"], n_levels: int) -> Float[Tensor, "thresholds"]:
    """Ascending cutpoints with c_k = −c_{K−k} from unconstrained numbers.

        positive half: c_j = Σ_{i ≤ j} softplus(rawᵢ);        K even: a 0 in the middle, K = 2: just 0

    Args:
        raw: (K − 1)//2 real numbers, innermost first.    n_levels: K ≥ 2.
    Raises: InputError when the count does not fit.
    """
    if n_levels < 2 or raw.shape != ((n_levels - 1) // 2,):
        raise InputError(
            f"symmetric_cutpoints: found {tuple(raw.shape)} numbers for {n_levels} levels; "
            f"expected ({(n_levels - 1) // 2},) and at least 2 levels"
        )
    positive = functional.softplus(raw).cumsum(0)
    middle = raw.new_zeros(1 if n_levels % 2 == 0 else 0)
    return torch.cat([-positive.flip(0), middle, positive])


def raw_cutpoints(cutpoints: Float[Tensor, "thresholds"]) -> Float[Tensor, "half"]:
    """The numbers from which `symmetric_cutpoints` makes these cutpoints.

    Raises: InputError unless they ascend and are antisymmetric to 1e-6.
    """
    n_half = cutpoints.shape[0] // 2
    if not torch.allclose(cutpoints, -cutpoints.flip(0), atol=1e-6) or bool((cutpoints.diff() <= 0).any()):
        raise InputError(f"raw_cutpoints: found {cutpoints.tolist()}; expected ascending cutpoints with c_k = −c_(K−k)")
    positive = cutpoints[cutpoints.shape[0] - n_half :]
    steps = torch.diff(positive, prepend=positive.new_zeros(1))
    return steps + torch.log(-torch.expm1(-steps))


def rating_loglik(
    scores: Float[Tensor, "C"], ratings: Float[Tensor, "C"], annotator: Int[Tensor, "C"], params: RatingParams
) -> Float[Tensor, "C"]:
    """Log density of Gaussian ratings: y ~ N(o_w + g_w·r, s_w²), with r the score of the response that was rated."""
    mean = params.offset[annotator] + params.gain[annotator] * scores
    return normal_logpdf(ratings, mean, params.sd[annotator])


def sample_rating(
    scores: Float[Tensor, "C"], annotator: Int[Tensor, "C"], params: RatingParams, *, generator: torch.Generator
) -> Float[Tensor, "C"]:
    """Draw Gaussian ratings from one uniform number each, through the inverse normal distribution function."""
    uniform = torch.rand(scores.shape[0], generator=generator, dtype=torch.float64).clamp_min(2.0**-54)
    noise = torch.special.ndtri(uniform).to(scores.dtype)
    return (params.offset[annotator] + params.gain[annotator] * scores + params.sd[annotator] * noise).detach()


def censored_rating_logpdf(
    ratings: Float[Tensor, "C"], mean: Float[Tensor, "*S C"], sd: Float[Tensor, "*S C"], *, step: float = 0.0
) -> Float[Tensor, "*S C"]:
    """Log density of Gaussian ratings on the scale 0 … 1, of which an end says only that the rating is there or beyond.

        0 < y < 1: N(y; m, s²)        y = 1: P(x > 1 − step/2) = Φ((m − 1 + step/2)/s)        y = 0: Φ((step/2 − m)/s)

    A normal error at an end would say of equal ratings that the responses are equal, and very certainly so where many are.

    Args:
        step: distance of two ratings where all are whole steps of the scale, whose end is half a step wide; else 0.
    Source: Tobin 1958, Econometrica 26(1), pp. 24–36.
    """
    ratings, half = ratings.to(mean), step / 2
    low, high = ratings <= 0, ratings >= 1
    at_end = torch.where(high, mean - 1 + half, half - mean) / sd
    # a branch that is not taken must still have a finite slope
    beyond = torch.special.log_ndtr(torch.where(low | high, at_end, torch.zeros_like(at_end)))
    return torch.where(low | high, beyond, normal_logpdf(ratings, mean, sd))


def censored_precision(
    ratings: Float[Tensor, "C"], mean: Float[Tensor, "*S C"], sd: Float[Tensor, "*S C"], *, step: float = 0.0
) -> Float[Tensor, "*S C"]:
    """How much such a rating says of its mean beside one within the scale: s²·κ = m·(m + t) at an end, m = φ(t)/Φ(t); else 1."""
    half = step / 2
    t = torch.where(ratings >= 1, mean - 1 + half, half - mean) / sd
    at_end = (ratings <= 0) | (ratings >= 1)
    t = torch.where(at_end, t, torch.zeros_like(t)).double()  # m and −t differ by 1/t
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(-t / math.sqrt(2))
    return torch.where(at_end, ratio * (ratio + t), torch.ones_like(t)).to(mean)


def censored_to_scale(ratings: Float[Tensor, "C"], *, step: float = 0.0) -> Float[Tensor, "C"]:
    """Ratings as they are given on the scale 0 … 1: what lies beyond an end, or within half a step of it, is the end."""
    ratings = torch.where(ratings >= 1 - step / 2, torch.ones_like(ratings), ratings)
    return torch.where(ratings <= step / 2, torch.zeros_like(ratings), ratings)


def ordinal_rating_loglik(
    scores: Float[Tensor, "C"], level: Int[Tensor, "C"], annotator: Int[Tensor, "C"], params: RatingParams
) -> Float[Tensor, "C"]:
    """Log-likelihood of ratings on a scale of K steps: P(y ≤ k) = σ(c_k − g_w·r − o_w), 0 = worst.

    Raises: InputError when the parameters have no cutpoints.
    """
    return _rating_logprobs(scores, annotator, params).gather(-1, level.unsqueeze(-1)).squeeze(-1)


def sample_ordinal_rating(
    scores: Float[Tensor, "C"], annotator: Int[Tensor, "C"], params: RatingParams, *, generator: torch.Generator
) -> Int[Tensor, "C"]:
    """Draw ratings on a scale of K steps from one uniform number each."""
    return draw_level(_rating_logprobs(scores, annotator, params), generator)


def label_loglik(
    scores: Float[Tensor, "C"], good: Bool[Tensor, "C"], annotator: Int[Tensor, "C"], threshold: Float[Tensor, "A"]
) -> Float[Tensor, "C"]:
    """Log-likelihood of good/bad labels: P(good) = σ(r − t_w), with the rater's own threshold."""
    margin = scores - threshold[annotator]
    return functional.logsigmoid(torch.where(good, margin, -margin))


def sample_label(
    scores: Float[Tensor, "C"],
    annotator: Int[Tensor, "C"],
    threshold: Float[Tensor, "A"],
    *,
    generator: torch.Generator,
) -> Bool[Tensor, "C"]:
    """Draw good/bad labels from one uniform number each."""
    uniform = torch.rand(scores.shape[0], generator=generator, dtype=torch.float64)
    return uniform < torch.sigmoid((scores - threshold[annotator]).double())


def ordinal_logprobs(eta: Float[Tensor, "*C"], cutpoints: Float[Tensor, "thresholds"]) -> Float[Tensor, "*C K"]:
    """log P(y = k) of the cumulative logit.

        σ(u) − σ(l) = σ(u)·σ(−l)·(1 − e^{−(u − l)})

    The difference of two nearly equal probabilities never occurs, and the last factor does not depend on η.
    """
    upper = functional.logsigmoid(cutpoints - eta.unsqueeze(-1))
    lower = functional.logsigmoid(eta.unsqueeze(-1) - cutpoints)
    log_gap = functional.pad(_log1mexp(cutpoints.diff()), (1, 1))
    return functional.pad(upper, (0, 1)) + functional.pad(lower, (1, 0)) + log_gap


def ordinal_probs(eta: Float[Tensor, "*C"], cutpoints: Float[Tensor, "thresholds"]) -> Float[Tensor, "*C K"]:
    """P(y = k) of the cumulative logit, by the same product: as exact as `ordinal_logprobs` down to the smallest number."""
    upper = torch.sigmoid(cutpoints - eta.unsqueeze(-1))
    lower = torch.sigmoid(eta.unsqueeze(-1) - cutpoints)
    gap = functional.pad(-torch.expm1(-cutpoints.diff()), (1, 1), value=1.0)
    return functional.pad(upper, (0, 1), value=1.0) * functional.pad(lower, (1, 0), value=1.0) * gap


def _log1mexp(gap: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """log(1 − e^{−x}) for x > 0. Source: Mächler 2012, "Accurately computing log(1 − exp(−|a|))"."""
    small = gap < math.log(2)
    near = torch.log(-torch.expm1(-torch.where(small, gap, 0.5)))
    far = torch.log1p(-torch.exp(-torch.where(small, 1.0, gap)))
    return torch.where(small, near, far)


def normal_logpdf(value: Tensor, mean: Tensor | float, sd: Tensor | float) -> Tensor:
    """Log density of a normal distribution."""
    log_sd = sd.log() if isinstance(sd, Tensor) else math.log(sd)
    return -0.5 * ((value - mean) / sd).square() - log_sd - 0.5 * math.log(2 * math.pi)


def draw_level(logprobs: Float[Tensor, "C K"], generator: torch.Generator) -> Int[Tensor, "C"]:
    """Draw a level for each row of log-probabilities by inverting the distribution function, one uniform a row."""
    upper = logprobs.detach().double().exp().cumsum(-1)
    uniform = torch.rand(logprobs.shape[0], generator=generator, dtype=torch.float64)
    return (uniform.unsqueeze(-1) * upper[:, -1:] >= upper[:, :-1]).sum(-1)


def _rating_logprobs(scores: Tensor, annotator: Tensor, params: RatingParams) -> Tensor:
    if params.cutpoints is None:
        raise InputError("ordinal rating: RatingParams.cutpoints is None; give the thresholds or use rating_loglik")
    return ordinal_logprobs(params.gain[annotator] * scores + params.offset[annotator], params.cutpoints)
