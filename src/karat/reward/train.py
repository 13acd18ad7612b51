"""Reward training: from any mixture of feedback to a model, its raters and its calibration, top to bottom.

The objective is the likelihood of everything that was said, each kind by its own link, with raters as latent variables.
Each head weighs the raters by its own bootstrap. The trunk takes gradient steps; the raters are fitted exactly, a few
times an epoch, to the scores seen so far. Knows statements, texts and a trunk; knows nothing about where they came from
or who will use the scores.

Dimension letters: S heads, C comparisons, N texts, O objectives, A annotators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from karat.belief import ScoreScale, training_scale
from karat.choice import RaterParams, VoteBatch
from karat.errors import ConfigError, InputError
from karat.feedback_columns import Channel, FeedbackParams
from karat.identity import content_id
from karat.lm.loop import LoopConfig, Reporter, TrainState, check_skipped, run_loop
from karat.lm.loop_identity import identity_of
from karat.lm.narrow import products_of, use_narrow_products
from karat.records import Estimate, Finding, Prompt, Response
from karat.reward.calibration import VoteModel, temperature_finding
from karat.reward.contributions import Contribution, contributions
from karat.reward.data import (
    FeedbackData,
    Minibatch,
    check_informative,
    feedback_data,
    plan_epoch,
    split_votes,
)
from karat.reward.latents import fit_params, prior_params
from karat.reward.model import RewardModel, bootstrap_weights, log_lengths
from karat.reward.prediction import fit_feedback_temperature, held_out_nll
from karat.reward.raters import fit_slope
from karat.reward.settings import RewardConfig
from karat.reward.side import SideReward
from karat.reward.steps import (
    BestEpoch,
    RaterTable,
    TrainingRun,
    WeightCopy,
    feedback_loss,
    score_data,
    score_encoded,
    trained_weights,
)
from karat.reward.trunk import Trunk
from karat.seeding import numpy_generator
from karat.statements import Statement

__all__ = [
    "RewardConfig",
    "RewardFit",
    "feedback_loss",
    "response_scale",
    "score_data",
    "score_encoded",
    "train_reward",
]


@dataclass(frozen=True, eq=False)
class RewardFit:
    """A trained reward model with all that was estimated beside it."""

    model: RewardModel
    """Trunk and heads, best epoch, temperature set."""
    annotators: tuple[str, ...]
    """Annotator.id of each training rater."""
    raters: RaterParams
    """Their most probable parameters, in raw score units, with the cutpoints of the largest scale of comparisons."""
    vote_model: VoteModel
    """Priors and cutpoints: probabilities for new raters."""
    scale: ScoreScale
    """The optimiser's scale of the mean score, from the training responses until policy samples replace it."""
    reference: Float[Tensor, "S O"]
    """Mean logit of each head over the training responses."""
    metrics: dict[str, float]
    """Figures of the run: held-out likelihood, temperature, length coefficient, seconds are the loop's."""
    findings: list[Finding]
    """What a reader must know about this fit."""
    held_out: tuple[Statement, ...]
    """What no gradient saw."""
    said: tuple[Statement, ...] = ()
    """What was trained on; nothing where the model was not fitted here."""
    zero: Float[Tensor, "S O"] | None = None
    """Raw score of each head and objective from which the thresholds and offsets in `params` are measured; None = 0."""
    params: FeedbackParams | None = None
    """`raters` for every kind, with virtual raters and thresholds, in raw score units; None = not fitted here."""
    contributions: tuple[Contribution, ...] = ()
    """What each kind of feedback contributed, and its held-out likelihood."""
    side: SideReward | None = None
    """What plain features add to each head's score; None = the trunk alone."""


