"""Raters of every kind: planted parameters recovered, priors where nothing is known, and the mixture's gain in a world
where everything is linear."""

import dataclasses
from statistics import NormalDist

import numpy as np
import pytest
import torch

from karat.choice import VoteBatch
from karat.feedback_columns import (
    Channel,
    FeedbackBatch,
    FeedbackParams,
    LabelBatch,
    LabelParams,
    RankBatch,
    RatingBatch,
)
from karat.feedback_likelihood import channel_loglik, sample_channel
from karat.ratings import RatingParams, censored_rating_logpdf
from karat.reward.latents import RATING_GAIN, fit_params, prior_params
from karat.reward.prediction import predicted_nll
from karat.reward.raters import RaterPriors
from reference import feedback_loops

N_TEXTS, N_RATERS = 60, 4
PRIORS = RaterPriors()
SCORES = 1.5 * torch.randn(N_TEXTS, generator=torch.Generator().manual_seed(0))


def questions(kind: str, n: int, *, n_levels: int = 3, n_raters: int = N_RATERS, seed: int = 0) -> Channel:
    """n questions of a kind about random texts to random raters, not yet answered."""
    rng = np.random.default_rng(seed)
    width = {"comparison": 2, "correction": 2, "ranking": 4, "best_of": 3}.get(kind, 1)
    texts = torch.tensor(np.array([rng.choice(N_TEXTS, width, replace=False) for _ in range(n)]))
    rater = torch.tensor(rng.integers(n_raters, size=n))
    zeros = torch.zeros(n, dtype=torch.long)
    if kind == "comparison":
        columns = VoteBatch(
            texts[:, 0], texts[:, 1], zeros, torch.tensor(rng.choice([-1.0, 1.0], n)).float(), rater, n_levels
        )
    elif kind == "correction":
        columns = VoteBatch(texts[:, 0], texts[:, 1], zeros, torch.zeros(n), torch.full_like(rater, n_raters), 2)
    elif kind in ("ranking", "best_of"):
        columns = RankBatch(texts, torch.ones_like(texts, dtype=torch.bool), torch.ones_like(texts), rater)
    elif kind == "rating":
        columns = RatingBatch(texts[:, 0], torch.zeros(n), rater)
    elif kind == "steps":
        columns = RatingBatch(texts[:, 0], torch.zeros(n), rater, 5)
    else:
        columns = LabelBatch(texts[:, 0], zeros.bool(), rater)
    given = {"steps": "rating"}.get(kind, kind)
    return Channel(given, given, 0, columns, rater, torch.ones(n), torch.arange(n))


TRUE = FeedbackParams(
    competence=torch.tensor([1.5, 1.0, 0.5, -0.5, 1.0, 1.0, 1.0]),
    side_bias=torch.tensor([0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0]),
    lapse=torch.tensor([0.02, 0.1, 0.02, 0.02, 0.05, 0.05, 0.05]),
    cutpoints={"comparison": torch.tensor([-0.6, 0.6]), "correction": torch.zeros(1)},
    log_tie=torch.tensor([-0.5]),
    ratings={
        "rating": RatingParams(
            torch.tensor([0.4, 0.6, 0.5, 0.5]),
            torch.tensor([0.1, 0.12, 0.14, 0.1]),
            torch.tensor([0.1, 0.2, 0.15, 0.1]),
        )
    },
    labels={"label": LabelParams(torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor(1.0))},
)


def answered(kind: str, n: int, seed: int = 0, **options) -> Channel:
    generator = torch.Generator().manual_seed(seed)
    return sample_channel(SCORES, questions(kind, n, seed=seed, **options), TRUE, generator=generator)


def fitted(*channels: Channel) -> FeedbackParams:
    start = prior_params(channels, N_RATERS, PRIORS)
    return fit_params(SCORES.unsqueeze(1), FeedbackBatch(channels), start, PRIORS)


def test_competence_is_shared_by_all_kinds_that_compare_and_recovered_from_their_mixture():
    found = fitted(answered("comparison", 1500), answered("ranking", 500), answered("best_of", 500))
    error = found.competence[:N_RATERS] - TRUE.competence[:N_RATERS]
    assert float(error.abs().max()) < 0.25
    assert abs(float(found.cutpoints["comparison"][1]) - 0.6) < 0.1
    assert abs(float(found.log_tie[0]) + 0.5) < 0.3


def test_offsets_gains_and_noise_of_ratings_are_recovered():
    comparing = answered("comparison", 400)
    found = fitted(answered("rating", 1600), comparing).ratings["rating"]
    true = TRUE.ratings["rating"]
    assert float((found.offset[:N_RATERS] - true.offset).abs().max()) < 0.03
    assert float((found.gain[:N_RATERS] - true.gain).abs().max()) < 0.02
    assert float((found.sd[:N_RATERS] - true.sd).abs().max()) < 0.03


