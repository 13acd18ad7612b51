"""A trained reward model whose heads become draws of a Bayesian last layer.

The trunk's features are taken as they are; the posterior of the head is fitted to all that was trained on, of whatever kind, by
turns with the raters' parameters, and its draws take the place of the heads. Everything downstream (scorer, card,
mean head as an ordinary classifier) stays as it is. Knows a trained model and what was said; knows nothing about splits.

Dimension letters: S draws, N texts, C comparisons, d features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from karat.choice import RaterParams, VoteBatch
from karat.errors import CheckpointError, ConfigError
from karat.feedback_columns import FeedbackBatch, FeedbackParams, RankBatch
from karat.records import Estimate, Finding, Prompt, Response
from karat.reward.block_layer import block_scales
from karat.reward.calibration import VoteModel
from karat.reward.channel_answers import batch_answers, is_plain, needs_level
from karat.reward.contributions import contributions
from karat.reward.data import FeedbackData, feedback_data
from karat.reward.last_layer import LastLayer, comparison_observations
from karat.reward.layer_turns import fit_by_turns
from karat.reward.model import RewardModel, log_lengths
from karat.reward.prediction import fit_feedback_temperature, held_out_nll
from karat.reward.sampled_layer import MIXED, sample_population
from karat.reward.settings import RewardConfig
from karat.reward.side import SideFeatures, side_features, side_reward
from karat.reward.tastes import fit_population
from karat.reward.train import RewardFit, response_scale
from karat.reward.trunk import micro_batches
from karat.seeding import numpy_generator
from karat.statements import Statement

LAST_LAYER = "last_layer.safetensors"
SAMPLED_UP_TO = 5_000
"""Comparisons up to which raters who differ are drawn with the weights; beyond, that takes minutes and moments serve."""
MOST_EFFECTS = 3_000
"""Training texts that may have effects of their own."""
AVERAGED_UP_TO = 20_000
"""Comparisons up to which slopes and curvatures are averaged over the posterior; beyond, it is narrow and costs more."""


CHOICES_AVERAGED_UP_TO = 2_000
"""Rankings and choices of the best up to which that is so: each is averaged over some 30 points."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """Statements with the features of their texts."""

    data: FeedbackData
    phi: np.ndarray

    @property
    def batch(self) -> FeedbackBatch:
        return self.data.batch

    def beside(self, side: SideFeatures | None) -> _Seen:
        """The same with the side features' columns behind the others."""
        if side is None:
            return self
        read = side.of(self.data.prompts, self.data.texts)
        return dataclasses.replace(self, phi=np.concatenate([self.phi, read], axis=1))


