"""The Bayesian last layer against closed forms, numerical derivatives, a refit, and planted weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from karat.choice import RaterParams, VoteBatch, comparison_loglik
from karat.errors import InputError, PosteriorError
from karat.reward.last_layer import Observations, comparison_observations, fit_last_layer, ordinal_derivatives
from karat.reward.linear_answers import LinearAnswers

CUTPOINTS = {2: [0.0], 3: [-0.5, 0.5], 5: [-1.5, -0.4, 0.4, 1.5]}


def planted(n_texts=40, n_votes=120, d=5, *, n_levels=3, lapse=0.05, seed=0, n_raters=6):
    """Votes of an ordinal rater model on a planted linear reward."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_texts, d))
    truth = rng.standard_normal(d)
    raters = RaterParams(
        torch.tensor(1 + 0.3 * rng.standard_normal(n_raters)),
        torch.tensor(0.3 * rng.standard_normal(n_raters)),
        torch.full((n_raters,), float(lapse), dtype=torch.float64),
        torch.tensor(CUTPOINTS[n_levels], dtype=torch.float64),
    )
    a, b = rng.integers(0, n_texts, (2, n_votes))
    b = np.where(a == b, (b + 1) % n_texts, b)
    side, who = rng.choice([-1.0, 1.0], n_votes), rng.integers(0, n_raters, n_votes)
    eta = raters.competence.numpy()[who] * ((features[a] - features[b]) @ truth) + raters.side_bias.numpy()[who] * side
    uniform = rng.random(n_votes)
    level = sum((uniform > 1 / (1 + np.exp(-(cut - eta)))).astype(int) for cut in CUTPOINTS[n_levels])
    level = np.where(rng.random(n_votes) < lapse, rng.integers(0, n_levels, n_votes), level)
    columns = [torch.tensor(x) for x in (a, b, level, side, who)]
    return features, VoteBatch(*columns, n_levels), raters, truth


def negative_log_posterior(w, features, votes, raters, precision):
    """Written with the likelihood of `choice`, which the product's derivatives do not use."""
    scores = torch.as_tensor(features @ np.asarray(w))
    loglik = comparison_loglik(scores, votes, raters).sum()
    return -float(loglik) + precision * float(np.dot(w, w)) / 2


@pytest.mark.parametrize("lapse", [0.0, 0.2])
@pytest.mark.parametrize("n_levels", [2, 3, 5])
def test_derivatives_of_the_ordinal_likelihood_equal_automatic_ones(n_levels, lapse):
    eta = torch.linspace(-9, 9, 37, dtype=torch.float64).requires_grad_()
    for level in range(n_levels):
        n = len(eta)
        raters = RaterParams(
            torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64),
            torch.full((1,), lapse, dtype=torch.float64), torch.tensor(CUTPOINTS[n_levels], dtype=torch.float64),
        )  # fmt: skip
        zeros = torch.zeros(n, dtype=torch.long)
        votes = VoteBatch(
            torch.arange(n), torch.full((n,), n), torch.full((n,), level), zeros.double(), zeros, n_levels
        )
        loglik = comparison_loglik(torch.cat([eta, torch.zeros(1, dtype=torch.float64)]), votes, raters)
        (first,) = torch.autograd.grad(loglik.sum(), eta, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), eta)
        found = ordinal_derivatives(
            eta.detach().numpy(), np.full(n, level), np.full(n, lapse), np.array(CUTPOINTS[n_levels])
        )
        assert found[0] == pytest.approx(loglik.detach().numpy(), abs=1e-12)
        assert found[1] == pytest.approx(first.detach().numpy(), abs=1e-10)
        assert found[2] == pytest.approx(-second.numpy(), abs=1e-10)
        assert (found[3] >= found[2].clip(min=0) - 1e-15).all()


def test_far_tails_stay_finite():
    found = ordinal_derivatives(np.array([-800.0, 800.0]), np.array([2, 0]), np.zeros(2), np.array([-0.5, 0.5]))
    assert found[0] == pytest.approx([-800.5, -800.5])
    assert all(np.isfinite(column).all() for column in found)


