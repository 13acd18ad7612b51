"""A reward is a belief: joint draws of the scores of some responses, and the numbers an optimiser can take from it.

Comparisons fix a reward only up to a constant for each prompt, so draws of one response alone have no meaningful
spread: every spread here is that of a *difference*, to the prompt's reference responses or to another response.

Knows draws in logits. Knows nothing about the model that made them, about texts, or about votes.

Dimension letters: S draws (ensemble members or posterior samples), B responses, O objectives, P prompts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.aggregator_names import NUMBERED, aggregator_named
from karat.errors import InputError


@dataclass(frozen=True, eq=False)
class Belief:
    """Joint draws of the reward of responses that were scored together, in logits."""

    draws: Float[Tensor, "S B O"]
    """Draw s of objective o for response b; the same s belongs together across responses."""
    reference: Float[Tensor, "S P O"]
    """The same draws, averaged over the reference responses of each prompt (P = 1: one reference for all)."""
    prompt_index: Int[Tensor, "B"]
    """Row of `reference` for each response."""
    objectives: tuple[str, ...] = ("preference",)
    """Names of the objectives, in the order of the last axis; with groups of raters, the groups."""
    unit: Float[Tensor, "O"] | None = None
    """Within-prompt sd of each objective on responses fixed beforehand: a scale that they share; None = there is none."""

    def __post_init__(self) -> None:
        n_draws, n_responses, n_objectives = self.draws.shape if self.draws.ndim == 3 else (-1, -1, -1)
        fits = self.reference.ndim == 3 and (self.reference.shape[0], self.reference.shape[2]) == (
            n_draws,
            n_objectives,
        )
        if not fits or self.prompt_index.shape != (n_responses,) or len(self.objectives) != n_objectives:
            raise InputError(
                f"Belief: found draws {tuple(self.draws.shape)}, reference {tuple(self.reference.shape)}, prompt_index "
                f"{tuple(self.prompt_index.shape)}, {len(self.objectives)} objectives; expected [S, B, O], [S, P, O], [B], O"
            )

    @property
    def n_draws(self) -> int:
        """How many joint draws."""
        return self.draws.shape[0]

    @property
    def n_responses(self) -> int:
        """How many responses."""
        return self.draws.shape[1]


def to_reference(belief: Belief) -> Float[Tensor, "S B O"]:
    """Draws of the difference of each response to the mean of its prompt's reference responses."""
    return belief.draws - belief.reference[:, belief.prompt_index]


def difference(belief: Belief, i: Int[Tensor, "C"], j: Int[Tensor, "C"], *, objective: int = 0) -> Float[Tensor, "S C"]:
    """Draws of the difference of response i to response j, which must answer the same prompt to mean anything.

    Raises: InputError when the two of a pair belong to different prompts (where there is more than one reference row).
    """
    if bool((belief.prompt_index[i] != belief.prompt_index[j]).any()):
        raise InputError("difference: found pairs across prompts; expected both responses to answer the same prompt")
    return belief.draws[:, i, objective] - belief.draws[:, j, objective]


def win_prob(belief: Belief, i: Int[Tensor, "C"], j: Int[Tensor, "C"], *, objective: int = 0) -> Float[Tensor, "C"]:
    """Probability that i beats j in a vote without ties: the mean over draws of σ(Δ)."""
    return torch.sigmoid(difference(belief, i, j, objective=objective)).mean(0)


def mean_score(belief: Belief, *, objective: int = 0) -> Float[Tensor, "B"]:
    """The mean over draws, in logits, not relative to the reference: equal to the score of the saved mean head.

    A mean is linear, so the reference would only shift all responses to one prompt by one constant.
    """
    return belief.draws[..., objective].mean(0)


def lower_bound(
    belief: Belief, *, quantile: float | None = 0.1, n_sd: float | int | None = None, objective: int = 0
) -> Float[Tensor, "B"]:
    """Lower bound of the difference to the reference: a quantile over draws, or mean − n_sd · sd.

    Args:
        quantile: in (0, 1), linearly interpolated over the draws.    n_sd: ≥ 0; given, it replaces the quantile.
    Raises: InputError for fewer than two draws, or a quantile outside (0, 1).
    """
    if n_sd is not None:
        return mean_minus_sd(belief, n_sd=n_sd, objective=objective)
    if quantile is None or not 0 < quantile < 1:
        raise InputError(f"lower_bound: found quantile {quantile}; expected a number in (0, 1), or n_sd")
    _two_draws(belief, "lower_bound")
    return torch.quantile(to_reference(belief)[..., objective], quantile, dim=0)