def bayesian_fit(
    fit: RewardFit,
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
) -> tuple[RewardFit, LastLayer]:
    """The same model with draws of the last layer's posterior as its heads, and the posterior itself, in logits.

    Args:
        fit: a trained model, with what it was trained on and what was held out; its trunk is not changed.
    Returns: temperature, reference, scale, rater parameters, contributions and held-out likelihood are those of the new
        heads. Parameters of kinds that speak of single responses are for scores measured from each draw's own mean over
        the training responses: where a draw has its zero is not known, and nobody's preference.
    Raises: ConfigError for several objectives; PosteriorError for a posterior that is not positive definite.
    """
    model, settings = fit.model, config.laplace
    if len(getattr(model, "objectives", ("preference",))) > 1:
        raise ConfigError(
            "reward.posterior: found several objectives with laplace; expected heads or ensemble for them"
        )
    assert fit.params is not None
    # 1. features, once
    seen = _features(model, fit.said, prompts, responses, config)
    level, own_width = needs_level(seen.batch), seen.phi.shape[1]
    side, effects = _further(seen, fit.params, config)
    seen = seen.beside(side)
    width = seen.phi.shape[1]
    phi = np.concatenate([seen.phi, effects], axis=1)
    # 2. head and raters by turns
    start = np.concatenate([_whole_weight(model), np.zeros(phi.shape[1] - own_width)])
    turned = fit_by_turns(
        _from_zero(phi, phi, level=level), seen.batch, fit.params, config.raters, n_people=len(fit.annotators),
        start=start, n_turns=settings.n_turns, prior_precision=settings.prior_precision,
        averaged=_averaged(seen.batch) and not _with_tastes(seen.batch, fit, config),
    )  # fmt: skip
    params = turned.params
    raters = _of_people(params, fit)
    # 3. draws as heads; effects of training texts are integrated out
    posterior = _without_effects(turned.posterior, width)
    population = _of_population(posterior, seen, effects, raters, fit, config, seed)
    posterior, drawn = population.posterior, population.draws
    heads = _with_heads(model, torch.from_numpy(drawn[:, :own_width]).float())
    vote_model = VoteModel(config.raters, tuple(raters.cutpoints.tolist()))
    # 4. temperature, reference and scale
    metrics = dict(fit.metrics) | {
        "prior_precision": posterior.prior_precision, "log_evidence": posterior.log_evidence,
        "n_effective": posterior.n_effective,
    } | population.figures  # fmt: skip
    held, held_raw = None, None
    if fit.held_out:
        held = _features(model, fit.held_out, prompts, responses, config, objectives=model.objectives).beside(side)
        held_raw = torch.from_numpy(drawn @ _from_zero(held.phi, seen.phi, level=level).T).unsqueeze(-1)
        metrics |= _warmed(heads, held_raw, held.data, params, config)
    temperature = float(heads.temperature)
    raw = torch.from_numpy(drawn @ _from_zero(seen.phi, seen.phi, level=level).T).unsqueeze(-1)
    logits = torch.from_numpy(drawn @ seen.phi.T).float() / temperature
    reference = logits.mean(1)
    found = contributions(
        seen.data, raw, params, config.raters, held=None if held is None else held.data, held_raw=held_raw,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    fitted = dataclasses.replace(
        fit, model=heads, raters=raters, params=params, vote_model=vote_model, metrics=metrics,
        contributions=tuple(found), scale=response_scale(logits.mean(0), seen.data.groups),
        reference=reference if fit.reference.ndim == 1 else reference.unsqueeze(-1),
        findings=[*fit.findings, _finding(posterior, seen.phi.shape[1], len(seen.batch)), *population.findings,
                  *_about_side(side, len(seen.batch))],
        side=None if side is None else side_reward(side, drawn[:, own_width:]),
        zero=torch.from_numpy(drawn @ seen.phi.mean(0)).float() if level else None,
    )  # fmt: skip
    return fitted, cooled_layer(posterior, temperature)


def _from_zero(phi: np.ndarray, training: np.ndarray, *, level: bool) -> np.ndarray:
    """Features measured from their training mean, where something speaks of single responses."""
    return phi - training.mean(0) if level else phi


def _averaged(batch: FeedbackBatch) -> bool:
    """Whether slopes and curvatures are averaged over the posterior."""
    n_choices = sum(len(channel) for channel in batch.channels if isinstance(channel.columns, RankBatch))
    return len(batch) <= AVERAGED_UP_TO and n_choices <= CHOICES_AVERAGED_UP_TO


def _of_people(params: FeedbackParams, fit: RewardFit) -> RaterParams:
    """The raters who are people, with the cutpoints of the scale that `fit` gives probabilities on."""
    n, n_levels = len(fit.annotators), fit.raters.n_levels
    cutpoints = params.cutpoints.get(f"comparison/{n_levels}", fit.raters.cutpoints)
    return RaterParams(params.competence[:n], params.side_bias[:n], params.lapse[:n], cutpoints)


def _warmed(
    heads: RewardModel, raw: Float[Tensor, "S N O"], held: FeedbackData, params: FeedbackParams, config: RewardConfig
) -> dict[str, float]:
    """Give the heads the temperature that fits held-out raters; returns it, with how likely what they said then is."""
    found = fit_feedback_temperature(raw, held.batch, params, config.raters)
    temperature = 1.0 if found is None else found
    heads.temperature.fill_(temperature)
    nll = held_out_nll(raw, held.batch, params, config.raters, n_judgements=held.n_judgements, temperature=temperature)
    return {"temperature": temperature, "held_out_nll": nll}


@dataclass(frozen=True, eq=False)
class _Population:
    """What raters who differ make of a posterior of one taste."""

    posterior: LastLayer
    """Of the population's mean taste."""
    draws: np.ndarray
    """[S, d], with the posterior's mean."""
    figures: dict[str, float]
    """Spreads of the raters, and whether chains agree where there are some."""
    findings: tuple[Finding, ...] = ()


def _with_tastes(batch: FeedbackBatch, fit: RewardFit, config: RewardConfig) -> bool:
    """Whether raters who differ are drawn along: comparisons of one scale by several, not too many."""
    several = len(fit.annotators) > 1 and len(batch) <= AVERAGED_UP_TO
    return config.laplace.tastes and is_plain(batch) and several


def _of_population(
    posterior: LastLayer,
    seen: _Seen,
    effects: np.ndarray,
    raters: RaterParams,
    fit: RewardFit,
    config: RewardConfig,
    seed: int,
) -> _Population:
    """What raters who differ do to a posterior of one taste: drawn with it, by moments, or nothing."""
    settings = config.laplace
    rng = numpy_generator(seed, "reward", "last layer")
    if not _with_tastes(seen.batch, fit, config):
        none = {"taste_sd": 0.0, "competence_sd": 0.0}
        findings = (_one_taste(seen.batch),) if settings.tastes and not is_plain(seen.batch) else ()
        return _Population(posterior, posterior.draws(settings.n_draws, rng), none, findings)
    votes = seen.batch.channels[0].columns
    assert isinstance(votes, VoteBatch)
    if len(votes) > SAMPLED_UP_TO:
        width = seen.phi.shape[1]
        found = fit_population(
            np.concatenate([seen.phi, effects], axis=1), comparison_observations(votes, raters), votes.annotator.numpy(),
            prior_precision=settings.prior_precision, competence_known=not config.raters.modelled, n_taste=width,
        )  # fmt: skip
        spreads = {"taste_sd": found.taste_sd, "competence_sd": found.competence_sd}
        found_layer = _without_effects(found.posterior, width)
        return _Population(found_layer, found_layer.draws(settings.n_draws, rng), spreads)
    sampled = sample_population(
        seen.phi, votes, posterior, rng, raters=config.raters, prior_precision=settings.prior_precision,
        effect_size=float(effects[0, 0]) if effects.size else 0.0,
    )  # fmt: skip
    every = np.linspace(0, len(sampled.draws) - 1, settings.n_draws).round().astype(int)
    drawn = sampled.draws[every]
    drawn += sampled.posterior.mean - drawn.mean(0)  # few draws: their mean is to be that of all
    figures = {"taste_sd": sampled.spreads["taste_sd"], "competence_sd": sampled.spreads["competence_sd"],
               "waver_sd": sampled.spreads["waver_sd"], "rhat": sampled.rhat}  # fmt: skip
    findings = () if sampled.rhat <= MIXED else (_not_mixed(sampled.rhat, len(votes)),)
    return _Population(sampled.posterior, drawn, figures, findings)


def _without_effects(posterior: LastLayer, width: int) -> LastLayer:
    """The posterior of the first weights alone."""
    covariance = posterior.covariance[:width, :width]
    n_effective = width - posterior.prior_precision * float(np.trace(covariance))
    return dataclasses.replace(posterior, mean=posterior.mean[:width], covariance=covariance, n_effective=n_effective)


def cooled_layer(posterior: LastLayer, factor: float) -> LastLayer:
    """The posterior of weights whose logits are divided by a factor."""
    return dataclasses.replace(posterior, mean=posterior.mean / factor, covariance=posterior.covariance / factor**2)


def save_last_layer(posterior: LastLayer, directory: str | Path) -> None:
    """Write mean and covariance beside the model, in logits: what rank-1 updates start from."""
    tensors = {"mean": torch.from_numpy(posterior.mean), "covariance": torch.from_numpy(posterior.covariance)}
    tensors["figures"] = torch.tensor(
        [posterior.prior_precision, posterior.log_evidence, posterior.n_effective], dtype=torch.float64
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(directory) / LAST_LAYER)


def load_last_layer(directory: str | Path) -> LastLayer:
    """The posterior beside a saved model. Raises: CheckpointError where there is none."""
    path = Path(directory) / LAST_LAYER
    if not path.is_file():
        raise CheckpointError(f"{directory}: found no {LAST_LAYER}; expected a model with reward.posterior: laplace")
    tensors = load_file(path)
    return LastLayer(tensors["mean"].numpy(), tensors["covariance"].numpy(), *tensors["figures"].tolist())


@torch.no_grad()
def _features(
    model: RewardModel,
    said: Sequence[Statement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    config: RewardConfig,
    *,
    objectives: Sequence[str] | None = None,
) -> _Seen:
    """Features (and the length, where the model has a length term) of the texts that some statements are about."""
    data = feedback_data(said, prompts, responses, objectives=objectives, ordinal=config.ratings == "ordinal")
    encoded, budget = model.trunk.encode(data.prompts, data.texts), config.token_budget
    phi = torch.zeros(len(data.texts), model.trunk.width, dtype=torch.float64)
    model.eval()
    for part in micro_batches(data.groups, lambda i: encoded[i].n_tokens, token_budget=budget):
        phi[part] = model.features([encoded[i] for i in part], token_budget=budget).cpu().double()
    if model.config.length_term:
        phi = torch.cat([phi, log_lengths(data.texts).double().unsqueeze(1)], dim=1)
    return _Seen(data, phi.numpy())


def _further(seen: _Seen, params: FeedbackParams, config: RewardConfig) -> tuple[SideFeatures | None, np.ndarray]:
    """Plain features and effects of single texts [N, N], where asked for, each block as large as makes what was said most probable.

    Raises: ConfigError for effects of too many texts.
    """
    n_texts, with_effects = len(seen.data.texts), config.laplace.text_effects
    if with_effects and n_texts > MOST_EFFECTS:
        raise ConfigError(
            f"reward.laplace.text_effects: found {n_texts:,} texts; expected at most {MOST_EFFECTS:,}, its time grows with their cube"
        )
    side = side_features(config.beside, seen.data.prompts, seen.data.texts) if config.beside else None
    blocks = [seen.phi, *([] if side is None else side.blocks(seen.data.prompts, seen.data.texts))]
    blocks += [np.eye(n_texts)] if with_effects else []
    if len(blocks) == 1:
        return None, np.zeros((n_texts, 0))
    whole, level = np.concatenate(blocks, axis=1), needs_level(seen.batch)
    observed = batch_answers(seen.batch, params, config.raters, known=True)
    scales, _ = block_scales(_from_zero(whole, whole, level=level), [block.shape[1] for block in blocks], observed)
    effects = scales[-1] * np.eye(n_texts) if with_effects else np.zeros((n_texts, 0))
    if side is not None:
        side = side.scaled(scales[1 : 1 + len(side.names)])
    return side, effects


def _about_side(side: SideFeatures | None, n_votes: int) -> list[Finding]:
    if side is None:
        return []
    sizes = ", ".join(f"{name} {scale:.3g}" for name, scale in zip(side.names, side.scales, strict=True))
    return [
        Finding(
            "reward.beside",
            "What does the reward read beside the trunk?",
            "warn",
            Estimate(float(len(side.names)), None, None, n_votes, "blocks; prior precisions by marginal likelihood"),
            detail=f"prior standard deviations relative to the trunk's weights: {sizes}. Words and lengths can be had for "
            "nothing: an optimiser will find them.",
        )
    ]


def _whole_weight(model: RewardModel) -> np.ndarray:
    mean = (model.weight + model.prior).mean(0).detach().cpu().double()
    if model.config.length_term:
        mean = torch.cat([mean, model.length_coef.detach().cpu().double().mean().view(1)])
    return mean.numpy()


def _with_heads(model: RewardModel, drawn: Float[Tensor, "S d"]) -> RewardModel:
    """The same trunk under heads that are these weights; nothing is left to train."""
    heads = RewardModel(
        model.trunk, dataclasses.replace(model.config, n_heads=drawn.shape[0], prior_scale=0.0, init_scale=0.0), seed=0
    )
    width = model.trunk.width
    heads.weight.data.copy_(drawn[:, :width])
    if model.config.length_term:
        heads.length_coef.data.copy_(drawn[:, width])
    return heads.requires_grad_(False).eval()


def _not_mixed(rhat: float, n_votes: int) -> Finding:
    return Finding(
        "reward.last_layer_chains",
        "Do the chains that draw the last layer agree?",
        "warn",
        Estimate(rhat, None, None, n_votes, "the largest R̂ of a weight over the halves of two chains"),
        detail=f"Above {MIXED}: the spread of scores is uncertain. Train again with another seed, or set "
        "reward.laplace.tastes: false.",
    )


def _one_taste(batch: FeedbackBatch) -> Finding:
    names = ", ".join(channel.name for channel in batch.channels)
    return Finding(
        "reward.last_layer_tastes",
        "Does the posterior know that raters differ in taste?",
        "warn",
        Estimate(0.0, None, None, len(batch), "standard deviation of tastes, taken as 0"),
        detail=f"No: that takes comparisons of one scale alone (reward.kinds: [comparison]), found {names}. Competences, offsets "
        "and gains are in it; where tastes differ its intervals are too short.",
    )


def _finding(posterior: LastLayer, n_features: int, n_votes: int) -> Finding:
    return Finding(
        "reward.last_layer",
        "How much of the last layer did what was said determine?",
        "info",
        Estimate(
            posterior.n_effective, None, None, n_votes, "MacKay's γ = d − λ·tr H⁻¹, at the λ of the highest evidence"
        ),
        detail=f"of {n_features} features; prior precision {posterior.prior_precision:.3g}.",
    )