@pytest.mark.parametrize(("n_levels", "lapse"), [(2, 0.0), (3, 0.05), (5, 0.1)])
def test_mode_and_covariance_equal_a_numerical_optimum_and_hessian(n_levels, lapse):
    features, votes, raters, _ = planted(n_levels=n_levels, lapse=lapse)
    found = fit_last_layer(features, [comparison_observations(votes, raters)], prior_precision=0.7)
    best = minimize(
        negative_log_posterior, np.zeros(5), args=(features, votes, raters, 0.7), method="BFGS", options={"gtol": 1e-7}
    )
    assert found.mean == pytest.approx(best.x, abs=1e-4)
    hessian, h = np.zeros((5, 5)), 1e-4
    for i in range(5):
        for j in range(5):
            corners = [
                si * sj * negative_log_posterior(found.mean + h * (si * np.eye(5)[i] + sj * np.eye(5)[j]),
                                                 features, votes, raters, 0.7)
                for si in (1, -1) for sj in (1, -1)
            ]  # fmt: skip
            hessian[i, j] = sum(corners) / (4 * h * h)
    assert np.linalg.inv(found.covariance) == pytest.approx(hessian, abs=1e-3)


def gaussian(target, sd):
    """Answers with a normal likelihood: everything about their posterior is known."""
    n = len(target)

    def derivatives(eta, rows):
        residual = target[rows] - eta
        ones = np.full(len(rows), 1 / sd**2)
        return -(residual**2) / (2 * sd**2) - math.log(sd * math.sqrt(2 * math.pi)), residual / sd**2, ones, ones

    return Observations(np.arange(n), np.full(n, -1), np.ones(n), np.zeros(n), derivatives)


def test_a_normal_likelihood_gives_the_closed_form():
    rng = np.random.default_rng(3)
    x, sd = rng.standard_normal((60, 4)), 0.8
    y = x @ np.array([1.0, -2.0, 0.5, 0.0]) + sd * rng.standard_normal(60)
    found = fit_last_layer(x, [gaussian(y, sd)], prior_precision=1.3)
    precision = x.T @ x / sd**2 + 1.3 * np.eye(4)
    assert found.covariance == pytest.approx(np.linalg.inv(precision), abs=1e-10)
    assert found.mean == pytest.approx(np.linalg.solve(precision, x.T @ y / sd**2), abs=1e-9)
    marginal = sd**2 * np.eye(60) + x @ x.T / 1.3
    log_evidence = -0.5 * (
        60 * math.log(2 * math.pi) + np.linalg.slogdet(marginal)[1] + y @ np.linalg.solve(marginal, y)
    )
    assert found.log_evidence == pytest.approx(log_evidence, rel=1e-10)


def test_the_prior_precision_has_the_highest_evidence_and_finds_the_planted_one():
    rng = np.random.default_rng(5)
    x, sd = rng.standard_normal((400, 200)), 0.5
    y = x @ (rng.standard_normal(200) / math.sqrt(4.0)) + sd * rng.standard_normal(400)
    found = fit_last_layer(x, [gaussian(y, sd)])
    # 200 planted weights: the relative standard error of their precision is √(2/200) = 0.1; 3 of them either way
    assert 4.0 * 0.7 < found.prior_precision < 4.0 * 1.3
    for factor in (0.9, 1.1):
        other = fit_last_layer(x, [gaussian(y, sd)], prior_precision=found.prior_precision * factor)
        assert other.log_evidence < found.log_evidence
    assert 0 < found.n_effective < 200