def train_reward(
    trunk: Trunk,
    said: Sequence[Statement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
    validation: Sequence[Statement] | None = None,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
) -> RewardFit:
    """Fit trunk, heads and raters to what was said; the trunk's weights are changed in place.

        max Σ_s Σ_c ω_{s,w(c)}·log P(statement c | r_s, rater w(c))/S + Σ_w log prior(rater w)

    Args:
        said: votes, or statements of every kind (`statements.statements_of`); each objective gets an output.
        prompts, responses: by id; must hold everything that they name.
        validation: held-out statements for early stopping and temperature, best by raters who are not in `said`;
            None = `config.holdout_frac` of the raters, by hash.
        directory: for checkpoints and exact resume; None = neither.
    Returns: RewardFit.
    Raises: InputError for no feedback, all votes tied, an unknown id, or held-out feedback about an objective that
        nobody speaks about in training; ConfigError.
    """
    # 1. who is held out
    if validation is None:
        train, validation, how = split_votes(said, holdout_frac=config.holdout_frac)
    else:
        train, how = list(said), f"{len(validation):,} votes, kept apart before the training"
    check_informative(train)
    ordinal = config.ratings == "ordinal"
    data = feedback_data(train, prompts, responses, ordinal=ordinal)
    held = (
        feedback_data(validation, prompts, responses, objectives=data.objectives, ordinal=ordinal)
        if validation
        else None
    )

    if len(data.texts) < 2:
        raise InputError("reward: found one response in all; expected two or more, a reward tells responses apart")

    # 2. model, raters, optimiser
    run = _start(trunk, data, held, config, seed)

    # 3. gradient steps, raters by turns, best epoch kept
    if config.checkpoint_every == 0:
        directory = None
    identity: dict[str, Any] = {}
    if directory is not None:  # else nobody asks what run it is, and to say so takes a pass over the weights
        identity = identity_of(config, seed, {"votes": [v.judgement_id for v in train]}, trunk.module)
    loop = LoopConfig(n_steps=run.n_steps, checkpoint_every=config.checkpoint_every)
    stopped = run_loop(
        run.state, run.step, loop, directory=directory, fingerprint=content_id("reward", identity), identity=identity,
        reporters=reporters, should_stop=run.should_stop,
    )  # fmt: skip
    check_skipped(run.state, run.state.step)
    if held is not None:
        run.copy.give(trained_weights(run.model))

    # 4. raters and temperature for the final weights, whose products are float32 wherever they are used from here on
    if products_of(trunk.module) is not None:
        use_narrow_products(run.model, None)
        run.held_scores = None
    return _finish(run, how=how, stopped=stopped)


def planned_steps(
    said: Sequence[Statement],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
) -> int:
    """How many optimiser steps `train_reward` takes for these training statements, if no epoch ends it early."""
    return sum(map(len, _plans(feedback_data(said, prompts, responses), config, seed)))


def _plans(data: FeedbackData, config: RewardConfig, seed: int) -> list[list[Minibatch]]:
    rngs = [
        numpy_generator(seed, "reward", "epoch", epoch) if config.shuffle else None for epoch in range(config.n_epochs)
    ]
    return [plan_epoch(data, batch_responses=config.batch_responses, rng=rng) for rng in rngs]


def _start(trunk: Trunk, data: FeedbackData, held: FeedbackData | None, config: RewardConfig, seed: int) -> TrainingRun:
    if config.dropout > 0 and trunk.kind == "decoder":
        raise ConfigError(f"reward: found dropout={config.dropout} with a decoder; expected 0, only encoders have it")
    if not trunk.adapted:  # adapters come with the rest frozen
        trunk.module.requires_grad_(True)
    model = RewardModel(trunk, config.heads, seed=seed, objectives=data.objectives)
    for module in trunk.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    log_length = log_lengths(data.texts)
    channels = [*data.batch.channels, *(held.batch.channels if held else ())]
    start = prior_params(channels, len(data.annotators), config.raters)
    cutpoints, main = dict(start.cutpoints), _main_scale(data)
    for channel in _comparisons(data):
        free = config.heads.length_term and channel is main
        assert isinstance(channel.columns, VoteBatch)
        slope, cutpoints[channel.name] = fit_slope(log_length, channel.columns, cutpoints[channel.name], free=free)
        if channel is main:
            model.length_coef.data.fill_(slope)
    start = dataclasses.replace(start, cutpoints=cutpoints)
    table = RaterTable(start, len(data.texts), len(data.objectives))
    best, copy = BestEpoch(), WeightCopy(trained_weights(model) if held else {})
    modules = {"model": model, "raters": table} | ({"best": copy} if held else {})
    state = TrainState(modules, {"reward": _optimiser(model, config)}, controllers={"best": best})
    return TrainingRun(
        model=model,
        data=data,
        held=held,
        config=config,
        seed=seed,
        encoded=trunk.encode(data.prompts, data.texts),
        log_length=log_length,
        weights=bootstrap_weights(config.heads.n_heads, data.annotators, kind=config.bootstrap, seed=seed),
        table=table,
        best=best,
        copy=copy,
        state=state,
        plans=_plans(data, config, seed),
        one_rater=len(data.annotators) == 1,
    )


def _optimiser(model: RewardModel, config: RewardConfig) -> torch.optim.Optimizer:
    trunk_rate, head_rate = config.learning_rate, config.head_learning_rate
    decayed = [p for p in model.trunk_module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": trunk_rate, "lr_scale": trunk_rate},
        {"params": [model.weight], "lr": head_rate, "lr_scale": head_rate},
    ]
    if model.further_weight.requires_grad:
        groups.append({"params": [model.further_weight], "lr": head_rate, "lr_scale": head_rate})
    if model.length_coef.requires_grad:
        groups.append({"params": [model.length_coef], "lr": head_rate, "lr_scale": head_rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def _comparisons(data: FeedbackData) -> list[Channel]:
    return [channel for channel in data.batch.channels if channel.kind == "comparison" and _has_votes(channel)]


def _has_votes(channel: Channel) -> bool:
    return isinstance(channel.columns, VoteBatch)


def _main_scale(data: FeedbackData) -> Channel | None:
    """The scale of comparisons with the most votes: its cutpoints turn scores into probabilities of a preference."""
    return max(_comparisons(data), key=len, default=None)


def _finish(run: TrainingRun, *, how: str, stopped: str | None) -> RewardFit:
    model, config, data, held = run.model, run.config, run.data, run.held
    raw = score_encoded(model, run.encoded, run.log_length, data.groups, token_budget=config.token_budget)
    params = fit_params(raw.mean(0), data.batch, run.table.params(), config.raters)
    main = _main_scale(data)
    cutpoints = torch.zeros(1) if main is None else params.cutpoints[main.name]
    n_real = len(data.annotators)
    raters = RaterParams(params.competence[:n_real], params.side_bias[:n_real], params.lapse[:n_real], cutpoints)
    metrics = {
        "n_votes": float(sum(map(len, _comparisons(data)))),
        "n_judgements": float(data.n_judgements),
        "n_raters": float(n_real),
        "n_steps": float(run.state.step),
        "n_skipped": float(run.state.n_skipped),
        "length_coef": float((model.length_coef.detach() / model.temperature).mean()),
    }
    findings = [_split_finding(how, stopped, run), *_scale_finding(data.groups)]
    held_raw, temperature = run.held_scores, 1.0  # scores are unknown after a resume
    if held is not None:
        if held_raw is None:
            held_raw = score_data(model, held, token_budget=config.token_budget)
        fitted = fit_feedback_temperature(held_raw, held.batch, params, config.raters)
        temperature = 1.0 if fitted is None or fitted.value is None else fitted.value
        model.temperature.fill_(temperature)
        nll = held_out_nll(
            held_raw, held.batch, params, config.raters, n_judgements=held.n_judgements, temperature=temperature
        )
        metrics |= {
            "temperature": temperature,
            "length_coef": float((model.length_coef.detach() / temperature).mean()),
            "held_out_nll": nll,
            "n_held_out": float(held.n_judgements),
        }
        findings.append(temperature_finding(fitted))
    found = contributions(
        data, raw, params, config.raters, held=held, held_raw=held_raw, temperature=temperature, seed=run.seed
    )
    logits = model.calibrated(raw)
    if run.one_rater:
        findings.append(_one_rater_finding())
    if config.raters.modelled and not run.one_rater and _comparisons(data):
        findings.append(_competence_finding(raters, torch.cat([one.rater for one in _comparisons(data)])))
    return RewardFit(
        model=model,
        annotators=data.annotators,
        raters=raters,
        params=params,
        vote_model=VoteModel(config.raters, tuple(cutpoints.tolist())),
        scale=response_scale(logits[..., 0].mean(0), data.groups),
        reference=logits.mean(1),
        contributions=tuple(found),
        metrics=metrics,
        findings=findings,
        held_out=held.statements if held is not None else (),
        said=data.statements,
    )


def response_scale(mean_logits: Float[Tensor, " N"], groups: Sequence[Sequence[int]]) -> ScoreScale:
    """The optimiser's scale from the training responses: mean, and pooled within-prompt standard deviation."""
    index = torch.empty(len(mean_logits), dtype=torch.long)
    for number, members in enumerate(groups):
        index[list(members)] = number
    return training_scale(mean_logits, index)


def _scale_finding(groups: Sequence[Sequence[int]]) -> list[Finding]:
    if any(len(members) > 1 for members in groups):
        return []
    return [
        Finding(
            "reward.scale",
            "What is one unit of the optimiser's reward?",
            "warn",
            detail=f"the spread over {len(groups)} prompts, for none has two responses: differences between prompts are "
            "in it, and what is better within a prompt was never compared",
        )
    ]


def _split_finding(how: str, stopped: str | None, run: TrainingRun) -> Finding:
    detail = how + (f"; stopped early, {stopped}" if stopped else "")
    if run.held is None:
        return Finding(
            "reward.held_out", "Which votes were held out?", "not measured", detail=f"{detail}; temperature 1"
        )
    return Finding("reward.held_out", "Which votes were held out?", "warn" if run.one_rater else "info", detail=detail)


def _one_rater_finding() -> Finding:
    return Finding(
        "reward.one_rater",
        "Can the raters' competence be told apart?",
        "warn",
        detail="One rater gave all training votes: competence is fixed at 1, and how far others would agree is unknown.",
    )


def _competence_finding(raters: RaterParams, annotator: Tensor) -> Finding:
    n_votes = torch.bincount(annotator, minlength=len(raters.competence))
    low = int((raters.competence <= 0).sum())
    share = float(n_votes[raters.competence <= 0].sum() / n_votes.sum())
    return Finding(
        "reward.competence",
        "How many raters vote against the common reward?",
        "info",
        Estimate(share, None, None, len(n_votes), "share of votes by raters whose most probable competence is ≤ 0"),
        detail=f"{low} of {len(n_votes)} raters; median competence {float(raters.competence.median()):.2f}.",
    )