def mean_minus_sd(belief: Belief, *, n_sd: float | int = 1.0, objective: int = 0) -> Float[Tensor, "B"]:
    """Mean − n_sd · sd over draws of the difference to the reference; the sd has S − 1 in the denominator.

    Source: Coste et al. 2023, arXiv:2310.02743 (UWO, uncertainty-weighted optimisation).
    Differs: sd instead of variance, so that it has the unit of a score; of a difference, so that it means something.
    """
    relative = to_reference(belief)[..., objective]
    return relative.mean(0) - n_sd * disagreement(belief, objective=objective)


def worst_member(belief: Belief, *, objective: int = 0) -> Float[Tensor, "B"]:
    """The smallest difference to the reference among the draws.

    Source: Coste et al. 2023, arXiv:2310.02743 (WCO, worst-case optimisation).
    Differs: each member is measured from its own reference first, because members differ by arbitrary constants.
    """
    return to_reference(belief)[..., objective].amin(0)


def weighted_objectives(belief: Belief, *, weights: Sequence[float] | None = None) -> Float[Tensor, "B"]:
    """Σ_o w_o · mean over draws of objective o, in logits, not relative to the reference.

    Args:
        weights: one for each objective; None = equal weights that sum to 1.
    Raises: InputError when the count does not fit.
    """
    n_objectives = belief.draws.shape[2]
    weights = [1 / n_objectives] * n_objectives if weights is None else list(weights)
    if len(weights) != n_objectives:
        raise InputError(f"weighted_objectives: found {len(weights)} weights; expected {n_objectives}")
    return belief.draws.mean(0) @ torch.tensor(weights, dtype=belief.draws.dtype, device=belief.draws.device)


def worst_group(belief: Belief) -> Float[Tensor, "B"]:
    """The smallest over objectives (one a group of raters) of the mean difference to the reference.

    Source: Chakraborty et al. 2024, arXiv:2402.08925 (MaxMin-RLHF), the inner minimum, taken response by response.
    """
    return to_reference(belief).mean(0).amin(-1)


def jury_median(belief: Belief) -> Float[Tensor, "B"]:
    """The median over objectives (one a juror) of each one's mean, all brought to one scale.

        z_jb = (m_jb − m̄_j,ref(b)) / s_j        s_j = belief.unit, m the mean over draws

    A juror who uses larger numbers than the others has no more weight than they, and one who likes everything about a
    prompt moves nothing. Zero and unit come from responses fixed beforehand, so that a response's score does not depend
    on what is scored beside it. An even jury's median is the mean of its two middle members; a single juror is heard as
    she is.

    Raises: InputError for several jurors without a common scale, or with one that is not positive.
    Source: Gordon et al. 2022, arXiv:2202.02950 (jury learning), the median over jurors.
    """
    relative = to_reference(belief).mean(0)
    if belief.unit is None:
        if len(belief.objectives) > 1:
            raise InputError(
                f"jury_median: found {len(belief.objectives)} jurors without a common scale; expected people "
                "(pluralism.enabled), or a unit for each"
            )
        return relative[:, 0]
    flat = [name for name, one in zip(belief.objectives, belief.unit.tolist(), strict=True) if not one > 0]
    if flat:
        raise InputError(
            f"jury_median: {', '.join(flat)} score every response of a prompt alike; expected them to differ"
        )
    return torch.quantile(relative / belief.unit.to(relative), 0.5, dim=-1)


def joined(beliefs: Sequence[Belief]) -> Belief:
    """Several beliefs about the same responses as one: their draws side by side, each with its own reference.

    Raises: InputError for none, or beliefs about other responses or objectives.
    """
    if not beliefs or any(
        one.objectives != beliefs[0].objectives or not torch.equal(one.prompt_index, beliefs[0].prompt_index)
        for one in beliefs
    ):
        raise InputError(
            f"joined: found {len(beliefs)} beliefs that differ in responses or objectives; expected the same in all"
        )
    first = beliefs[0]
    draws, reference = (torch.cat([getattr(one, name) for one in beliefs]) for name in ("draws", "reference"))
    return Belief(draws, reference, first.prompt_index, first.objectives, first.unit)


def constrained(
    belief: Belief, *, objective: int = 0, floors: Mapping[int, float], multiplier: float
) -> Float[Tensor, "B"]:
    """One objective, less a penalty where others fall below their floor: m_o − λ · Σ_j max(0, floor_j − m_j).

    Args:
        floors: objective → lowest acceptable mean difference to the reference.    multiplier: λ ≥ 0.
    """
    relative = to_reference(belief).mean(0)
    shortfall = sum(((floor - relative[:, j]).clamp_min(0) for j, floor in floors.items()), torch.zeros(()))
    return relative[:, objective] - multiplier * shortfall


