"""How sure a reward model is, by configuration: heads, an ensemble of whole models, or a Bayesian last layer.

All three end as one `Scorer` of joint draws, saved in one directory and named on its card. Knows recipes; knows nothing
about where votes come from.

Dimension letters: S draws, M models.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from karat.belief import ScoreScale
from karat.choice import vote_batch
from karat.destinations import filled_directory
from karat.errors import ConfigError, InputError
from karat.lm.checkpoints import newest_step
from karat.lm.checksums import note_files, note_further
from karat.lm.loop import Reporter
from karat.progress import Progress
from karat.records import Estimate, Finding, Prompt, Response, Vote
from karat.reward.bayes import bayesian_fit
from karat.reward.calibration import VoteModel, fit_temperature, predicted_probs, vote_nll
from karat.reward.data import split_votes
from karat.reward.last_layer import LastLayer
from karat.reward.layer_file import cooled_layer, save_last_layers
from karat.reward.objectives import ObjectivesConfig, check_known, plain_objectives
from karat.reward.score import CARD, CARD_FORMAT, Scorer, joined_scorer, save_reward, scorer_of
from karat.reward.settings import RewardConfig
from karat.reward.train import RewardFit, planned_steps, train_reward
from karat.reward.trunk import Trunk
from karat.seeding import child_seed
from karat.statements import Statement


@dataclass(frozen=True, eq=False)
class FittedReward:
    """A reward with its posterior, whichever it is."""

    kind: str
    """heads, ensemble or laplace."""
    members: tuple[RewardFit, ...]
    """The trained models; one, but for an ensemble."""
    scorer: Scorer
    """All of them as one."""
    metrics: dict[str, float]
    """Figures of the fit."""
    findings: list[Finding]
    """What a reader must know about it."""
    last_layers: Mapping[str, LastLayer] = field(default_factory=dict)
    """Objective → the posterior of its last layer, in logits; empty = another kind."""

    @property
    def vote_model(self) -> VoteModel:
        """What turns differences of logits into probabilities."""
        return self.scorer.vote_model


def fit_reward(
    make_trunk: Callable[[], Trunk],
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
    validation: Sequence[Vote] | None = None,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    progress: Progress | None = None,
) -> FittedReward:
    """Train what `config.posterior` asks for.

    heads: one model, S heads. laplace: one model, then draws of its last layer's posterior. ensemble: M models, each from
    a fresh trunk with its own seed, order and bootstrap; fine-tuning seeds alone differ less than pretraining seeds
    would (Eisenstein et al. 2023, arXiv:2312.09244).

    Args:
        make_trunk: a trunk with the starting weights, at every call.    validation: held out, the same for all models.
        directory: for checkpoints; each model has its own folder in it.
        reporters: hear of every step; the steps of an ensemble's models are counted on from one to the next.
        progress: has a stage where raters are drawn along with a last layer, which takes minutes.
    Raises: what `train_reward` raises; PosteriorError; ConfigError for an ensemble without held-out votes; InputError, before
        training, for laplace and an objective of one response.
    """
    if config.posterior == "laplace":
        _check_laplace(votes if validation is not None else split_votes(votes, holdout_frac=config.holdout_frac)[0])
    if config.posterior != "ensemble":
        fit = train_reward(
            make_trunk(), votes, prompts, responses, config=config, seed=seed, validation=validation,
            directory=directory, reporters=reporters,
        )  # fmt: skip
        layers: dict[str, LastLayer] = {}
        if config.posterior == "laplace":
            fit, layers = bayesian_fit(fit, prompts, responses, config=config, seed=seed, progress=progress)
        return FittedReward(config.posterior, (fit,), scorer_of(fit), fit.metrics, fit.findings, layers)
    members: list[RewardFit] = []
    for number, own in enumerate(member_seeds(config, seed)):
        n_before = sum(int(fit.metrics["n_steps"]) for fit in members)
        fit = train_reward(
            make_trunk(), votes, prompts, responses, config=config, seed=own, validation=validation,
            directory=None if directory is None else directory / member_name(number),
            reporters=[_CountedOn(one, n_before) for one in reporters],
        )  # fmt: skip
        members.append(fit)
    return _ensemble(tuple(members), prompts, responses)


def _check_laplace(said: Sequence[Statement]) -> None:
    """Refuse what a last layer cannot be fitted to, before anything is trained."""
    texts: dict[str, set[str]] = {}
    for one in said:
        texts.setdefault(one.objective, set()).update(one.response_ids)
    if alone := sorted(name for name, ids in texts.items() if len(ids) < 2):
        raise InputError(
            f"objective {alone[0]!r}: found one response that anything is said about; expected two or more for "
            "reward.posterior: laplace. Collect more, leave its kind out (reward.kinds), or use heads"
        )


def member_seeds(config: RewardConfig, seed: int) -> list[int]:
    """The seed of each model that `fit_reward` trains."""
    if config.posterior != "ensemble":
        return [seed]
    return [child_seed(seed, "member", number) for number in range(config.ensemble.models)]


def member_name(number: int) -> str:
    """The folder of an ensemble's model, among checkpoints and beside the card."""
    return f"member-{number}"


