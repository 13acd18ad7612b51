"""Cross-validation by topic: how well rewards fitted on some topics predict people on topics never trained on.

Knows votes, a published consensus and fitted predictors; knows nothing about where the votes came from or how a
predictor works.

Dimension letters: S draws, N texts, C comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from karat.errors import InputError
from karat.forecasts import calibration_slope, ece
from karat.records import Estimate, Prompt, Response, Vote
from karat.reward.baselines import Baseline, length_baseline, ngram_baseline
from karat.reward.calibration import VoteModel, decided_probs, predicted_probs, vote_nll
from karat.reward.data import VoteData, vote_data
from karat.reward.raters import RaterPriors
from karat.reward.score import scorer_of
from karat.reward.train import RewardFit
from karat.stats import mean_estimate, paired_difference

N_BOOTSTRAP_SLOPE = 200  # each draw is a regression over all held-out votes


@dataclass(frozen=True)
class Consensus:
    """What was published as the answer to one pair."""

    a: str
    """Response.id of a."""
    b: str
    """Response.id of b."""
    preferred: str | None
    """Response.id of the better one; None = a tie or undecided, which accuracy leaves out."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one predictor says about the texts of a fold."""

    scores: Float[Tensor, "S N"]
    """Logits of each draw, in the order of the texts asked for."""
    vote_model: VoteModel
    """What turns their differences into probabilities."""


Predictor = Callable[[Sequence[Prompt], Sequence[str]], Prediction]


@dataclass(eq=False)
class Rows:
    """Per-row results of one system over all folds so far."""

    correct: list[float] = field(default_factory=list)
    """One entry a decided consensus pair: 1 right, 0 wrong, ½ for equal scores."""
    nll: list[float] = field(default_factory=list)
    """−log P of each held-out vote, nats."""
    p: list[float] = field(default_factory=list)
    """P(a preferred | not a tie) of each held-out vote that is not a tie."""


@dataclass(eq=False)
class Study:
    """Results of all systems on the same rows."""

    systems: dict[str, Rows] = field(default_factory=dict)
    """By name of the system."""
    pair_topic: list[str] = field(default_factory=list)
    """Topic of each decided consensus pair."""
    shorter_won: list[bool] = field(default_factory=list)
    """True where the shorter text is the published answer."""
    vote_topic: list[str] = field(default_factory=list)
    """Topic of each held-out vote."""
    decided_topic: list[str] = field(default_factory=list)
    """Topic of each held-out vote that is not a tie."""
    outcome: list[float] = field(default_factory=list)
    """1 where that vote prefers a."""


def reward_predictors(fit: RewardFit, name: str) -> dict[str, Predictor]:
    """A trained reward model as predictors: as it is, and (if it has one) with its length term left out."""
    scorer = scorer_of(fit)

    def predict(prompts: Sequence[Prompt], texts: Sequence[str]) -> Prediction:
        return Prediction(scorer.logits(prompts, texts), fit.vote_model)

    def predict_without_length(prompts: Sequence[Prompt], texts: Sequence[str]) -> Prediction:
        return Prediction(scorer.logits(prompts, texts, with_length=False), fit.vote_model)

    if not fit.model.config.length_term:
        return {name: predict}
    return {name: predict, f"{name}_without_length_term": predict_without_length}


def baseline_predictors(data: VoteData, priors: RaterPriors, *, ngram_l2: float) -> dict[str, Predictor]:
    """The length and n-gram baselines, fitted to the votes."""
    baselines: dict[str, Baseline] = {
        "length": length_baseline(data, priors),
        "ngram": ngram_baseline(data, priors, l2=ngram_l2),
    }

    def predictor(baseline: Baseline) -> Predictor:
        return lambda _prompts, texts: Prediction(baseline.scores(texts), baseline.vote_model)

    return {name: predictor(baseline) for name, baseline in baselines.items()}


def evaluate_fold(
    study: Study,
    predictors: Mapping[str, Predictor],
    votes: Sequence[Vote],
    consensus: Sequence[Consensus],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
) -> None:
    """Add the results on held-out topics to a study.

    Args:
        votes, consensus: of the held-out topics only.
    Raises: InputError when a consensus names a response without votes.
    """
    data = vote_data(votes, prompts, responses)
    index = {response_id: place for place, response_id in enumerate(data.response_ids)}
    decided = [pair for pair in consensus if pair.preferred is not None]
    for pair in decided:
        if pair.a not in index or pair.b not in index:
            raise InputError(f"study: the consensus names {pair.a!r} and {pair.b!r}; expected responses with votes")
    a, b = (torch.tensor([index[getattr(pair, side)] for pair in decided]) for side in ("a", "b"))
    a_won = np.array([pair.preferred == pair.a for pair in decided])
    lengths = np.array([len(text) for text in data.texts])
    shorter = (lengths[a] < lengths[b]) == a_won
    study.shorter_won.extend((shorter & (lengths[a] != lengths[b])).tolist())
    study.pair_topic.extend(data.prompts[i].topic or "" for i in a.tolist())
    topics = [data.prompts[i].topic or "" for i in data.columns.a.tolist()]
    study.vote_topic.extend(topics)
    for number, (name, predict) in enumerate(predictors.items()):
        prediction = predict(data.prompts, data.texts)
        rows = study.systems.setdefault(name, Rows())
        mean = prediction.scores.mean(0)
        delta = (mean[a] - mean[b]).numpy()
        rows.correct.extend(np.where(delta == 0, 0.5, (delta > 0) == a_won).tolist())
        probs = predicted_probs(prediction.scores, data.columns, prediction.vote_model)
        rows.nll.extend(vote_nll(probs, data.columns).tolist())
        p, outcome, positions = decided_probs(probs, data.columns)
        rows.p.extend(p.tolist())
        if number == 0:
            study.outcome.extend(outcome.tolist())
            study.decided_topic.extend(topics[i] for i in positions.tolist())


def summarise(study: Study, *, baseline: str, rng: np.random.Generator) -> dict[str, dict[str, Estimate]]:
    """Accuracy, the slice where the shorter text won, likelihood and calibration of each system, by name.

    Args:
        baseline: the system that the others are compared with, pair by pair, clustered by topic.
    Raises: InputError for an unknown baseline.
    """
    if baseline not in study.systems:
        raise InputError(f"study: found no system {baseline!r}; expected one of {', '.join(study.systems)}")
    topics, shorter = np.array(study.pair_topic), np.array(study.shorter_won)
    reference = study.systems[baseline]
    summary: dict[str, dict[str, Estimate]] = {}
    for name, rows in study.systems.items():
        correct, base = np.array(rows.correct), np.array(reference.correct)
        summary[name] = {
            "accuracy": mean_estimate(correct, topics, rng),
            "accuracy_shorter_won": mean_estimate(correct[shorter], topics[shorter], rng),
            "vote_nll": mean_estimate(rows.nll, study.vote_topic, rng),
            "ece": ece(rows.p, study.outcome, clusters=study.decided_topic, rng=rng),
            "calibration_slope": calibration_slope(
                rows.p, study.outcome, clusters=study.decided_topic, rng=rng, n_draws=N_BOOTSTRAP_SLOPE
            ),
        }
        if name != baseline:
            summary[name]["accuracy_minus_baseline"] = paired_difference(correct, base, topics, rng)
            summary[name]["nll_minus_baseline"] = paired_difference(rows.nll, reference.nll, study.vote_topic, rng)
    return summary
