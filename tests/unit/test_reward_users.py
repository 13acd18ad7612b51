"""Hierarchical users: the linear maximum, the bound, the EM and a person's posterior, against loops and grids."""

import numpy as np
import pytest
from scipy.optimize import minimize

from karat.errors import ConvergenceError, InputError
from karat.reward.bound import best_steps, expected_terms
from karat.reward.linear_votes import LinearVotes, edges, fit_linear, level_probs, slopes, steps_of
from karat.reward.user_em import UserPriors, choose_rank, fit_users, held_out_mask, respread
from karat.reward.users import evidence, posterior_of, predicted_probs
from people_worlds import answers, planted_people
from reference import people_loops


def slow_linear(votes, parameters, d, weights=None):
    theta, steps = parameters[:d], parameters[d:]
    if (steps <= 0).any():
        return np.inf
    cuts = edges(steps, votes.n_levels)[1:-1]
    total = float(np.log(steps).sum() - 2 * steps.sum() - 0.5 * theta @ theta)
    for i in range(len(votes)):
        weight = 1.0 if weights is None else weights[i]
        total += weight * np.log(people_loops.level_prob(votes.x[i] @ theta + votes.offset[i], votes.level[i], cuts))
    return -total


@pytest.mark.parametrize("n_levels", [2, 3, 4, 5])
def test_link_sums_to_one_and_has_the_slopes_of_its_likelihood(n_levels):
    cuts = edges(np.array([0.4, 0.8])[: (n_levels - 1) // 2], n_levels)
    eta = np.linspace(-6, 6, 13)
    each = np.stack([np.exp(slopes(eta, np.full(13, k), cuts).loglik) for k in range(n_levels)], axis=1)
    assert each.sum(1) == pytest.approx(np.ones(13), abs=1e-12)
    assert each[4, 1] == pytest.approx(people_loops.level_prob(eta[4], 1, cuts[1:-1]), abs=1e-12)
    for level in range(n_levels):
        found = slopes(eta, np.full(13, level), cuts)
        up, down = (slopes(eta + h, np.full(13, level), cuts) for h in (1e-5, -1e-5))
        assert found.first == pytest.approx((up.loglik - down.loglik) / 2e-5, abs=1e-6)
        assert found.second == pytest.approx((up.first - down.first) / 2e-5, abs=1e-6)
    assert np.isfinite(slopes(np.array([-800.0, 800.0]), np.array([n_levels - 1, 0]), cuts).loglik).all()


@pytest.mark.parametrize("n_levels", [2, 5])
def test_linear_fit_is_the_maximum_of_the_slow_posterior(n_levels):
    votes, *_ = planted_people(4, 4, d=2, n_levels=n_levels, seed=3)
    weights = np.random.default_rng(0).random(len(votes))
    fit = fit_linear(votes, weights=weights)
    n_steps = (n_levels - 1) // 2
    oracle = minimize(
        lambda p: slow_linear(votes, p, 2, weights), np.concatenate([np.zeros(2), np.full(n_steps, 0.5)]),
        method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 800, "maxfev": 800},
    )  # fmt: skip
    assert np.concatenate([fit.theta, fit.steps]) == pytest.approx(oracle.x, abs=1e-4)
    assert fit.log_posterior == pytest.approx(-oracle.fun, abs=1e-6)


def test_linear_fit_covariance_is_the_inverse_of_the_numerical_curvature():
    votes, *_ = planted_people(4, 15, d=2, n_levels=3, seed=4)
    fit = fit_linear(votes)
    at, h, size = np.concatenate([fit.theta, fit.steps]), 1e-3, 3
    curvature = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            e, f = h * np.eye(size)[i], h * np.eye(size)[j]
            corners = [slow_linear(votes, at + s * e + t * f, 2) * s * t for s in (1, -1) for t in (1, -1)]
            curvature[i, j] = sum(corners) / (4 * h * h)
    assert fit.cov == pytest.approx(np.linalg.inv(curvature)[:2, :2], rel=1e-3)


def test_a_weight_of_two_is_a_vote_given_twice_and_sides_do_not_matter():
    votes, *_ = planted_people(5, 10, d=3)
    twice = votes.select(np.concatenate([np.arange(50), np.arange(10)]))
    weights = np.where(np.arange(50) < 10, 2.0, 1.0)
    weighted, doubled, turned = (
        fit_linear(votes, weights=weights), fit_linear(twice), fit_linear(votes.swapped(), weights=weights)
    )  # fmt: skip
    assert weighted.theta == pytest.approx(doubled.theta, abs=1e-6)
    assert weighted.theta == pytest.approx(turned.theta, abs=1e-9)
    with pytest.raises(InputError, match="weight < 0"):
        fit_linear(votes, weights=-weights)
    with pytest.raises(InputError, match="found no votes"):
        fit_linear(votes.select(np.zeros(0, dtype=int)))


def test_steps_undo_edges_and_a_level_that_nobody_used_keeps_a_step():
    assert steps_of(edges(np.array([0.3, 0.9]), 5)[1:-1]).tolist() == pytest.approx([0.3, 0.9])
    assert steps_of(edges(np.array([0.3]), 4)[1:-1]).tolist() == pytest.approx([0.3])
    votes, *_ = planted_people(5, 10, d=3)
    untied = votes.select(votes.level != 1)
    assert 0 < fit_linear(untied).steps[0] < 0.2


@pytest.mark.parametrize("n_levels", [2, 3, 5])
def test_bound_touches_a_known_eta_and_lies_below_the_expectation_otherwise(n_levels):
    rng = np.random.default_rng(1)
    cuts = edges(np.array([0.4, 0.8])[: (n_levels - 1) // 2], n_levels)
    mean, level = rng.normal(0, 2, 50), rng.integers(0, n_levels, 50)
    exact = slopes(mean, level, cuts).loglik
    known = expected_terms(mean, np.zeros(50), level, cuts)
    assert known.value == pytest.approx(exact, abs=1e-10)
    spread = expected_terms(mean, np.full(50, 1.5), level, cuts)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eta = mean[:, None] + np.sqrt(1.5) * nodes
    truth = slopes(eta, np.broadcast_to(level[:, None], eta.shape), cuts).loglik @ (weights / weights.sum())
    assert (spread.value <= truth + 1e-9).all()
    assert (spread.value < truth - 1e-3).any()
    # as a function of η at a fixed ξ it is the quadratic that the terms say
    quadratic = spread.linear * mean - spread.weight * mean**2 / 2
    again = spread.linear * (mean + 1) - spread.weight * ((mean + 1) ** 2) / 2
    assert (again - quadratic) == pytest.approx(spread.linear - spread.weight * (2 * mean + 1) / 2)


def test_best_steps_stand_where_no_other_step_is_better():
    rng = np.random.default_rng(2)
    mean, level = rng.normal(0, 1, 200), rng.integers(0, 5, 200)
    start = np.array([0.5, 0.5])
    terms = expected_terms(mean, np.ones(200), level, edges(start, 5))
    best = best_steps(start, mean, terms, level, 5)

    def value(s):
        cuts = edges(s, 5)
        u, low = np.where(level < 4, cuts[level + 1], 0), np.where(level > 0, cuts[level], 0)
        found = u / 2 - terms.upper * (u - mean) ** 2 - low / 2 - terms.lower * (mean - low) ** 2
        inner = (level > 0) & (level < 4)
        gap = np.where(inner, u - low, 1.0)
        return (found + np.where(inner, np.log1p(-np.exp(-gap)), 0)).sum() + np.log(s).sum() - 2 * s.sum()

    for move in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3]):
        assert value(best) > value(best + np.array(move))


def test_em_never_lowers_its_bound_and_finds_planted_directions():
    votes, theta, basis, _ = planted_people(60, 40, seed=5)
    model = fit_users(votes, 2)
    assert (np.diff(model.bound) > -1e-7).all()
    assert len(model.bound) > 5
    assert np.linalg.svd(model.basis @ basis.T)[1].min() > 0.97  # cosine of the largest angle between the planes
    people = posterior_of(model, votes)
    found = model.shared + people.mean @ model.basis
    assert np.corrcoef(found.ravel(), theta.ravel())[0, 1] > 0.93
    assert model.basis @ model.basis.T == pytest.approx(np.eye(2), abs=1e-9)
    assert 1.0 < np.sqrt(np.diag(model.cov)).min() < np.sqrt(np.diag(model.cov)).max() < 2.2  # planted: 1.5 each
    assert abs(model.steps[0] - 0.4) < 0.08


def test_order_of_people_and_sides_change_nothing():
    votes, *_ = planted_people(20, 15, seed=6)
    turn = np.random.default_rng(0).permutation(20)
    moved = LinearVotes(votes.x, votes.level, 3, turn[votes.user], 20).select(
        np.argsort(turn[votes.user], kind="stable")
    )
    one, two, three = fit_users(votes, 2), fit_users(moved, 2), fit_users(votes.swapped(), 2)
    assert one.basis == pytest.approx(two.basis, abs=1e-4)
    assert one.basis == pytest.approx(three.basis, abs=1e-4)
    assert one.cov == pytest.approx(two.cov, rel=1e-3)
    assert one.shared == pytest.approx(three.shared, abs=1e-6)
    again = fit_users(votes, 2)
    assert (again.basis == one.basis).all()
    assert again.bound == one.bound


def test_group_means_are_found_with_their_uncertainty():
    votes, theta, _, group = planted_people(60, 40, rank=1, spread=0.6, group_shift=3.0, seed=7)
    model = fit_users(votes, 1, group=group, groups=("left", "right"))
    truth = [(theta[group == g].mean(0) - model.shared) @ model.basis[0] for g in (0, 1)]
    for g in (0, 1):
        sd = np.sqrt(model.mean_cov[g, 0, 0])
        assert 0.05 < sd < 0.4
        assert abs(model.mean[g, 0] - truth[g]) < 3 * sd + 0.15
    assert abs(model.mean[1, 0] - model.mean[0, 0]) > 2
    share = np.bincount(group) / 60
    assert share @ model.mean == pytest.approx(np.zeros(1), abs=1e-9)


def test_posterior_is_the_maximum_and_curvature_of_the_slow_posterior():
    votes, *_ = planted_people(6, 8, d=4, seed=8)
    model = fit_users(votes, 2, tol=1e-3)
    people = posterior_of(model, votes)
    precision = np.linalg.inv(model.cov)
    for u in (0, 3):
        mine = votes.user == u

        def slow(w, mine=mine):
            return people_loops.log_posterior(
                w, votes.x[mine], votes.level[mine], model.shared, model.basis, model.mean[0], precision, model.cuts[1:-1]
            )  # fmt: skip

        best, h = people.mean[u], 1e-3
        curvature = np.empty((2, 2))
        for i in range(2):
            assert (slow(best + 1e-5 * np.eye(2)[i]) - slow(best - 1e-5 * np.eye(2)[i])) / 2e-5 == pytest.approx(
                0, abs=1e-5
            )
            for j in range(2):
                e, f = h * np.eye(2)[i], h * np.eye(2)[j]
                curvature[i, j] = -sum(slow(best + s * e + t * f) * s * t for s in (1, -1) for t in (1, -1)) / (
                    4 * h * h
                )
        assert people.cov[u] == pytest.approx(np.linalg.inv(curvature), rel=1e-3)


def test_posterior_and_evidence_lie_near_a_brute_force_grid():
    votes, *_ = planted_people(3, 30, d=3, rank=1, spread=1.0, seed=9)
    model = fit_users(votes, 1, tol=1e-3)
    people = posterior_of(model, votes)
    points = np.linspace(-8, 8, 161)
    total = 0.0
    for u in range(3):
        mine = votes.user == u
        log_p = np.array(
            [
                people_loops.log_posterior(
                    [w], votes.x[mine], votes.level[mine], model.shared, model.basis, model.mean[0],
                    np.linalg.inv(model.cov), model.cuts[1:-1],
                )
                for w in points
            ]
        )  # fmt: skip
        weight = np.exp(log_p - log_p.max())
        mean = (weight @ points) / weight.sum()
        sd = np.sqrt(weight @ (points - mean) ** 2 / weight.sum())
        assert abs(people.mean[u, 0] - mean) < 0.35 * sd  # Laplace gives the mode; the posterior is skew
        assert 0.8 < np.sqrt(people.cov[u, 0, 0]) / sd < 1.1
        step = points[1] - points[0]
        total += log_p.max() + np.log(weight.sum() * step) - 0.5 * np.log(2 * np.pi * model.cov[0, 0])
    assert abs(evidence(model, votes) - total) < 0.15


def test_a_person_without_votes_has_the_prior_and_predictions_integrate_it():
    votes, *_ = planted_people(10, 20, seed=10)
    more = LinearVotes(votes.x, votes.level, 3, votes.user, 11)
    model = fit_users(votes, 2)
    people = posterior_of(model, more)
    assert people.mean[10] == pytest.approx(model.mean[0])
    assert people.cov[10] == pytest.approx(model.cov)
    assert people.n_votes.tolist() == [20] * 10 + [0]
    probe = LinearVotes(3 * votes.x[:4], votes.level[:4], 3, np.full(4, 10), 11)
    probs = predicted_probs(model, people, probe)
    assert probs.sum(1) == pytest.approx(np.ones(4))
    rng = np.random.default_rng(0)
    w = rng.multivariate_normal(model.mean[0], model.cov, size=5_000)
    eta = probe.x[0] @ model.shared + w @ (model.basis @ probe.x[0])
    drawn = np.mean([people_loops.level_prob(one, 2, model.cuts[1:-1]) for one in eta[:5_000]])
    assert abs(probs[0, 2] - drawn) < 4 * np.sqrt(0.25 / 5_000)
    sure = level_probs(np.array([0.7]), 0.0, model.cuts)
    assert sure[0, 1] == pytest.approx(people_loops.level_prob(0.7, 1, model.cuts[1:-1]), abs=1e-12)


def test_rank_is_what_was_planted_and_zero_where_nobody_differs():
    votes, *_ = planted_people(60, 30, seed=11)
    found = choose_rank(votes, [0, 1, 2, 3], np.random.default_rng(0))
    assert found.rank == 2
    assert found.gain[0].low > 0
    alike, *_ = planted_people(60, 30, rank=0, seed=12)
    assert choose_rank(alike, [0, 1, 2], np.random.default_rng(0)).rank == 0
    flat = fit_users(alike, 0)
    assert flat.rank == 0
    assert posterior_of(flat, alike).mean.shape == (60, 0)
    assert np.abs(flat.shared - fit_linear(alike).theta).max() < 0.05


def test_the_spread_that_the_bound_loses_is_given_back():
    votes, *_ = planted_people(80, 10, n_levels=2, seed=13)
    model = fit_users(votes, 2, tol=1e-3)
    code = np.zeros(80, dtype=int)
    again = respread(model, votes, code)
    assert abs(np.log(again.cov[0, 0] / model.cov[0, 0])) < 0.05
    assert evidence(model, votes) > evidence(respread_to(model, 0.5), votes)
    assert evidence(model, votes) > evidence(respread_to(model, 2.0), votes)


def respread_to(model, factor):
    from dataclasses import replace

    return replace(model, cov=model.cov * factor)


def test_held_out_votes_are_a_share_of_everybodys():
    user = np.repeat(np.arange(4), [1, 2, 8, 20])
    held = held_out_mask(user, 0.25, np.random.default_rng(0))
    assert np.bincount(user[held], minlength=4).tolist() == [0, 0, 2, 5]
    assert (held == held_out_mask(user, 0.25, np.random.default_rng(0))).all()


def test_only_votes_of_the_random_arm_are_held_out():
    user = np.repeat(np.arange(3), [8, 8, 8])
    drawn = np.array([True] * 8 + [False] * 7 + [True] + [False] * 8)
    held = held_out_mask(user, 0.25, np.random.default_rng(0), drawn)
    assert np.bincount(user[held], minlength=3).tolist() == [2, 1, 0]
    assert not (held & ~drawn).any()
    votes, *_ = planted_people(6, 6, d=3)
    with pytest.raises(InputError, match="one of them drawn at random"):
        choose_rank(votes, [0], np.random.default_rng(0), eligible=np.zeros(len(votes), dtype=bool))


def test_what_cannot_be_fitted_is_said():
    votes, *_ = planted_people(6, 6, d=3)
    with pytest.raises(InputError, match=r"rank 4; expected votes and a rank in 0 … 3"):
        fit_users(votes, 4)
    with pytest.raises(InputError, match="nobody's group empty"):
        fit_users(votes, 1, group=np.zeros(6, dtype=int), groups=("a", "b"))
    with pytest.raises(ConvergenceError, match="after 2 iterations the bound still rises"):
        fit_users(votes, 2, max_iter=2)
    with pytest.raises(InputError, match="nobody has two votes"):
        choose_rank(votes.select(np.arange(0, 36, 6)), [0, 1], np.random.default_rng(0))
    with pytest.raises(InputError, match="expected precisions > 0"):
        UserPriors(basis_precision=0.0)
    with pytest.raises(InputError, match="expected a scale of ≥ 2 levels"):
        LinearVotes(votes.x, votes.level, 2, votes.user, 6)
    with pytest.raises(InputError, match="expected 0 … 2"):
        LinearVotes(votes.x, votes.level, 3, votes.user, 3)
    with pytest.raises(InputError, match="not finite"):
        LinearVotes(votes.x * np.nan, votes.level, 3, votes.user, 6)
    with pytest.raises(InputError, match="one of each a row"):
        LinearVotes(votes.x, votes.level[1:], 3, votes.user, 6)


def test_a_shared_mean_pulls_towards_the_reward_model():
    rng = np.random.default_rng(14)
    x = rng.normal(size=(40, 3))
    votes = LinearVotes(x, answers(rng, x[:, 0], 3), 3, np.repeat(np.arange(4), 10), 4)
    pulled = fit_users(votes, 0, priors=UserPriors(shared_mean=(1.0, 0.0, 0.0), shared_precision=1e6))
    assert pulled.shared == pytest.approx([1, 0, 0], abs=1e-3)
