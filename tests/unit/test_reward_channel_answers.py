"""A last layer from every kind of feedback: mode and covariance against dense oracles, planted weights, honest intervals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from karat.errors import ConvergenceError
from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams, LabelParams, RatingBatch
from karat.feedback_likelihood import channel_loglik, sample_channel
from karat.ratings import RatingParams, censored_precision
from karat.reward import channel_answers
from karat.reward.channel_answers import batch_answers, centred_params
from karat.reward.last_layer import fit_last_layer
from karat.reward.latents import prior_params
from karat.reward.layer_turns import fit_by_turns
from karat.reward.linear_answers import LinearAnswers, _ball
from karat.reward.objective_layer import fit_objective, joined_params, spoken_about
from karat.reward.raters import RaterPriors
from karat.reward.settings import LaplaceConfig, RewardConfig
from kind_worlds import N_RATERS, N_TEXTS, D, asked, known_raters, planted

PRIORS = RaterPriors()
KINDS = (
    "comparison",
    "strength",
    "correction",
    "demonstration",
    "ranking",
    "tied ranking",
    "best_of",
    "rating",
    "steps",
    "label",
)


def without_ties(kind, params):
    return dataclasses.replace(params, log_tie=None) if kind == "ranking" else params


def answered(kind, n, features, truth, params, seed=0):
    question = asked(kind, n, seed, n_texts=len(features), n_raters=len(params.competence) - 3)
    generator = torch.Generator().manual_seed(seed)
    return sample_channel(torch.from_numpy(features @ truth), question, without_ties(kind, params), generator=generator)


def loss(w, features, channels, params, precision):
    """−log posterior, by the likelihood that trains and simulates; knows nothing of answers or derivatives."""
    scores = features @ w
    total = sum((channel_loglik(scores, channel, params) * channel.weight.double()).sum() for channel in channels)
    return precision * (w @ w) / 2 - total


def dense_oracle(features, channels, params, precision):
    """Mode and inverse Hessian by a general optimiser and by numerical derivatives, in float64."""
    f = lambda w: float(loss(torch.from_numpy(w), torch.from_numpy(features), channels, params, precision))  # noqa: E731
    d, h = features.shape[1], 1e-4
    best = minimize(f, np.zeros(d), method="BFGS", options={"gtol": 1e-8}).x
    hessian, unit = np.zeros((d, d)), h * np.eye(d)
    for i in range(d):
        for j in range(d):
            corners = [si * sj * f(best + si * unit[i] + sj * unit[j]) for si in (1, -1) for sj in (1, -1)]
            hessian[i, j] = sum(corners) / (4 * h * h)
    return best, np.linalg.inv(hessian)


def answers_to(channels, params, **options):
    return batch_answers(FeedbackBatch(tuple(channels)), params, PRIORS, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_and_covariance_of_each_kind_equal_a_dense_oracle(kind):
    features, truth = planted()
    params = without_ties(kind, known_raters())
    channel = answered(kind, 60, features, truth, params)
    found = fit_last_layer(features, answers_to([channel], params, known=True), prior_precision=0.7)
    mode, covariance = dense_oracle(features, [channel], params, 0.7)
    assert found.mean == pytest.approx(mode, abs=1e-4)
    assert found.covariance == pytest.approx(covariance, abs=1e-3 * covariance.max())


def mixture(features, truth, params, n=30, kinds=KINDS):
    return [answered(kind, n, features, truth, params, seed) for seed, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "n"),
    [
        (tuple(kind for kind in KINDS if kind != "ranking"), 30),
        (("label", "best_of"), 12),
        (("best_of", "tied ranking"), 20),
    ],
)  # rankings share one model of ties; few answers are summed one by one, many by text
def test_mode_and_covariance_of_a_mixture_equal_a_dense_oracle(kinds, n):
    features, truth = planted(1)
    params = known_raters(1)
    channels = mixture(features, truth, params, n, kinds)
    found = fit_last_layer(features, answers_to(channels, params, known=True), prior_precision=0.7)
    mode, covariance = dense_oracle(features, channels, params, 0.7)
    assert found.mean == pytest.approx(mode, abs=1e-4)
    assert found.covariance == pytest.approx(covariance, abs=1e-3 * covariance.max())


def test_curvature_of_a_choice_with_lapses_is_exact_and_its_stand_in_is_never_negative():
    features, truth = planted(2)
    params = dataclasses.replace(known_raters(2), lapse=torch.full((N_RATERS + 3,), 0.4, dtype=torch.float64))
    for kind in ("tied ranking", "best_of"):
        channel = answered(kind, 40, features, -truth, params)  # answers that surprise: a lapse bends their likelihood
        (answers,) = answers_to([channel], params)
        scores = torch.from_numpy(features @ (3 * truth))[channel.texts]
        _, first, exact, working = answers.derivatives(scores.numpy(), np.arange(40), True)

        def of(leaf, channel=channel):
            flat = torch.zeros(N_TEXTS, dtype=torch.float64).index_put((channel.texts[0],), leaf)
            return channel_loglik(flat, channel.select(torch.tensor([0])), params).sum()

        assert exact[0] == pytest.approx(-torch.autograd.functional.hessian(of, scores[0]).numpy(), abs=1e-9)
        assert first[0] == pytest.approx(torch.autograd.functional.jacobian(of, scores[0]).numpy(), abs=1e-9)
        assert np.linalg.eigvalsh(exact).min() < -1e-3
        assert np.linalg.eigvalsh(working).min() > -1e-12


def moved_raters(kind, params, middle, z, priors):
    """The parameters with common and own deviations, each in units of its own prior's standard deviation."""
    own = z if priors.modelled else 0 * z
    if kind == "label":
        old = params.labels[kind]
        label = LabelParams(old.threshold + 10 * middle[0] + priors.threshold_sd * own[:, 0], old.gain)
        return dataclasses.replace(params, labels={kind: label})
    if kind in ("rating", "steps"):
        old, size = params.ratings[kind], (8 if kind == "steps" else 1) * priors.offset_sd
        gain = old.gain * (priors.gain_sd * own[:, 1]).exp()
        rating = dataclasses.replace(old, offset=old.offset + 1e3 * middle[0] + size * own[:, 0], gain=gain)
        return dataclasses.replace(params, ratings={kind: rating})
    none = torch.zeros(3, dtype=torch.float64)
    competence = params.competence + torch.cat([priors.competence_sd * own[:, 0], none])
    side = params.side_bias + torch.cat([priors.side_bias_sd * own[:, 1], none])
    return dataclasses.replace(params, competence=competence, side_bias=side)