def n_steps_planned(
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
) -> int:
    """How many optimiser steps `fit_reward` takes for these training votes, all models together, if no epoch ends early."""
    return sum(planned_steps(votes, prompts, responses, config=config, seed=own) for own in member_seeds(config, seed))


def n_steps_done(config: RewardConfig, directory: Path) -> int:
    """Steps that the checkpoints in a directory of `fit_reward` hold, all models together."""
    if config.posterior != "ensemble":
        return newest_step(directory)
    return sum(newest_step(directory / member_name(number)) for number in range(config.ensemble.models))


@dataclass(frozen=True)
class _CountedOn:
    """A reporter that hears of a later model's steps as a continuation of the earlier ones'."""

    reporter: Reporter
    n_before: int

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.reporter.log(self.n_before + step, metrics)


def optimised_scorer(fitted: FittedReward, objectives: ObjectivesConfig) -> Scorer:
    """All models as one scorer of what the optimiser gets of several objectives.

    Raises: ConfigError for an objective that they have no output for.
    """
    check_known(objectives, fitted.scorer.model.objectives)
    return fitted.scorer.with_objectives(objectives)


def save_fitted(
    fitted: FittedReward,
    directory: str | Path,
    *,
    metadata: Mapping[str, str],
    scale: ScoreScale | None = None,
    objectives: ObjectivesConfig | None = None,
    length_removed: float = 0.0,
) -> Path:
    """Write the models and a card that names the posterior, complete or not at all; `load_scorer` reads it.

    Args:
        metadata: who made it.    scale: the optimiser's scale; None = that of the training responses.
        objectives, length_removed: as in `save_reward`; an ensemble's hold for its models together, not for one alone.
    Returns: the directory.
    """
    directory = Path(directory)
    scale = fitted.scorer.scale if scale is None else scale
    if fitted.kind != "ensemble":
        save_reward(
            fitted.members[0], directory, metadata=metadata, scale=scale, objectives=objectives,
            length_removed=length_removed,
        )  # fmt: skip
        name_posterior(directory, fitted.kind, fitted.members[0].model.n_heads, fitted.last_layers)
        return directory
    with filled_directory(directory) as partial:
        names = [member_name(number) for number in range(len(fitted.members))]
        for name, fit in zip(names, fitted.members, strict=True):
            save_reward(fit, partial / name, metadata=metadata)
        card = {
            "format": CARD_FORMAT,
            "metadata": dict(metadata),
            "posterior": {"kind": "ensemble", "members": names},
            "cutpoints": list(fitted.vote_model.cutpoints),
            "rater_priors": dataclasses.asdict(fitted.vote_model.priors),
            "scale": dataclasses.asdict(scale),
            "objectives": list(fitted.scorer.model.objectives),
            "objectives_config": plain_objectives(objectives or ObjectivesConfig()),
            "length_removed": length_removed,
            "metrics": fitted.metrics,
            "findings": [dataclasses.asdict(finding) for finding in fitted.findings],
            "loads_with": "karat.reward.score.load_scorer; each member alone also as it says on its own card",
            "not_expressed": ["AutoModel loads one member, not the ensemble"],
        }
        _write(partial / CARD, card)
        note_files(partial)
    return directory


def name_posterior(directory: Path, kind: str, n_draws: int, layers: Mapping[str, LastLayer]) -> None:
    """Say on a saved model's card what its draws are, and lay the last layers' posteriors beside it."""
    card = json.loads((directory / CARD).read_text(encoding="utf-8"))
    card["posterior"] = {"kind": kind, "n_draws": n_draws}
    if layers:
        save_last_layers(layers, directory)
        each = {
            name: {"prior_precision": one.prior_precision, "log_evidence": one.log_evidence}
            for name, one in layers.items()
        }
        card["posterior"] |= next(iter(each.values())) | ({"objectives": each} if len(each) > 1 else {})
    _write(directory / CARD, card)
    note_further(directory, CARD)


