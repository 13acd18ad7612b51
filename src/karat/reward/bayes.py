"""A trained reward model whose heads become draws of a Bayesian last layer.

The trunk's features are taken as they are; for each objective the posterior of its head is fitted to all that was said about it, of
whatever kind, by turns with the raters' parameters, and its draws take the place of the heads. Everything downstream (scorer, card,
mean head as an ordinary classifier) stays as it is. Knows a trained model and what was said; knows nothing about splits.

Dimension letters: S draws, N texts, O objectives, d features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import KaratError
from karat.feedback_columns import FeedbackParams
from karat.progress import Progress, counted
from karat.records import Estimate, Finding, Prompt, Response
from karat.reward.calibration import TEMPERATURE, VoteModel, temperature_finding
from karat.reward.contributions import contributions
from karat.reward.data import FeedbackData, feedback_data
from karat.reward.halo import Halo, joint_layers
from karat.reward.last_layer import LastLayer
from karat.reward.layer_file import cooled_layer
from karat.reward.model import RewardModel, log_lengths
from karat.reward.objective_layer import ObjectiveLayer, fit_objective, joined_params, people_of, spoken_about
from karat.reward.prediction import fit_feedback_temperature, held_out_nll
from karat.reward.settings import RewardConfig
from karat.reward.side import SideFeatures, side_features, side_reward, stacked_side
from karat.reward.train import RewardFit, response_scale
from karat.reward.trunk import micro_batches
from karat.seeding import numpy_generator


@dataclass(frozen=True, eq=False)
class _Seen:
    """Statements with the features of their texts."""

    data: FeedbackData
    phi: np.ndarray
    """[N, d]; the length stands behind the trunk's, where there is a length term: it is the first objective's."""
    blocks: tuple[np.ndarray, ...]
    """Plain features, [N, q_k] each."""

    def features(self, width: int, layer: ObjectiveLayer) -> np.ndarray:
        """What an objective's weights are of: so many of the trunk's features, and the blocks on its scales."""
        blocks = (block * scale for block, scale in zip(self.blocks, layer.scales, strict=True))
        return np.concatenate([self.phi[:, :width], *blocks], axis=1)


def bayesian_fit(
    fit: RewardFit,
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
    progress: Progress | None = None,
) -> tuple[RewardFit, dict[str, LastLayer]]:
    """The same model with draws of each objective's posterior as its heads, and the posteriors themselves, in logits.

    Args:
        fit: a trained model, with what it was trained on and what was held out; its trunk is not changed.
        progress: has a stage for every objective whose raters are drawn along.
    Returns: temperature, reference, scale, rater parameters, contributions and held-out likelihood are those of the new
        heads. Parameters of kinds that speak of single responses are for scores measured from each draw's own mean over
        the training responses: where a draw has its zero is not known, and nobody's preference.
    Raises: PosteriorError for a posterior that is not positive definite, with the objective's name where there are several.
    """
    model = fit.model
    assert fit.params is not None
    # 1. features, once
    data = feedback_data(fit.said, prompts, responses, ordinal=config.ratings == "ordinal")
    side = side_features(config.beside, data.prompts, data.texts) if config.beside else None
    seen = _seen(model, data, side, config)
    widths = [seen.phi.shape[1] if number == 0 else model.trunk.width for number in range(len(data.objectives))]
    # 2. heads and raters by turns, objective by objective; draws as heads
    layers, halos = _layers(fit, seen, widths, config, seed, progress)
    params = joined_params(fit.params, layers, data.batch)
    raters = people_of(params, len(fit.annotators), fit.raters.cutpoints)
    heads = _with_heads(model, [layer.draws[:, :width] for layer, width in zip(layers, widths, strict=True)])
    # 3. temperature, reference and scale
    metrics = dict(fit.metrics) | _figures(layers)
    held, held_raw, earlier = None, None, fit.findings
    if fit.held_out:
        held_data = feedback_data(
            fit.held_out, prompts, responses, objectives=model.objectives, ordinal=config.ratings == "ordinal"
        )
        held = _seen(model, held_data, side, config)
        held_raw = _raw(held, widths, layers)
        warmth, found_temperature = _warmed(heads, held_raw, held.data, params, config)
        metrics |= warmth
        earlier = [temperature_finding(found_temperature) if one.name == TEMPERATURE else one for one in earlier]
    temperature = float(heads.temperature)
    level = any(layer.centre.any() for layer in layers)
    zero = torch.from_numpy(np.stack([layer.draws @ layer.centre for layer in layers], axis=-1)).float()
    raw = _raw(seen, widths, layers)
    logits = heads.calibrated(raw.float() + zero[:, None])
    found = contributions(
        data, raw, params, config.raters, held=None if held is None else held.data,
        held_raw=held_raw, temperature=temperature, seed=seed,
    )  # fmt: skip
    fitted = dataclasses.replace(
        fit, model=heads, raters=raters, params=params, metrics=metrics, contributions=tuple(found),
        vote_model=VoteModel(config.raters, tuple(raters.cutpoints.tolist())), reference=logits.mean(1),
        scale=response_scale(logits[..., 0].mean(0), data.groups),
        findings=[*earlier, *_findings(layers, halos), *_about_side(side, layers, len(data.batch))],
        side=_side(side, layers, widths), zero=zero if level else None,
    )  # fmt: skip
    posteriors = {layer.objective: layer.posterior for layer in layers}
    first = data.objectives[0]
    return fitted, posteriors | {first: cooled_layer(posteriors[first], temperature)}


def _layers(
    fit: RewardFit,
    seen: _Seen,
    widths: Sequence[int],
    config: RewardConfig,
    seed: int,
    progress: Progress | None,
) -> tuple[list[ObjectiveLayer], list[Halo]]:
    """The last layer of every objective, and what answers about several of them share."""
    names, found, said = seen.data.objectives, [], []
    for number, (name, width) in enumerate(zip(names, widths, strict=True)):
        own = spoken_about(seen.data.batch, number, name, seen.phi[:, :width], seen.blocks)
        purpose = ("reward", "last layer", *([name] if number else []))
        try:
            with counted(progress, "last layer" if len(names) == 1 else f"last layer of {name}", "draws") as count:
                layer = fit_objective(
                    own, fit.params, _whole_weight(fit.model, number), n_people=len(fit.annotators),
                    config=config, rng=numpy_generator(seed, *purpose), counted=count,
                )  # fmt: skip
        except KaratError as error:
            raise error if len(names) == 1 else type(error)(f"objective {name!r}: {error}") from None
        found.append(layer)
        said.append(own)
    return joint_layers(found, said, config.raters) if len(found) > 1 else (found, [])


def _raw(seen: _Seen, widths: Sequence[int], layers: Sequence[ObjectiveLayer]) -> Float[Tensor, "S N O"]:
    """Raw scores of every objective, each measured from its own zero."""
    each = [layer.raw(seen.features(width, layer)) for width, layer in zip(widths, layers, strict=True)]
    return torch.from_numpy(np.stack(each, axis=-1))


def _figures(layers: Sequence[ObjectiveLayer]) -> dict[str, float]:
    """Figures of the first objective by their names, of the others with the objective's behind them."""
    return {
        name if number == 0 else f"{name}.{layer.objective}": value
        for number, layer in enumerate(layers)
        for name, value in layer.figures.items()
    }


