"""A trained reward model whose heads become draws of a Bayesian last layer.

The trunk's features are taken as they are; the posterior of the head is fitted to the training comparisons with the
raters' parameters, by turns with these, and its draws take the place of the heads. Everything downstream (scorer, card,
mean head as an ordinary classifier) stays as it is. Knows a trained model and votes; knows nothing about splits.

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

from karat.belief import fit_scale
from karat.choice import RaterParams, VoteBatch, vote_batch
from karat.errors import CheckpointError, ConfigError
from karat.records import Estimate, Finding, Prompt, Response, Vote
from karat.reward.block_layer import block_scales
from karat.reward.calibration import VoteModel, fit_temperature, predicted_probs, vote_nll
from karat.reward.last_layer import LastLayer, centred_raters, comparison_observations, fit_last_layer
from karat.reward.model import RewardModel, log_lengths
from karat.reward.raters import fit_raters
from karat.reward.sampled_layer import MIXED, sample_population
from karat.reward.settings import RewardConfig
from karat.reward.side import SideFeatures, side_features, side_reward
from karat.reward.tastes import fit_population
from karat.reward.train import RewardFit
from karat.reward.trunk import micro_batches
from karat.seeding import numpy_generator

LAST_LAYER = "last_layer.safetensors"
SAMPLED_UP_TO = 5_000
"""Comparisons up to which raters who differ are drawn with the weights; beyond, that takes minutes and moments serve."""
MOST_EFFECTS = 3_000
"""Training texts that may have effects of their own."""
AVERAGED_UP_TO = 20_000
"""Comparisons up to which slopes and curvatures are averaged over the posterior; beyond, it is narrow and costs more."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """Comparisons with the features of their texts."""

    columns: VoteBatch
    prompt: Tensor
    phi: np.ndarray
    prompts: list[Prompt]
    texts: list[str]

    def beside(self, side: SideFeatures | None) -> _Seen:
        """The same with the side features' columns behind the others."""
        if side is None:
            return self
        return dataclasses.replace(self, phi=np.concatenate([self.phi, side.of(self.prompts, self.texts)], axis=1))


def bayesian_fit(
    fit: RewardFit,
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
) -> tuple[RewardFit, LastLayer]:
    """The same model with draws of the last layer's posterior as its heads, and the posterior itself, in logits.

    Args:
        fit: a trained model; its trunk is not changed.    votes: what it was trained on, without the held-out ones.
    Returns: temperature, reference, scale, rater parameters and held-out likelihood are those of the new heads.
    Raises: ConfigError for several objectives; PosteriorError for a posterior that is not positive definite.
    """
    model, settings = fit.model, config.laplace
    if len(getattr(model, "objectives", ("preference",))) > 1:
        raise ConfigError(
            "reward.posterior: found several objectives with laplace; expected heads or ensemble for them"
        )
    # 1. features, once
    names = {name: place for place, name in enumerate(fit.annotators)}
    seen = _features(model, votes, prompts, responses, names, config.token_budget)
    own_width = seen.phi.shape[1]
    side, effects = _further(seen, fit.raters, config)
    seen = seen.beside(side)
    width = seen.phi.shape[1]
    phi = np.concatenate([seen.phi, effects], axis=1)
    # 2. head and raters by turns
    averaged = len(votes) <= AVERAGED_UP_TO
    raters = fit.raters
    start = np.concatenate([_whole_weight(model), np.zeros(phi.shape[1] - own_width)])
    for turn in range(settings.n_turns):
        last = turn + 1 == settings.n_turns
        posterior = fit_last_layer(
            phi, [comparison_observations(seen.columns, raters)], prior_precision=settings.prior_precision,
            start=start, averaged=averaged and last and (not settings.tastes or settings.text_effects),
        )  # fmt: skip
        start = posterior.mean
        if not last:
            scores = torch.from_numpy(phi @ start).float()
            raters = centred_raters(fit_raters(scores, seen.columns, raters, config.raters))
    # 3. draws as heads; effects of training texts are integrated out
    posterior = _without_effects(posterior, width)
    population = _of_population(posterior, seen, raters, config, seed)
    posterior, drawn = population.posterior, population.draws
    heads = _with_heads(model, torch.from_numpy(drawn[:, :own_width]).float())
    vote_model = VoteModel(config.raters, tuple(raters.cutpoints.tolist()))
    # 4. temperature, reference and scale
    metrics = dict(fit.metrics) | {
        "prior_precision": posterior.prior_precision, "log_evidence": posterior.log_evidence,
        "n_effective": posterior.n_effective,
    } | population.figures  # fmt: skip
    held_votes = [vote for vote in fit.held_out if isinstance(vote, Vote)]
    if held_votes:
        everyone = {vote.annotator: 0 for vote in held_votes}
        held = _features(model, held_votes, prompts, responses, everyone, config.token_budget).beside(side)
        metrics |= _warmed(heads, drawn, held, vote_model)
    temperature = float(heads.temperature)
    logits = torch.from_numpy(drawn @ seen.phi.T).float() / temperature
    reference = logits.mean(1)
    fitted = dataclasses.replace(
        fit, model=heads, raters=raters, vote_model=vote_model, metrics=metrics,
        scale=fit_scale(logits.mean(0), seen.prompt),
        reference=reference if fit.reference.ndim == 1 else reference.unsqueeze(-1),
        findings=[*fit.findings, _finding(posterior, seen.phi.shape[1], len(votes)), *population.findings,
                  *_about_side(side, len(votes))],
        side=None if side is None else side_reward(side, drawn[:, own_width:]),
    )  # fmt: skip
    return fitted, cooled_layer(posterior, temperature)