def _ensemble(
    members: tuple[RewardFit, ...], prompts: Mapping[str, Prompt], responses: Mapping[str, Response]
) -> FittedReward:
    """M models as one: common cutpoints, and one more temperature for all of them, from the held-out votes."""
    cutpoints = torch.tensor([fit.vote_model.cutpoints for fit in members]).mean(0)
    vote_model = VoteModel(members[0].vote_model.priors, tuple(cutpoints.tolist()))
    n_levels = vote_model.n_levels  # other scales have cutpoints of their own
    held = [one for one in members[0].held_out if isinstance(one, Vote) and one.n_levels == n_levels]
    metrics = {"n_models": float(len(members)), **members[0].metrics}
    findings = list(members[0].findings)
    if held:
        said = {one.judgement_id for one in members[0].held_out}
        if any({one.judgement_id for one in fit.held_out} != said for fit in members):
            raise ConfigError("ensemble: the models held out different votes; give the validation votes")
        index = {one: i for i, one in enumerate(dict.fromkeys(r for vote in held for r in (vote.a, vote.b)))}
        own = [responses[one] for one in index]
        columns = vote_batch(held, index, {vote.annotator: 0 for vote in held})
        joint = joined_scorer([scorer_of(fit) for fit in members], vote_model, members[0].scale)
        draws = joint.logits([prompts[one.prompt_id] for one in own], [one.text for one in own])
        factor = fit_temperature(draws, columns, vote_model)
        members = tuple(_cooled(fit, factor) for fit in members)
        nll = float(vote_nll(predicted_probs(draws, columns, vote_model, temperature=factor), columns).mean())
        metrics |= members[0].metrics | {"held_out_nll": nll, "ensemble_temperature": factor}
        findings.append(_gain(nll, [fit.metrics["held_out_nll"] for fit in members]))
    scale = ScoreScale(
        *(sum(getattr(fit.scale, name) for fit in members) / len(members) for name in ("shift", "scale"))
    )
    scorer = joined_scorer([scorer_of(fit) for fit in members], vote_model, scale)
    return FittedReward("ensemble", members, scorer, metrics, findings)


def _cooled(fit: RewardFit, factor: float) -> RewardFit:
    fit.model.temperature.mul_(factor)
    reference = fit.reference.clone()  # the temperature is the first objective's
    reference.view(len(reference), -1)[:, 0] /= factor
    return dataclasses.replace(
        fit, reference=reference, scale=_cooled_scale(fit.scale, factor), metrics=_cooled_metrics(fit.metrics, factor)
    )


def _cooled_scale(scale: ScoreScale, factor: float) -> ScoreScale:
    return ScoreScale(scale.shift / factor, scale.scale / factor)


def _cooled_metrics(metrics: Mapping[str, float], factor: float) -> dict[str, float]:
    """Figures of a fit at another temperature; the held-out likelihood stays that of the training's."""
    by = {"temperature": factor, "length_coef": 1 / factor}
    return {**metrics, **{name: metrics[name] * by[name] for name in by if name in metrics}}


def cooled(fitted: FittedReward, factor: float) -> FittedReward:
    """The same reward with logits divided by a factor; the models' temperatures are changed in place."""
    members = tuple(_cooled(fit, factor) for fit in fitted.members)
    scorer = scorer_of(members[0])
    if len(members) > 1:
        scale = _cooled_scale(fitted.scorer.scale, factor)
        scorer = joined_scorer([scorer_of(fit) for fit in members], fitted.vote_model, scale)
    layers = {
        name: cooled_layer(one, factor) if number == 0 else one
        for number, (name, one) in enumerate(fitted.last_layers.items())
    }
    metrics = _cooled_metrics(fitted.metrics, factor)
    return dataclasses.replace(fitted, members=members, scorer=scorer, last_layers=layers, metrics=metrics)


def _gain(nll: float, own: Sequence[float]) -> Finding:
    return Finding(
        "reward.ensemble",
        "How much likelier are held-out votes under all models together than under one of them?",
        "info",
        Estimate(
            sum(own) / len(own) - nll, None, None, len(own), "mean −log P of the models minus that of the ensemble"
        ),
        detail=f"{len(own)} models; nats a vote.",
    )


def _write(path: Path, card: Mapping[str, object]) -> None:
    text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
