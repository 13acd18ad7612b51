"""Choices among three and more: the likelihood of a ranking, of one with ties, of a best-of-k, and draws from them.

Knows scores and orders. Knows nothing about raters, texts, or how scores come about. A choice between two responses
is not a ranking here: it goes through the ordinal link of `karat.choice`, so that a tie between two has one model only.

Dimension letters: B rankings, K candidates of one ranking. Masks: True = the candidate takes part.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from karat.errors import InputError, MaskError

ABSENT = -1e30
"""Log-weight of a candidate that takes no part: finite, because two −inf make a gradient of NaN."""
MOST_TIED_CANDIDATES = 10
"""Sampling with ties lists the 2^K − 1 subsets that can come next."""


def plackett_luce_loglik(
    scores: Float[Tensor, "B K"], order: Int[Tensor, "B K"], mask: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, "B"]:
    """Log-likelihood of complete rankings without ties.

        log P(σ) = Σₖ ( r_σ(k) − log Σ_{j ≥ k} exp r_σ(j) )

    Args:
        scores: in logits; only their differences within a row matter.
        order: candidate indices, best first: each row a permutation of 0 … K − 1; where masked ones stand is no matter.
        mask: candidates (not positions) that were ranked; None = all.
    Returns: one log-likelihood a row; 0 where only one candidate counts.
    Raises: InputError when a row of `order` is not a permutation; MaskError when a row counts no candidate.
    Source: Plackett 1975, Applied Statistics 24(2), pp. 193–202; Luce 1959.
    """
    mask = _checked_mask("plackett_luce_loglik", scores, mask)
    if order.shape != scores.shape or not bool((order.sort(-1).values == _positions(scores)).all()):
        raise InputError(
            f"plackett_luce_loglik: order of shape {tuple(order.shape)} for scores {tuple(scores.shape)}; "
            "expected each row to be a permutation of 0 … K − 1, best first"
        )
    ordered_mask = mask.gather(-1, order)
    ordered = torch.where(ordered_mask, scores.gather(-1, order), torch.full_like(scores, ABSENT))
    remaining = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    return torch.where(ordered_mask, ordered - remaining, torch.zeros_like(ordered)).sum(-1)


def best_of_loglik(
    scores: Float[Tensor, "B K"], best: Int[Tensor, "B"], mask: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, "B"]:
    """Log-likelihood that one candidate was named the best: log softmax(r)[best].

    Args:
        scores: in logits.    best: index of the chosen candidate.    mask: candidates on offer; None = all.
    Raises: InputError when the chosen candidate does not count.
    Source: Luce 1959, choice axiom; equals the first stage of Plackett–Luce.
    """
    mask = _checked_mask("best_of_loglik", scores, mask)
    chosen = best.unsqueeze(-1)
    if not bool(mask.gather(-1, chosen).all()):
        raise InputError("best_of_loglik: a chosen candidate is masked; expected the choice among those that count")
    return torch.where(mask, scores, torch.full_like(scores, ABSENT)).log_softmax(-1).gather(-1, chosen).squeeze(-1)


def davidson_luce_loglik(
    scores: Float[Tensor, "B K"],
    ranks: Int[Tensor, "B K"],
    log_tie: Float[Tensor, "M"],
    mask: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B"]:
    """Log-likelihood of rankings in which candidates may tie.

        P(S next | A left) = w(S) / Σ_{T ⊆ A} w(T)        w(S) = δ_|S| · (Π_{i ∈ S} exp rᵢ)^{1/|S|}        δ₁ = 1

    Candidates leave in the order of their ranks, those of equal rank together. The sum over subsets of one size m is
    the elementary symmetric polynomial of degree m in exp(rᵢ/m), built candidate by candidate in log-space.

    Args:
        scores: in logits.    ranks: 1 = best, equal = tied; gaps are allowed (1, 1, 3).
        log_tie: log δ₂ … log δ_{M+1}: how prone raters are to ties of 2 … M + 1; larger ties have probability 0.
        mask: candidates that were ranked; None = all.
    Raises: InputError for a tie larger than M + 1 and for rows of two candidates (they take the ordinal link).
    Source: Firth, Kosmidis & Turner 2019, arXiv:1909.07123.
    """
    mask = _checked_mask("davidson_luce_loglik", scores, mask)
    n_counted = mask.sum(-1)
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    if ranks.shape != scores.shape:
        raise InputError(f"davidson_luce_loglik: ranks {tuple(ranks.shape)} for scores {tuple(scores.shape)}")
    if bool((n_counted == 2).any()):
        raise InputError("davidson_luce_loglik: found a row of 2 candidates; expected ≥ 3, use comparison_loglik for 2")
    # stage s of a row: the candidates that hold rank s in the dense ranking leave together
    same = (ranks.unsqueeze(-1) == ranks.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)  # [B, K, K]
    left = (ranks.unsqueeze(-1) <= ranks.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)  # [B, K leader, K]
    earlier_twin = torch.tril(same, diagonal=-1).any(-1)
    leader = mask & ~earlier_twin  # one stage for each group of tied candidates: that of its first member
    n_tied = same.sum(-1)
    largest = log_tie.shape[0] + 1
    if bool((n_tied > largest).any()):
        raise InputError(
            f"davidson_luce_loglik: found a tie of {int(n_tied.max())} candidates; log_tie of length "
            f"{log_tie.shape[0]} allows ties of at most {largest}; give one more parameter for each larger tie"
        )
    log_delta = torch.cat([log_tie.new_zeros(1), log_tie])
    tied_mean = (same * scores.unsqueeze(-2)).sum(-1) / n_tied.clamp_min(1)
    numerator = log_delta[(n_tied - 1).clamp_min(0)] + tied_mean
    # a row that is no stage still gets candidates, so that no −inf enters the graph
    denominator = _log_subset_sum(scores, torch.where(leader.unsqueeze(-1), left, True), log_delta)
    return torch.where(leader, numerator - denominator, torch.zeros_like(numerator)).sum(-1)


def sample_plackett_luce(
    scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"] | None = None, *, generator: torch.Generator
) -> Int[Tensor, "B K"]:
    """Draw an order, best first, for each row from one uniform number; candidates that do not count come last.

    Stage by stage the uniform number picks the next candidate and is stretched back over [0, 1): 53 bits are enough
    for the 15 that an order of 8 candidates takes.
    """
    mask = _checked_mask("sample_plackett_luce", scores, mask)
    weights = torch.where(mask, scores.detach().double(), torch.full_like(scores, ABSENT, dtype=torch.float64))
    n_rows, n_candidates = scores.shape
    uniform = torch.rand(n_rows, generator=generator, dtype=torch.float64)
    rows = torch.arange(n_rows)
    stages = []
    for _ in range(n_candidates):
        chosen, uniform = _pick(weights.softmax(-1), uniform)
        stages.append(chosen)
        weights[rows, chosen] += 3 * ABSENT  # below those that never counted, which thereby come last
    return torch.stack(stages, dim=-1)


def sample_best_of(
    scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"] | None = None, *, generator: torch.Generator
) -> Int[Tensor, "B"]:
    """Draw the candidate named best for each row, from one uniform number each."""
    mask = _checked_mask("sample_best_of", scores, mask)
    probs = torch.where(mask, scores.detach().double(), -torch.inf).softmax(-1)
    return _pick(probs, torch.rand(scores.shape[0], generator=generator, dtype=torch.float64))[0]


def sample_davidson_luce(
    scores: Float[Tensor, "B K"], log_tie: Float[Tensor, "M"], *, generator: torch.Generator
) -> Int[Tensor, "B K"]:
    """Draw ranks (1 = best, equal = tied, dense) for each row from one uniform number each; every candidate counts.

    Raises: InputError for two candidates (ordinal link) and for more than 10, whose subsets would be too many to list.
    """
    n_rows, n_candidates = scores.shape
    if not 3 <= n_candidates <= MOST_TIED_CANDIDATES:
        raise InputError(
            f"sample_davidson_luce: found {n_candidates} candidates; expected 3 … {MOST_TIED_CANDIDATES} "
            "(two take sample_comparison)"
        )
    log_delta = torch.cat([log_tie.new_zeros(1), log_tie]).detach().double()
    largest = min(log_delta.shape[0], n_candidates)
    sizes = range(1, largest + 1)
    subsets = [subset for size in sizes for subset in itertools.combinations(range(n_candidates), size)]
    member = torch.zeros(len(subsets), n_candidates, dtype=torch.bool)
    for row, subset in enumerate(subsets):
        member[row, list(subset)] = True
    size = member.sum(-1)
    log_weight = scores.detach().double() @ member.double().T / size + log_delta[size - 1]
    uniform = torch.rand(n_rows, generator=generator, dtype=torch.float64)
    ranks = torch.zeros(n_rows, n_candidates, dtype=torch.long)
    for rank in range(1, n_candidates + 1):
        open_rows = (ranks == 0).any(-1)
        taken = ((ranks != 0).double() @ member.double().T) > 0
        taken[~open_rows] = False  # rows that are complete draw into the void
        chosen, uniform = _pick(log_weight.masked_fill(taken, -torch.inf).softmax(-1), uniform)
        ranks[member[chosen] & open_rows.unsqueeze(-1)] = rank
    return ranks


def _log_subset_sum(
    scores: Float[Tensor, "B K"], left: Bool[Tensor, "B G K"], log_delta: Float[Tensor, "D"]
) -> Float[Tensor, "B G"]:
    """log Σ over the non-empty subsets T of the candidates left, |T| ≤ D, of δ_|T|·(Π exp r)^{1/|T|}."""
    n_rows, n_stages, n_candidates = left.shape
    largest = min(log_delta.shape[0], n_candidates)
    sizes = torch.arange(1, largest + 1, device=scores.device)
    scaled = scores.unsqueeze(-1) / sizes  # [B, K, D]: the polynomial of degree m lives in exp(r/m)
    # polynomial[..., m, d]: log of the degree-d polynomial of the candidates seen so far, in the variables of size m
    start = torch.full((largest + 1,), ABSENT, dtype=scores.dtype, device=scores.device)
    start[0] = 0
    polynomial = start.expand(n_rows, n_stages, largest, largest + 1)
    for k in range(n_candidates):
        term = polynomial[..., :-1] + scaled[:, k].reshape(n_rows, 1, largest, 1)
        # not logaddexp, whose second derivative at ABSENT is NaN
        sums = torch.stack([polynomial[..., 1:], term]).logsumexp(0)
        grown = torch.cat([polynomial[..., :1], sums], dim=-1)
        polynomial = torch.where(left[:, :, k].reshape(n_rows, n_stages, 1, 1), grown, polynomial)
    diagonal = polynomial[..., 1:].diagonal(dim1=-2, dim2=-1)  # degree m in the variables of size m
    return torch.logsumexp(diagonal + log_delta[:largest], dim=-1)


def _pick(probs: Float[Tensor, "B K"], uniform: Float[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """The entry into which each uniform number falls, and where inside it, as a new number in [0, 1)."""
    upper = probs.cumsum(-1)
    # the last entry with any probability takes what rounding leaves above the sum
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).long().argmax(-1)
    chosen = torch.minimum((uniform.unsqueeze(-1) >= upper).sum(-1), last).unsqueeze(-1)
    width = probs.gather(-1, chosen).squeeze(-1)
    lower = upper.gather(-1, chosen).squeeze(-1) - width
    return chosen.squeeze(-1), ((uniform - lower) / width).clamp(0.0, 1.0 - 2.0**-53)


def _positions(scores: Float[Tensor, "B K"]) -> Int[Tensor, "K"]:
    return torch.arange(scores.shape[-1], device=scores.device)


def _checked_mask(caller: str, scores: Tensor, mask: Tensor | None) -> Tensor:
    if scores.ndim != 2:
        raise InputError(f"{caller}: found scores of shape {tuple(scores.shape)}; expected [rankings, candidates]")
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != scores.shape:
        raise MaskError(
            f"{caller}: found a mask of {mask.dtype} {tuple(mask.shape)}; expected bool {tuple(scores.shape)}"
        )
    if not bool(mask.any(-1).all()):
        raise MaskError(f"{caller}: a row counts no candidate; expected at least one")
    return mask