def _findings(layers: Sequence[ObjectiveLayer], halos: Sequence[Halo]) -> list[Finding]:
    if len(layers) == 1:
        return list(layers[0].findings)
    named = [
        dataclasses.replace(one, name=f"{one.name}.{layer.objective}", question=f"{layer.objective}: {one.question}")
        for layer in layers
        for one in layer.findings
    ]
    names = ", ".join(layer.objective for layer in layers)
    most = max((abs(one.correlation) for one in halos), default=0.0)
    shared = "; ".join(
        f"{one.objectives[0]} and {one.objectives[1]} {one.correlation:+.2f} ± {one.sd:.2f}, {one.n_shared:,} answers, "
        f"{one.shrunk:+.2f} of it taken into the draws"
        for one in halos
    )
    return [*named, Finding(
        "reward.last_layer_objectives", "What moves one rater's answers about several objectives of one response at once (a halo)?",
        "info", Estimate(most, None, None, len(layers), "largest correlation of what is left of two such answers; objectives"),
        detail=shared or f"Nothing that could be told: too few raters spoke about two of {names} of the same response; they are drawn "
        "independently.",
    )]  # fmt: skip


def _warmed(
    heads: RewardModel, raw: Float[Tensor, "S N O"], held: FeedbackData, params: FeedbackParams, config: RewardConfig
) -> tuple[dict[str, float], Estimate | None]:
    """Give the heads the temperature that fits held-out raters; returns it, how likely what they said then is, and its interval."""
    found = fit_feedback_temperature(raw, held.batch, params, config.raters)
    temperature = 1.0 if found is None or found.value is None else found.value
    heads.temperature.fill_(temperature)
    nll = held_out_nll(raw, held.batch, params, config.raters, n_judgements=held.n_judgements, temperature=temperature)
    return {"temperature": temperature, "held_out_nll": nll}, found