def disagreement(belief: Belief, *, objective: int = 0) -> Float[Tensor, "B"]:
    """Standard deviation over draws (denominator S − 1) of the difference to the reference.

    Raises: InputError for fewer than two draws: one draw has no spread, which is not a spread of 0.
    """
    _two_draws(belief, "disagreement")
    return to_reference(belief)[..., objective].std(0)


AGGREGATORS: dict[str, Callable[..., Tensor]] = {
    "mean_score": mean_score,
    "lower_bound": lower_bound,
    "mean_minus_sd": mean_minus_sd,
    "worst_member": worst_member,
    "worst_group": worst_group,
    "weighted_objectives": weighted_objectives,
    "jury_median": jury_median,
}
"""The aggregators that need no argument besides the belief, by the name that a manifest records."""


def aggregator_of(name: str) -> Callable[[Belief], Tensor]:
    """The aggregator that a configuration names: one of `AGGREGATORS`, with its number after a colon where it takes one.

    `mean_minus_sd:2` is the mean less two sd, `lower_bound:0.05` the 5 % quantile; without a number both keep their own.

    Raises: ConfigError as `aggregator_named`.
    """
    base, number = aggregator_named(name)
    return AGGREGATORS[base] if number is None else functools.partial(AGGREGATORS[base], **{NUMBERED[base]: number})


@dataclass(frozen=True)
class ScoreScale:
    """The optimiser's scale: it sees (aggregate − shift) / scale; likelihoods and probabilities never do."""

    shift: float
    """Mean of the aggregate on reference responses."""
    scale: float
    """Pooled within-prompt standard deviation of the aggregate on reference responses, > 0."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shift) and math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"ScoreScale: found shift {self.shift}, scale {self.scale}; expected finite, scale > 0")


def fit_scale(aggregate: Float[Tensor, "B"], prompt_index: Int[Tensor, "B"]) -> ScoreScale:
    """Shift and scale from reference responses.

        scale² = Σ_p Σ_{i ∈ p} (x_i − x̄_p)² / Σ_p (n_p − 1)

    Args:
        aggregate: one aggregated score for each reference response.    prompt_index: which prompt it answers.
    Raises: InputError when no prompt has two responses, or the responses to a prompt never differ: a scale of 0 would
        turn into a division by it.
    """
    if aggregate.ndim != 1 or aggregate.shape != prompt_index.shape:
        raise InputError(
            f"fit_scale: found {tuple(aggregate.shape)} and {tuple(prompt_index.shape)}; expected [B], [B]"
        )
    values = aggregate.detach().double()
    _, group = prompt_index.unique(return_inverse=True)
    counts = torch.bincount(group).double()
    n_free = float((counts - 1).sum())
    if n_free < 1:
        raise InputError(
            f"fit_scale: found {values.shape[0]} responses to as many prompts; expected a prompt with two or more"
        )
    means = torch.zeros_like(counts).index_add_(0, group, values) / counts
    scale = math.sqrt(float((values - means[group]).square().sum()) / n_free)
    if scale <= 1e-12 * max(1.0, float(values.abs().max())):
        raise InputError(
            "fit_scale: the responses to each prompt all have the same score; expected them to differ: give "
            "responses that are not the same text, or a reward that was trained on such"
        )
    return ScoreScale(shift=float(values.mean()), scale=scale)


def training_scale(aggregate: Float[Tensor, "B"], prompt_index: Int[Tensor, "B"]) -> ScoreScale:
    """The scale of training responses: within prompts as `fit_scale`, over all responses where no prompt has two.

    The spread over prompts holds what differs between prompts too; it serves until a policy's samples give the other.

    Raises: InputError as `fit_scale`; and for a single response.
    """
    if prompt_index.unique().numel() == prompt_index.numel():
        return fit_scale(aggregate, torch.zeros_like(prompt_index))
    return fit_scale(aggregate, prompt_index)


def apply_scale(aggregate: Float[Tensor, "B"], scale: ScoreScale) -> Float[Tensor, "B"]:
    """(aggregate − shift) / scale."""
    return (aggregate - scale.shift) / scale.scale


def _two_draws(belief: Belief, caller: str) -> None:
    if belief.n_draws < 2:
        raise InputError(
            f"{caller}: found {belief.n_draws} draw; expected at least 2 (members of an ensemble) for a spread"
        )
