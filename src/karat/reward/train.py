"""Reward training: from votes to a model, its raters and its calibration, top to bottom.

The objective is the ordinal choice likelihood of every vote with raters as latent variables. Each head weighs the
raters by its own bootstrap. The trunk takes gradient steps; the raters are fitted exactly, a few times an epoch, to
the scores seen so far. Knows votes, texts and a trunk; knows nothing about where the votes came from or who will use
the scores.

Dimension letters: S heads, C comparisons, N texts, A annotators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from karat.belief import ScoreScale, fit_scale
from karat.choice import RaterParams
from karat.errors import ConfigError
from karat.identity import content_id
from karat.lm.loop import LoopConfig, Reporter, TrainState, check_skipped, run_loop
from karat.records import Estimate, Finding, Prompt, Response, Vote
from karat.reward.calibration import LOG_TEMPERATURE_BOUND, VoteModel, fit_temperature, predicted_probs, vote_nll
from karat.reward.data import Minibatch, VoteData, check_informative, plan_epoch, split_votes, vote_data
from karat.reward.model import RewardModel, bootstrap_weights, log_lengths
from karat.reward.raters import fit_raters, fit_slope, prior_raters
from karat.reward.settings import RewardConfig
from karat.reward.steps import (
    BestEpoch,
    RaterTable,
    TrainingRun,
    WeightCopy,
    comparison_loss,
    score_data,
    score_encoded,
    trained_weights,
)
from karat.reward.trunk import Trunk
from karat.seeding import numpy_generator

__all__ = [
    "RewardConfig",
    "RewardFit",
    "comparison_loss",
    "score_data",
    "score_encoded",
    "train_reward",
    "training_scale",
]


@dataclass(frozen=True, eq=False)
class RewardFit:
    """A trained reward model with all that was estimated beside it."""

    model: RewardModel
    """Trunk and heads, best epoch, temperature set."""
    annotators: tuple[str, ...]
    """Annotator.id of each training rater."""
    raters: RaterParams
    """Their most probable parameters, in raw score units."""
    vote_model: VoteModel
    """Priors and cutpoints: probabilities for new raters."""
    scale: ScoreScale
    """The optimiser's scale of the mean score, from the training responses until policy samples replace it."""
    reference: Float[Tensor, " S"]
    """Mean logit of each head over the training responses."""
    metrics: dict[str, float]
    """Figures of the run: held-out likelihood, temperature, length coefficient, seconds are the loop's."""
    findings: list[Finding]
    """What a reader must know about this fit."""
    held_out: tuple[Vote, ...]
    """Votes that no gradient saw."""


def train_reward(
    trunk: Trunk,
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
    validation: Sequence[Vote] | None = None,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
) -> RewardFit:
    """Fit trunk, heads and raters to votes; the trunk's weights are changed in place.

        max Σ_s Σ_c ω_{s,w(c)}·log P(y_c | r_s, rater w(c))/S + Σ_w log prior(rater w)

    Args:
        prompts, responses: by id; must hold everything that votes name.
        validation: held-out votes for early stopping and temperature, best by raters who are not in `votes`;
            None = `config.holdout_frac` of the raters, by hash.
        directory: for checkpoints and exact resume; None = neither.
    Returns: RewardFit.
    Raises: InputError for no votes, all votes tied, an unknown id or several scales at once; ConfigError.
    """
    # 1. who is held out
    if validation is None:
        train_votes, validation, how = split_votes(votes, holdout_frac=config.holdout_frac)
    else:
        train_votes, how = list(votes), f"{len(validation)} votes held out by the caller"
    data = vote_data(train_votes, prompts, responses)
    check_informative(data)
    held = vote_data(validation, prompts, responses) if validation else None

    # 2. model, raters, optimiser
    run = _start(trunk, data, held, config, seed)

    # 3. gradient steps, raters by turns, best epoch kept
    fingerprint = content_id("reward", [dataclasses.asdict(config), seed, [v.judgement_id for v in train_votes]])
    if directory is not None and config.checkpoint_every == 0:
        directory = None
    loop = LoopConfig(n_steps=run.n_steps, checkpoint_every=config.checkpoint_every)
    stopped = run_loop(
        run.state, run.step, loop, directory=directory, fingerprint=fingerprint, reporters=reporters,
        should_stop=run.should_stop,
    )  # fmt: skip
    check_skipped(run.state, run.state.step)
    if held is not None:
        run.copy.give(trained_weights(run.model))

    # 4. raters and temperature for the final weights
    return _finish(run, how=how, stopped=stopped)


def planned_steps(
    votes: Sequence[Vote],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    config: RewardConfig,
    seed: int,
) -> int:
    """How many optimiser steps `train_reward` takes for these training votes, if no epoch ends it early."""
    return sum(map(len, _plans(vote_data(votes, prompts, responses), config, seed)))