def test_raters_with_one_rating_each_do_not_explain_the_noise_away():
    """Noise .2 and offsets of sd .15 of the scale: apart they cannot be told, but their sum of squares can."""
    rng, n = np.random.default_rng(0), 60
    asked = questions("rating", n, n_raters=n)
    columns = dataclasses.replace(asked.columns, annotator=torch.arange(n))
    scores = 0.5 * SCORES  # hardly a rating beyond the ends of the scale
    clean = 0.5 + RATING_GAIN * scores[columns.response] + 0.15 * torch.tensor(rng.standard_normal(n)).float()
    columns = dataclasses.replace(columns, value=clean + 0.2 * torch.tensor(rng.standard_normal(n)).float())
    channel = dataclasses.replace(asked, columns=columns, rater=torch.arange(n))
    start = prior_params([channel], n, PRIORS)
    found = fit_params(scores.unsqueeze(1), FeedbackBatch((channel,)), start, PRIORS).ratings["rating"]
    assert 0.15 < float(found.sd[-1]) < 0.27


def test_ratings_in_whole_steps_are_no_more_precise_than_their_rounding():
    """Seven steps, and everybody always says the middle one."""
    asked = questions("rating", 40)
    for step, least in ((1 / 6, 1 / 6 / 12**0.5), (0.0, 0.01)):
        columns = dataclasses.replace(asked.columns, value=torch.full((40,), 0.5), step=step)
        found = fitted(dataclasses.replace(asked, columns=columns)).ratings["rating"]
        assert least <= float(found.sd.min()) < least + 0.02


@pytest.mark.parametrize("step", [0.0, 1 / 6])
def test_ratings_at_an_end_of_the_scale_are_there_or_beyond(step):
    """log Φ at the ends, by numbers; draws are censored as the likelihood says; planted parameters are found from many of them."""
    value, mean, sd = (
        torch.tensor([0.0, 1.0, 0.5]),
        torch.tensor([0.1, 0.7, 0.4]).double(),
        torch.full((3,), 0.2).double(),
    )
    found = censored_rating_logpdf(value, mean, sd, step=step)
    normal = NormalDist(0, 0.2)
    by_hand = [normal.cdf(step / 2 - 0.1), normal.cdf(0.7 - 1 + step / 2), normal.pdf(0.1)]
    assert found.exp().tolist() == pytest.approx(by_hand, rel=1e-6)
    columns = dataclasses.replace(questions("rating", 1600).columns, step=step)
    question = dataclasses.replace(questions("rating", 1600), columns=columns)
    ends = RatingParams(torch.tensor([0.8, 0.6, 0.9, 0.7]), torch.full((4,), 0.12), torch.full((4,), 0.15))
    truth = dataclasses.replace(TRUE, ratings={"rating": ends})
    given = sample_channel(SCORES, question, truth, generator=torch.Generator().manual_seed(0))
    at_top = float((given.columns.value == 1).float().mean())
    assert at_top > 0.15
    assert 0 <= float(given.columns.value.min()) <= float(given.columns.value.max()) == 1
    own = fitted(given, answered("comparison", 400)).ratings["rating"]
    assert float((own.offset[:N_RATERS] - ends.offset).abs().max()) < 0.04
    assert abs(float(own.gain[-1]) - 0.12) < 0.03
    assert abs(float(own.sd[-1]) - 0.15) < 0.03


def test_thresholds_of_labels_are_recovered():
    found = fitted(answered("label", 2000)).labels["label"]
    assert float((found.threshold[:N_RATERS] - TRUE.labels["label"].threshold).abs().max()) < 0.35
    assert float(found.gain) == 1.0  # nobody compares, so the labels set the scale


def test_the_gain_of_ratings_is_the_scale_where_nobody_compares_and_free_where_somebody_does():
    alone = fitted(answered("rating", 300)).ratings["rating"]
    assert float(alone.gain[-1]) == pytest.approx(RATING_GAIN, rel=1e-5)
    among = fitted(answered("rating", 300), answered("comparison", 100)).ratings["rating"]
    assert abs(float(among.gain[-1]) - 0.115) < 0.03


def test_a_virtual_rater_learns_how_much_better_what_was_written_is():
    """Corrections that are no better than their originals earn a competence near 0, not a larger reward."""
    useless = dataclasses.replace(questions("correction", 400), name="correction")
    columns = dataclasses.replace(useless.columns, level=torch.ones(400, dtype=torch.long))
    found = fitted(dataclasses.replace(useless, columns=columns), answered("comparison", 300))
    assert abs(float(found.competence[N_RATERS])) < 0.3
    better = questions("correction", 400)
    delta = SCORES[better.columns.a] - SCORES[better.columns.b]
    kept = better.select(delta > 1)
    columns = dataclasses.replace(kept.columns, level=torch.ones(len(kept), dtype=torch.long))
    found = fitted(dataclasses.replace(kept, columns=columns), answered("comparison", 300))
    assert float(found.competence[N_RATERS]) > 1.0