def test_hessians_over_answers_and_over_texts_agree_and_a_warm_start_changes_nothing(monkeypatch):
    features, votes, raters, _ = planted(n_texts=300, n_votes=290, lapse=0.0)
    few = fit_last_layer(features, [comparison_observations(votes, raters)])
    repeated = VoteBatch(*(torch.cat([c, c]) for c in (votes.a, votes.b, votes.level, votes.side, votes.annotator)), 3)
    twice = fit_last_layer(
        features, [comparison_observations(repeated, raters)], prior_precision=2 * few.prior_precision
    )
    again = fit_last_layer(features, [comparison_observations(votes, raters)], prior_precision=few.prior_precision)
    assert twice.mean == pytest.approx(again.mean, abs=1e-5)
    assert 2 * twice.covariance == pytest.approx(again.covariance, abs=1e-5)
    monkeypatch.setattr("karat.reward.last_layer.WARM_ABOVE", 10)
    warm = fit_last_layer(features, [comparison_observations(votes, raters)], prior_precision=few.prior_precision)
    # above 10 answers the mode is found to 1e-4 nats, √(2·1e-4) posterior standard deviations
    assert np.abs(warm.mean - again.mean).max() < math.sqrt(2e-4) * np.sqrt(np.diag(again.covariance)).max()