def _plans(data: VoteData, config: RewardConfig, seed: int) -> list[list[Minibatch]]:
    rngs = [
        numpy_generator(seed, "reward", "epoch", epoch) if config.shuffle else None for epoch in range(config.n_epochs)
    ]
    return [plan_epoch(data, batch_responses=config.batch_responses, rng=rng) for rng in rngs]


def _start(trunk: Trunk, data: VoteData, held: VoteData | None, config: RewardConfig, seed: int) -> TrainingRun:
    if config.dropout > 0 and trunk.kind == "decoder":
        raise ConfigError(f"reward: found dropout={config.dropout} with a decoder; expected 0, only encoders have it")
    trunk.module.requires_grad_(True)
    model = RewardModel(trunk, config.heads, seed=seed)
    for module in trunk.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    start = prior_raters(len(data.annotators), data.n_levels, config.raters)
    log_length = log_lengths(data.texts)
    slope, cutpoints = fit_slope(log_length, data.columns, start.cutpoints, free=config.heads.length_term)
    start = dataclasses.replace(start, cutpoints=cutpoints)
    model.length_coef.data.fill_(slope)
    table, best, copy = (
        RaterTable(start, len(data.texts)),
        BestEpoch(),
        WeightCopy(trained_weights(model) if held else {}),
    )
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
    if model.length_coef.requires_grad:
        groups.append({"params": [model.length_coef], "lr": head_rate, "lr_scale": head_rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _finish(run: TrainingRun, *, how: str, stopped: str | None) -> RewardFit:
    model, config = run.model, run.config
    raw = score_encoded(model, run.encoded, run.log_length, run.data.groups, token_budget=config.token_budget)
    raters = fit_raters(raw.mean(0), run.data.columns, run.table.params(), config.raters)
    vote_model = VoteModel(config.raters, tuple(raters.cutpoints.tolist()))
    metrics = {
        "n_votes": float(len(run.data.votes)),
        "n_raters": float(len(run.data.annotators)),
        "n_steps": float(run.state.step),
        "n_skipped": float(run.state.n_skipped),
        "length_coef": float((model.length_coef.detach() / model.temperature).mean()),
    }
    findings = [_split_finding(how, stopped, run)]
    if run.held is not None:
        held_raw = run.held_scores  # unknown after a resume
        if held_raw is None:
            held_raw = score_data(model, run.held, token_budget=config.token_budget)
        temperature = fit_temperature(held_raw, run.held.columns, vote_model)
        model.temperature.fill_(temperature)
        probs = predicted_probs(held_raw, run.held.columns, vote_model, temperature=temperature)
        metrics |= {
            "temperature": temperature,
            "length_coef": float((model.length_coef.detach() / temperature).mean()),
            "held_out_nll": float(vote_nll(probs, run.held.columns).mean()),
            "n_held_out": float(len(run.held.votes)),
        }
        findings.append(_temperature_finding(temperature))
    logits = raw / model.temperature
    if run.one_rater:
        findings.append(_one_rater_finding())
    if config.raters.modelled and not run.one_rater:
        findings.append(_competence_finding(raters, run.data.columns.annotator))
    return RewardFit(
        model=model,
        annotators=run.data.annotators,
        raters=raters,
        vote_model=vote_model,
        scale=training_scale(logits.mean(0), run.data.groups),
        reference=logits.mean(1),
        metrics=metrics,
        findings=findings,
        held_out=run.held.votes if run.held is not None else (),
    )


def training_scale(mean_logits: Float[Tensor, " N"], groups: Sequence[Sequence[int]]) -> ScoreScale:
    """The optimiser's scale from the training responses: mean, and pooled within-prompt standard deviation."""
    index = torch.empty(len(mean_logits), dtype=torch.long)
    for number, members in enumerate(groups):
        index[list(members)] = number
    return fit_scale(mean_logits, index)


def _split_finding(how: str, stopped: str | None, run: TrainingRun) -> Finding:
    detail = how + (f"; stopped early, {stopped}" if stopped else "")
    if run.held is None:
        return Finding(
            "reward.held_out", "Which votes were held out?", "not measured", detail=f"{detail}; temperature 1"
        )
    return Finding("reward.held_out", "Which votes were held out?", "warn" if run.one_rater else "info", detail=detail)


def _temperature_finding(temperature: float) -> Finding:
    at_bound = abs(math.log(temperature)) > 0.99 * LOG_TEMPERATURE_BOUND
    return Finding(
        "reward.temperature",
        "By what were the raw scores divided to become logits?",
        "warn" if at_bound else "info",
        Estimate(temperature, None, None, 1, "maximum likelihood on held-out votes, cutpoints fixed"),
        detail="at the end of its range: the scores say nothing about held-out votes" if at_bound else "",
    )


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