def test_a_rater_of_whom_nothing_is_known_stays_at_the_prior():
    silent = [answered(kind, 200, n_raters=3) for kind in ("comparison", "rating", "label")]
    found = fitted(*silent)
    assert float(found.competence[3]) == pytest.approx(1.0, abs=1e-5)
    assert float(found.ratings["rating"].offset[3]) == pytest.approx(
        float(found.ratings["rating"].offset[-1]), abs=1e-5
    )
    assert float(found.labels["label"].threshold[3]) == pytest.approx(
        float(found.labels["label"].threshold[-1]), abs=1e-5
    )


def test_ordinal_ratings_recover_their_cutpoints():
    cuts = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    own = RatingParams(torch.zeros(N_RATERS), torch.ones(N_RATERS), torch.ones(N_RATERS), cuts)
    true = dataclasses.replace(TRUE, ratings={"rating": own})
    drawn = sample_channel(SCORES, questions("steps", 2000), true, generator=torch.Generator().manual_seed(1))
    found = fitted(drawn).ratings["rating"]
    assert float((found.cutpoints - cuts).abs().max()) < 0.25


def test_what_new_raters_say_is_predicted_by_integrating_their_priors():
    one = {kind: answered(kind, 1, seed=3) for kind in ("ranking", "label", "rating")}
    params = fitted(*(answered(kind, 50) for kind in one))
    heads = torch.stack([SCORES, 0.5 * SCORES]).double()
    label, rating, ranking = one["label"].columns, one["rating"].columns, one["ranking"].columns
    i, good = int(label.response[0]), bool(label.good[0])
    own = params.labels["label"]
    expected = np.mean(
        [
            feedback_loops.normal_mean(
                lambda t, s=s: feedback_loops.label(float(s), good, t, float(own.gain)), float(own.threshold[-1]), 1.0
            )
            for s in heads[:, i]
        ]
    )
    assert float(predicted_nll(heads, one["label"], params, PRIORS).exp()) == pytest.approx(1 / expected, rel=1e-6)
    i, y = int(rating.response[0]), float(rating.value[0])
    offset, gain, sd = (float(value[-1]) for value in vars(params.ratings["rating"]).values() if value is not None)
    expected = np.mean(
        [
            feedback_loops.gaussian_rating(
                float(s),
                y,
                offset,
                gain,
                np.sqrt(sd**2 + PRIORS.offset_sd**2 + (PRIORS.gain_sd * gain * float(s)) ** 2),
            )
            for s in heads[:, i]
        ]
    )
    assert float(predicted_nll(heads, one["rating"], params, PRIORS).exp()) == pytest.approx(1 / expected, rel=1e-5)
    ids, ranks = ranking.responses[0].tolist(), ranking.ranks[0].tolist()
    tie = params.log_tie.exp().tolist()
    expected = np.mean(
        [
            feedback_loops.normal_mean(
                lambda a, row=row: feedback_loops.ranking([float(row[j]) for j in ids], ranks, (a, 0, 0.05), tie),
                1.0, PRIORS.competence_sd, 201,
            )
            for row in heads
        ]
    )  # fmt: skip
    assert float(predicted_nll(heads, one["ranking"], params, PRIORS).exp()) == pytest.approx(1 / expected, rel=1e-4)


def test_a_mixture_finds_a_planted_linear_reward_better_than_each_of_its_kinds_alone():
    """24 worlds; the mean cosine of the mixture above that of every kind, paired, by more than 2 standard errors."""
    kinds = {"comparison": 40, "ranking": 12, "rating": 40, "label": 40}
    cosines = {name: [] for name in (*kinds, "mixture")}
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(N_TEXTS, 8, generator=generator)
        weight = torch.randn(8, generator=generator)
        true = dataclasses.replace(TRUE, competence=torch.ones(7), side_bias=torch.zeros(7), log_tie=None)
        drawn = {
            kind: sample_channel(features @ weight, questions(kind, n, seed=seed), true, generator=generator)
            for kind, n in kinds.items()
        }
        for name in cosines:
            channels = tuple(drawn.values()) if name == "mixture" else (drawn[name],)
            cosines[name].append(float(torch.cosine_similarity(linear_fit(features, channels, true), weight, dim=0)))
    for kind in kinds:
        gain = np.array(cosines["mixture"]) - np.array(cosines[kind])
        assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)), (kind, gain.mean())


def linear_fit(features: torch.Tensor, channels: tuple[Channel, ...], params: FeedbackParams) -> torch.Tensor:
    """The most probable weights under N(0, 1) for known raters."""
    weight = torch.zeros(features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = weight.square().sum() / 2
        loss = loss - sum(channel_loglik(features @ weight, one, params).sum() for one in channels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach()