@pytest.mark.parametrize("lapse", [0.0, 0.2])
def test_a_mode_found_with_a_sketch_of_the_curvature_is_the_same(monkeypatch, lapse):
    """Lapses bend some answers' likelihood upwards, which must not be lost where curvature is a difference of squares."""
    features, votes, raters, _ = planted(n_texts=1200, n_votes=600, d=20, lapse=lapse)
    answers = [comparison_observations(votes, raters)]
    _, _, exact, _ = answers[0].derivatives(np.linspace(-8, 8, 600), np.arange(600))
    assert (exact < 0).any() == (lapse > 0)
    whole = fit_last_layer(features, answers, tolerance=1e-12)
    sizes = []
    real = LinearAnswers.hessian

    def counted(self, curvature, *, every=1):
        sizes.append(len(self.a) // every)
        found = real(self, curvature, every=every)
        delta = np.concatenate([rows for _, rows in self.deltas(every)])
        assert found == pytest.approx(delta.T @ (every * curvature[::every, None] * delta), abs=1e-9)
        return found

    monkeypatch.setattr(LinearAnswers, "hessian", counted)
    monkeypatch.setattr("karat.reward.last_layer.WARM_ABOVE", 100)
    sketched = fit_last_layer(features, answers, tolerance=1e-12)
    assert set(sizes) == {60, 150, 600}
    sd = np.sqrt(np.diag(whole.covariance))
    # both find the mode of their own prior precision, which is settled to 1 %: it moves mean and spread by less
    assert abs(sketched.prior_precision / whole.prior_precision - 1) < 0.0101
    again = fit_last_layer(features, answers, prior_precision=whole.prior_precision, tolerance=1e-12)
    assert np.abs((again.mean - whole.mean) / sd).max() < 1e-6
    assert again.covariance == pytest.approx(whole.covariance, abs=1e-8)
    assert again.log_evidence == pytest.approx(whole.log_evidence, abs=1e-6)


def test_one_more_answer_is_a_rank_one_update_and_can_be_taken_out_again():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((31, 4)), rng.standard_normal(31)
    before = fit_last_layer(x[:30], [gaussian(y[:30], 1.0)], prior_precision=1.0)
    after = fit_last_layer(x, [gaussian(y, 1.0)], prior_precision=1.0)
    updated = before.observe(x[30], y[30] - x[30] @ before.mean, 1.0)
    assert updated.mean == pytest.approx(after.mean, abs=1e-9)
    assert updated.covariance == pytest.approx(after.covariance, abs=1e-10)
    back = updated.observe(x[30], -(y[30] - x[30] @ updated.mean), -1.0)
    assert back.mean == pytest.approx(before.mean, abs=1e-9)
    assert back.covariance == pytest.approx(before.covariance, abs=1e-10)


def test_draws_have_the_mean_exactly_and_the_covariance_on_average():
    features, votes, raters, _ = planted()
    found = fit_last_layer(features, [comparison_observations(votes, raters)])
    draws = found.draws(20_000, np.random.default_rng(0))
    assert draws.mean(0) == pytest.approx(found.mean, abs=1e-12)
    z = (draws - found.mean) @ np.linalg.inv(np.linalg.cholesky(found.covariance)).T
    # each entry of the covariance of 10,000 independent standard normal draws has a standard error of at most 0.0142
    assert np.abs(z[:10_000].T @ z[:10_000] / 10_000 - np.eye(5)).max() < 4.5 * 0.0142
    delta = features[:7] - features[7:14]
    assert found.variance(delta) == pytest.approx(np.diag(delta @ found.covariance @ delta.T), abs=1e-12)
    with pytest.raises(InputError, match="found 3 draws; expected an even number"):
        found.draws(3, np.random.default_rng(0))


def test_intervals_cover_planted_differences_as_often_as_they_say_and_the_average_is_not_shrunk():
    inside, length, shrunk = [], [], []
    for seed in range(24):
        features, votes, raters, truth = planted(n_texts=60, n_votes=150, d=6, seed=seed)
        answers = [comparison_observations(votes, raters)]
        found = fit_last_layer(features, answers, prior_precision=1.0, averaged=True)
        delta = np.random.default_rng(1000 + seed).standard_normal((20, 6))
        error = np.abs(delta @ (found.mean - truth))
        inside.append((error <= 1.645 * np.sqrt(found.variance(delta))).mean())
        length.append(found.mean @ (truth - found.mean))
        mode = fit_last_layer(features, answers, prior_precision=1.0)
        shrunk.append(mode.mean @ (truth - mode.mean))
    # 90 % intervals; the prior is the planted one, so coverage is exact but for the normal approximation
    assert abs(np.mean(inside) - 0.9) < 3 * np.std(inside, ddof=1) / math.sqrt(24)
    # the mean of a posterior is neither too short nor too long for the truth on average: E[m·(w − m)] = 0
    assert abs(np.mean(length)) < 3 * np.std(length, ddof=1) / math.sqrt(24)
    assert np.mean(shrunk) > np.mean(length)


def test_a_posterior_whose_spread_and_mean_chase_each_other_is_found():
    # a few answers about very large differences: undamped, spread and weights swing around their solution for ever
    rng = np.random.default_rng(0)
    delta = rng.standard_normal((60, 6))
    delta[:2] *= 12
    w = 2 * rng.standard_normal(6)
    level = (rng.random(60) < 1 / (1 + np.exp(-delta @ w))).astype(int)
    answers = Observations(
        np.arange(60), np.full(60, -1), np.ones(60), np.zeros(60),
        lambda eta, rows: ordinal_derivatives(eta, level[rows], np.zeros(len(rows)), np.zeros(1)),
    )  # fmt: skip
    fit = fit_last_layer(delta, [answers], averaged=True, tolerance=1e-6)
    again = fit_last_layer(delta, [answers], averaged=True, tolerance=1e-6, start=fit.mean,
                           prior_precision=fit.prior_precision)  # fmt: skip
    sd = np.sqrt(np.diag(fit.covariance))
    assert np.abs((again.mean - fit.mean) / sd).max() < 0.02
    assert np.abs(np.log(np.diag(again.covariance) / sd**2)).max() < 0.02


def test_what_is_no_posterior_is_named():
    features, votes, raters, _ = planted(lapse=0.0)
    with pytest.raises(InputError, match="found prior precision 0"):
        fit_last_layer(features, [comparison_observations(votes, raters)], prior_precision=0.0)
    with pytest.raises(InputError, match="0 answers; expected finite"):
        fit_last_layer(features, [])
    fit = fit_last_layer(features, [comparison_observations(votes, raters)])
    with pytest.raises(PosteriorError, match="not positive definite; fit again"):
        fit.observe(features[0], 0.0, -1e6)

    def bent(eta, rows):  # a likelihood that is flat in the middle and curves upwards: its mode is a saddle of others
        ones = np.ones(len(rows))
        return 0 * eta, 0 * eta, -ones, ones

    wrong = Observations(np.arange(40), np.full(40, -1), np.ones(40), np.zeros(40), bent)
    with pytest.raises(PosteriorError, match=r"smallest eigenvalue .* larger prior precision"):
        fit_last_layer(features, [wrong], prior_precision=1.0)