@torch.no_grad()
def _seen(model: RewardModel, data: FeedbackData, side: SideFeatures | None, config: RewardConfig) -> _Seen:
    """Features (and the length, where the model has a length term) of the texts that some statements are about."""
    encoded, budget = model.trunk.encode(data.prompts, data.texts), config.token_budget
    phi = torch.zeros(len(data.texts), model.trunk.width, dtype=torch.float64)
    model.eval()
    for part in micro_batches(data.groups, lambda i: encoded[i].n_tokens, token_budget=budget):
        phi[part] = model.features([encoded[i] for i in part], token_budget=budget).cpu().double()
    if model.config.length_term:
        phi = torch.cat([phi, log_lengths(data.texts).double().unsqueeze(1)], dim=1)
    blocks = () if side is None else tuple(side.blocks(data.prompts, data.texts))
    return _Seen(data, phi.numpy(), blocks)


def _side(side: SideFeatures | None, layers: Sequence[ObjectiveLayer], widths: Sequence[int]):
    """What plain features add to each draw of each objective."""
    if side is None:
        return None
    return stacked_side(
        [side_reward(side.scaled(one.scales), one.draws[:, width:]) for one, width in zip(layers, widths, strict=True)]
    )


def _about_side(side: SideFeatures | None, layers: Sequence[ObjectiveLayer], n_votes: int) -> list[Finding]:
    if side is None:
        return []
    sizes = "; ".join(
        ("" if len(layers) == 1 else f"{layer.objective}: ")
        + ", ".join(f"{name} {scale:.3g}" for name, scale in zip(side.names, layer.scales, strict=True))
        for layer in layers
    )
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


def _whole_weight(model: RewardModel, number: int) -> np.ndarray:
    """The mean head of an objective; the first one's with its length coefficient."""
    if number:
        return (model.further_weight + model.further_prior)[number - 1].mean(0).detach().cpu().double().numpy()
    mean = (model.weight + model.prior).mean(0).detach().cpu().double()
    if model.config.length_term:
        mean = torch.cat([mean, model.length_coef.detach().cpu().double().mean().view(1)])
    return mean.numpy()


def _with_heads(model: RewardModel, drawn: Sequence[np.ndarray]) -> RewardModel:
    """The same trunk under heads that are these weights, [S, d] an objective; nothing is left to train."""
    heads = RewardModel(
        model.trunk, dataclasses.replace(model.config, n_heads=len(drawn[0]), prior_scale=0.0, init_scale=0.0), seed=0,
        objectives=model.objectives,
    )  # fmt: skip
    width, (first, *further) = model.trunk.width, [torch.from_numpy(one).float() for one in drawn]
    heads.weight.data.copy_(first[:, :width])
    if model.config.length_term:
        heads.length_coef.data.copy_(first[:, width])
    for place, one in enumerate(further):
        heads.further_weight.data[place].copy_(one)
    return heads.requires_grad_(False).eval()