def _warmed(heads: RewardModel, drawn: np.ndarray, held: _Seen, vote_model: VoteModel) -> dict[str, float]:
    """Give the heads the temperature that fits held-out raters; returns it, with how likely their votes then are."""
    raw = torch.from_numpy(drawn @ held.phi.T)
    temperature = fit_temperature(raw, held.columns, vote_model)
    heads.temperature.fill_(temperature)
    probs = predicted_probs(raw, held.columns, vote_model, temperature=temperature)
    return {"temperature": temperature, "held_out_nll": float(vote_nll(probs, held.columns).mean())}


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


def _of_population(
    posterior: LastLayer, seen: _Seen, raters: RaterParams, config: RewardConfig, seed: int
) -> _Population:
    """What raters who differ do to a posterior of one taste: drawn with it, by moments, or nothing."""
    settings, votes = config.laplace, seen.columns
    rng = numpy_generator(seed, "reward", "last layer")
    if not settings.tastes or settings.text_effects or len(raters.competence) < 2 or len(votes) > AVERAGED_UP_TO:
        none = {"taste_sd": 0.0, "competence_sd": 0.0}
        return _Population(posterior, posterior.draws(settings.n_draws, rng), none)
    if len(votes) > SAMPLED_UP_TO:
        found = fit_population(
            seen.phi, comparison_observations(votes, raters), votes.annotator.numpy(),
            prior_precision=settings.prior_precision, competence_known=not config.raters.modelled,
        )  # fmt: skip
        spreads = {"taste_sd": found.taste_sd, "competence_sd": found.competence_sd}
        return _Population(found.posterior, found.posterior.draws(settings.n_draws, rng), spreads)
    sampled = sample_population(
        seen.phi, votes, posterior, rng, raters=config.raters, prior_precision=settings.prior_precision
    )
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
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    names: Mapping[str, int],
    token_budget: int,
) -> _Seen:
    """Features (and the length, where the model has a length term) of the texts of some votes."""
    index: dict[str, int] = {}
    by_prompt: dict[str, list[int]] = {}
    for vote in votes:
        for response_id in (vote.a, vote.b):
            if response_id not in index:
                by_prompt.setdefault(vote.prompt_id, []).append(len(index))
                index[response_id] = len(index)
    own = [responses[one] for one in index]
    encoded = model.trunk.encode([prompts[one.prompt_id] for one in own], [one.text for one in own])
    phi = torch.zeros(len(own), model.trunk.width, dtype=torch.float64)
    model.eval()
    for part in micro_batches(list(by_prompt.values()), lambda i: encoded[i].n_tokens, token_budget=token_budget):
        phi[part] = model.features([encoded[i] for i in part], token_budget=token_budget).cpu().double()
    if model.config.length_term:
        phi = torch.cat([phi, log_lengths([one.text for one in own]).double().unsqueeze(1)], dim=1)
    prompt = torch.empty(len(own), dtype=torch.long)
    for number, members in enumerate(by_prompt.values()):
        prompt[members] = number
    own_prompts, texts = [prompts[one.prompt_id] for one in own], [one.text for one in own]
    return _Seen(vote_batch(votes, index, names), prompt, phi.numpy(), own_prompts, texts)


def _further(seen: _Seen, raters: RaterParams, config: RewardConfig) -> tuple[SideFeatures | None, np.ndarray]:
    """Plain features and effects of single texts [N, N], where asked for, each block as large as makes the votes most probable.

    Raises: ConfigError for effects of too many texts.
    """
    n_texts, with_effects = len(seen.texts), config.laplace.text_effects
    if with_effects and n_texts > MOST_EFFECTS:
        raise ConfigError(
            f"reward.laplace.text_effects: found {n_texts:,} texts; expected at most {MOST_EFFECTS:,}, its time grows with their cube"
        )
    side = side_features(config.beside, seen.prompts, seen.texts) if config.beside else None
    blocks = [seen.phi, *([] if side is None else side.blocks(seen.prompts, seen.texts))]
    blocks += [np.eye(n_texts)] if with_effects else []
    if len(blocks) == 1:
        return None, np.zeros((n_texts, 0))
    observed = [comparison_observations(seen.columns, raters)]
    scales, _ = block_scales(np.concatenate(blocks, axis=1), [block.shape[1] for block in blocks], observed)
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


def _finding(posterior: LastLayer, n_features: int, n_votes: int) -> Finding:
    return Finding(
        "reward.last_layer",
        "How much of the last layer did the votes determine?",
        "info",
        Estimate(
            posterior.n_effective, None, None, n_votes, "MacKay's γ = d − λ·tr H⁻¹, at the λ of the highest evidence"
        ),
        detail=f"of {n_features} features; prior precision {posterior.prior_precision:.3g}.",
    )