@pytest.mark.parametrize("kind", ["label", "rating", "steps", "comparison", "best_of"])
@pytest.mark.parametrize("modelled", [True, False])
def test_what_is_not_known_of_raters_is_in_the_covariance(kind, modelled):
    """Beside the inverse of the whole matrix over weights, the population's parameters and every rater's own.

    The matrix is that of Gauss and Newton: curvatures by each predictor, in closed form, between its derivatives by automatic
    differentiation.
    """
    features, truth = planted(3)
    params, priors = known_raters(3), dataclasses.replace(PRIORS, modelled=modelled)
    params = dataclasses.replace(params, lapse=torch.zeros(N_RATERS + 3, dtype=torch.float64), log_tie=None)
    channel = answered(kind, 60, features, truth, params)
    batch = FeedbackBatch((channel,))
    found = fit_last_layer(features, batch_answers(batch, params, priors), prior_precision=0.7)
    known = fit_last_layer(features, batch_answers(batch, params, priors, known=True), prior_precision=0.7)
    assert found.mean == pytest.approx(known.mean, abs=1e-9)
    assert found.log_evidence == pytest.approx(known.log_evidence, abs=1e-9)
    if not modelled and kind in ("comparison", "best_of"):
        assert found.covariance == pytest.approx(known.covariance, abs=1e-12)
        return
    assert np.trace(found.covariance) > 1.01 * np.trace(known.covariance)
    at = torch.cat([torch.from_numpy(found.mean), torch.zeros(1 + 2 * N_RATERS, dtype=torch.float64)])
    texts = torch.from_numpy(features)[channel.texts]

    def local(x):
        """What each statement's likelihood reads, as a function of everything: its predictors."""
        w, middle, z = x[:D], x[D : D + 1], x[D + 1 :].reshape(N_RATERS, 2)
        now = moved_raters(kind, params, middle, z, priors)
        who, r = channel.columns.annotator, texts @ w
        if kind == "label":
            return (now.labels[kind].gain * r[:, 0] - now.labels[kind].threshold[who]).unsqueeze(1)
        if kind in ("rating", "steps"):
            own = now.ratings[kind]
            return (own.gain[who] * r[:, 0] + own.offset[who]).unsqueeze(1)
        if kind == "comparison":
            return (now.competence[who] * (r[:, 0] - r[:, 1]) + now.side_bias[who] * channel.columns.side).unsqueeze(1)
        return now.competence[who].unsqueeze(1) * r

    jacobian = torch.autograd.functional.jacobian(local, at)  # [C, k, everything]
    eta = local(at).numpy()
    if kind == "rating":
        inner = np.full((60, 1, 1), 1 / 0.12**2)
    elif kind == "best_of":
        p = np.exp(eta) / np.exp(eta).sum(1, keepdims=True)
        inner = np.einsum("ci,ij->cij", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    else:
        cuts = {"label": [0.0], "steps": [-2.0, -0.6, 0.3, 2.2], "comparison": [-0.5, 0.5]}[kind]
        edges = 1 / (1 + np.exp(-(np.array([-np.inf, *cuts, np.inf])[None] - eta)))
        level = {"label": lambda c: c.good.long(), "steps": lambda c: c.value.long(), "comparison": lambda c: c.level}[
            kind
        ](channel.columns)
        slopes = edges * (1 - edges)
        rows = np.arange(60)
        inner = (slopes[rows, level + 1] + slopes[rows, level])[:, None, None]
    whole = np.einsum("cki,ckl,clj->ij", jacobian.numpy(), inner, jacobian.numpy())
    whole += np.diag([0.7] * D + [1.0] * (1 + 2 * N_RATERS))
    assert found.covariance == pytest.approx(np.linalg.inv(whole)[:D, :D], abs=1e-6)


def test_raters_who_lapse_leave_a_posterior():
    """Lapses bend the likelihood of surprising answers upwards: what they say of a rater may not be taken off what they say of weights."""
    features, truth = planted(0, 1200, 64)
    params = without_ties("ranking", known_raters(0, 20))
    channel = answered("ranking", 300, features, truth, params)
    found = fit_last_layer(features, answers_to([channel], params), prior_precision=1e-3)
    known = fit_last_layer(features, answers_to([channel], params, known=True), prior_precision=1e-3)
    assert np.linalg.eigvalsh(found.covariance - known.covariance).min() > -1e-9
    assert np.trace(found.covariance) > np.trace(known.covariance)


def test_points_of_the_average_have_the_moments_of_a_normal():
    for k in (2, 3, 4, 6):
        points, weights = _ball(k)
        assert weights.sum() == pytest.approx(1)
        assert (weights[:, None] * points).sum(0) == pytest.approx(np.zeros(k), abs=1e-12)
        assert np.einsum("p,pi,pj->ij", weights, points, points) == pytest.approx(np.eye(k), abs=1e-12)
        if k <= 4:  # E x⁴ = 3, E x²y² = 1
            fourth = np.einsum("p,pi,pj->ij", weights, points**2, points**2)
            assert fourth == pytest.approx(np.ones((k, k)) + 2 * np.eye(k), abs=1e-12)


def test_slopes_and_curvatures_of_choices_are_averaged_over_what_is_not_known_of_the_weights():
    """Beside a product rule of 11³ points."""
    features, truth = planted(4)
    params = known_raters(4)
    channels = [answered("label", 3, features, truth, params), answered("best_of", 3, features, truth, params)]
    answers = answers_to(channels, params)
    problem = LinearAnswers(features, answers)
    factor = 0.25 * np.linalg.cholesky(np.eye(D) + 0.3)
    problem.spread = problem.spread_under(factor)
    value, first, exact, _ = problem.at(truth)
    rows = features[channels[1].texts.numpy()]
    covariance = rows @ (factor @ factor.T) @ rows.transpose(0, 2, 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(11)
    points = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3)
    weight = np.prod(np.stack(np.meshgrid(weights, weights, weights), axis=-1).reshape(-1, 3), axis=1)
    for c in range(3):
        moved = rows[c] @ truth + points @ np.linalg.cholesky(covariance[c] + 1e-9 * np.eye(3)).T
        each = answers[1].derivatives(moved, np.full(len(moved), c), True)
        by_rule = [np.tensordot(weight / weight.sum(), column, 1) for column in each[:3]]
        found = [value[3 + c], first[3:].reshape(3, 3)[c], exact[3:].reshape(3, 3, 3)[c]]
        mode = [column[0] for column in answers[1].derivatives((rows[c] @ truth)[None], np.array([c]), True)[:3]]
        errors = [np.abs(one - rule).max() for one, rule in zip(found, by_rule, strict=True)]
        gains = [np.abs(one - rule).max() for one, rule in zip(mode, by_rule, strict=True)]
        print(errors, gains)
        assert max(errors) < 0.05 * max(gains)


def test_twice_the_scores_and_half_of_every_competence_and_gain_are_the_same_statements():
    features, truth = planted(5)
    params = known_raters(5)
    channels = [answered(kind, 20, features, truth, params) for kind in ("strength", "correction", "steps", "label")]
    found = centred_params(params, FeedbackBatch(tuple(channels)), N_RATERS)
    mean = float(params.competence[channels[0].rater.unique()].mean())
    scores = torch.from_numpy(features @ truth)
    for channel in channels:
        now = channel_loglik(mean * scores, channel, found)
        assert torch.allclose(now, channel_loglik(scores, channel, params), atol=1e-9)
    assert float(found.competence[channels[0].rater.unique()].mean()) == pytest.approx(1)
    only = FeedbackBatch((channels[3],))
    assert centred_params(params, only, N_RATERS) is params
    against = dataclasses.replace(params, competence=-params.competence)
    with pytest.raises(ConvergenceError, match="mean competence is -"):
        centred_params(against, FeedbackBatch((channels[0],)), N_RATERS)


@pytest.mark.parametrize("kinds", [("label",), ("comparison", "best_of", "label", "rating")])
def test_planted_weights_are_found_and_intervals_cover_them_as_often_as_they_say(kinds):
    """Raters who are alike, with offset, threshold, gain and cutpoints to be found along."""
    priors, inside, along = dataclasses.replace(PRIORS, modelled=False), [], []
    for seed in range(16):
        features, truth = planted(seed, n_texts=120)
        params = dataclasses.replace(known_raters(spread=0.0), lapse=torch.zeros(N_RATERS + 3).double())
        gain = LabelParams(
            params.labels["label"].threshold, torch.tensor(1.0).double()
        )  # the scale, where nobody compares
        params = dataclasses.replace(params, competence=torch.ones(N_RATERS + 3).double(), labels={"label": gain})
        channels = [
            answered(kind, 150 // len(kinds), features, truth, params, 50 * seed + i) for i, kind in enumerate(kinds)
        ]
        found = fit_by_turns(
            features, FeedbackBatch(tuple(channels)), prior_params(channels, N_RATERS, priors), priors, n_people=N_RATERS,
            start=np.zeros(D), prior_precision=1.0, averaged=True,
        ).posterior  # fmt: skip
        delta = np.random.default_rng(1000 + seed).standard_normal((20, D))
        error = np.abs(delta @ (found.mean - truth))
        inside.append((error <= 1.645 * np.sqrt(found.variance(delta))).mean())
        along.append(found.mean @ truth / np.linalg.norm(found.mean) / np.linalg.norm(truth))
    assert abs(np.mean(inside) - 0.9) < 3 * np.std(inside, ddof=1) / math.sqrt(16)
    assert np.mean(along) > 0.8


def test_a_rating_far_below_the_end_that_it_was_given_weighs_as_one_within_the_scale():
    """Mills' ratio: m·(m + t) → 1 for t → −∞, where φ and Φ are both 0; scores may pass there on their way."""
    t = np.array([-30.0, -1e2, -1e4, -1e6])
    n = len(t)
    columns = RatingBatch(torch.arange(n), torch.ones(n), torch.zeros(n, dtype=torch.long), step=0.0)
    params = RatingParams(torch.ones(1), torch.zeros(1), torch.ones(1))
    _, first, exact, working = channel_answers._ratings(columns, params).derivatives(t + 1, np.arange(n))
    assert first / -t == pytest.approx(1 + 1 / t**2, rel=1e-5)
    assert exact == pytest.approx(1 - 1 / t**2, rel=1e-4)
    assert (working == exact).all()
    for kind in (torch.float32, torch.float64):
        mean = torch.from_numpy(t + 1).to(kind)
        found = censored_precision(torch.ones(n), mean, torch.ones(1), step=0.0)
        assert found.dtype == kind
        assert found.tolist() == pytest.approx((1 - 1 / t**2).tolist(), rel=1e-3)


def test_ratings_at_the_end_of_the_scale_do_not_say_that_responses_are_equal():
    """The best third of the texts, all rated at the top: what comparisons say of their differences stays."""
    features, truth = planted(7, n_texts=60)
    params = dataclasses.replace(known_raters(spread=0.0), competence=torch.ones(N_RATERS + 3).double())
    compared = answered("comparison", 300, features, 2 * truth, params)
    best = torch.from_numpy(np.argsort(features @ truth)[-20:].copy())
    n, who = 100, torch.arange(100) // 20
    columns = RatingBatch(best.repeat(5), torch.ones(n), who, step=1 / 6)
    rated = Channel("rating", "rating", 0, columns, who, torch.ones(n), torch.arange(n))
    spread = {}
    for name, channels in {"without": [compared], "with": [compared, rated]}.items():
        priors = dataclasses.replace(PRIORS, modelled=False)
        found = fit_by_turns(
            features, FeedbackBatch(tuple(channels)), prior_params(channels, N_RATERS, priors), priors, n_people=N_RATERS,
            start=np.zeros(D), prior_precision=0.1,
        ).posterior  # fmt: skip
        spread[name] = float((features[best] @ found.mean).std())
    assert spread["with"] > 0.97 * spread["without"]


def test_objectives_are_fitted_one_by_one_as_all_of_them_together_would_be(monkeypatch):
    """Beside a general optimiser over the weights of both, with numerical second derivatives between them."""
    monkeypatch.setattr("karat.reward.objective_layer.AVERAGED_UP_TO", 0)
    features, truth = planted(6)
    params = without_ties("ranking", known_raters(6, spread=0.3))
    told = {"preference": (truth, ("comparison", "ranking", "label")), "kind": (-truth[::-1], ("rating", "steps"))}
    channels = []
    for number, (likes, kinds) in enumerate(told.values()):
        channels += [
            dataclasses.replace(answered(kind, 60, features, likes, params, i), objective=number)
            for i, kind in enumerate(kinds)
        ]
    config = RewardConfig(laplace=LaplaceConfig(n_draws=2, tastes=False, prior_precision=0.7))
    batch = FeedbackBatch(tuple(channels))
    layers = [
        fit_objective(
            spoken_about(batch, number, name, features, ()), prior_params(channels, N_RATERS, PRIORS), np.zeros(D),
            n_people=N_RATERS, config=config, rng=np.random.default_rng(0),
        )
        for number, name in enumerate(told)
    ]  # fmt: skip
    found = joined_params(prior_params(channels, N_RATERS, PRIORS), layers, batch)
    assert set(found.ratings) == {"rating", "steps"}
    known = FeedbackParams(
        *(getattr(found, name).double() for name in ("competence", "side_bias", "lapse")),
        {name: one.double() for name, one in found.cutpoints.items()}, None, found.ratings, found.labels,
    )  # fmt: skip

    def loss_of(both):
        return sum(
            loss(
                w, torch.from_numpy(features - layer.centre), [c for c in channels if c.objective == number], known, 0.7
            )
            for number, (w, layer) in enumerate(zip(both.split(D), layers, strict=True))
        )

    at = torch.from_numpy(np.concatenate([layer.posterior.mean for layer in layers])).requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(at), at)
    curvature = torch.autograd.functional.hessian(loss_of, at.detach())
    assert float(slope.abs().max()) < 1e-3  # the weights of both are at their joint mode
    assert float(curvature[:D, D:].abs().max()) < 1e-9
    for number, layer in enumerate(layers):
        own = slice(number * D, (number + 1) * D)
        exact = np.linalg.inv(curvature[own, own].numpy())
        assert np.linalg.eigvalsh(layer.posterior.covariance - exact).min() > -1e-6  # raters are known only so well
