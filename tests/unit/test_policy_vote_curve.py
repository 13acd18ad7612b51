"""The curve of a panel's votes: against a slow sampler, planted tops, and what must not matter."""

import math

import numpy as np
import pytest
from scipy.special import expit

from karat.errors import InputError
from karat.policy.vote_curve import BENDS, SLOPES, covering, fallen_rule, likeliest, vote_curve


def curve(steps, shares, n, seed=0, run_steps=40):
    return vote_curve(steps, shares, n, run_steps=run_steps, rng=np.random.default_rng(seed))


def walked(n_looks, slope, bend, n, rng, fine=40):
    """Curves of the prior, walked in small steps: f′ does a Brownian motion, f adds it up."""
    h = 1 / 40 / fine
    f, d, found = np.zeros(n), slope * rng.standard_normal(n), []
    for i in range(1, n_looks * fine + 1):
        kick = bend * math.sqrt(h) * rng.standard_normal(n)
        f = f + h * (d + kick / 2)
        d = d + kick
        if i % fine == 0:
            found.append(f)
    return np.array(found)


def test_mean_and_probabilities_are_those_of_weighted_curves_of_the_prior():
    """An oracle without Gauss and Laplace: curves of the prior, each weighted by the likelihood of the votes."""
    shares, n = np.array([0.55, 0.64, 0.7, 0.6, 0.52]), np.full(5, 48.0)
    rng = np.random.default_rng(1)
    curves, weights = [], []
    for slope in SLOPES:
        for bend in BENDS:
            f = walked(5, slope, bend, 40_000, rng)
            p = expit(f)
            curves.append(f)
            weights.append((n * shares) @ np.log(p) + (n * (1 - shares)) @ np.log1p(-p))
    f, log_weight = np.hstack(curves), np.concatenate(weights)
    w = np.exp(log_weight - log_weight.max())
    w /= w.sum()
    f = np.vstack([np.zeros(f.shape[1]), f])
    mine = [curve(range(1, 6), shares, n, seed) for seed in range(20)]
    wanted_mean, wanted_near = f @ w, (f >= 0.85 * f.max(0)) @ w
    mean = np.mean([one.mean for one in mine], 0)
    near = np.mean([one.near_top(0.85).mean(1) for one in mine], 0)
    # both ends are draws: four standard errors of the weighted ones, and what Laplace's approximation may differ by
    n_effective = 1 / (w**2).sum()
    assert n_effective > 2_000
    spread = np.sqrt(((f - wanted_mean[:, None]) ** 2) @ w)
    assert (np.abs(mean - wanted_mean) < 4 * spread / math.sqrt(n_effective) + 0.02).all()
    assert (np.abs(near - wanted_near) < 4 * 0.5 / math.sqrt(n_effective) + 0.03).all()
    by_prior = np.array([weight.sum() for weight in w.reshape(len(SLOPES) * len(BENDS), -1)])
    assert (np.abs(by_prior - mine[0].weights) < 0.05).all()


def test_a_planted_top_is_found_and_better_than_by_five_looks():
    steps = np.arange(1, 41)
    truth = 0.5 * np.sin(np.pi * steps / 24)  # top at 12, back at the start at 24, then below it
    ours = theirs = 0
    rng = np.random.default_rng(2)
    for _ in range(30):
        shares = rng.binomial(96, expit(truth)) / 96
        near = curve(steps, shares, np.full(40, 96)).near_top(0.85)
        row = likeliest(near, range(41))
        ours += row > 0 and truth[row - 1] >= 0.85 * truth.max()
        means = np.convolve(shares, np.ones(5) / 5, "valid")
        theirs += truth[int(means.argmax()) + 4] >= 0.85 * truth.max()
        assert fallen_rule(near, of_top=0.85, sure=0.9).stop
    assert ours >= 27
    assert ours > theirs


def test_probabilities_are_right_as_often_as_they_say():
    """Curves of the prior with votes of them: among looks held near the top with probability p, the share p is."""
    rng = np.random.default_rng(3)
    said, true = [], []
    for _ in range(60):
        truth = walked(12, 1.2, 4.8, 1, rng)[:, 0]
        shares = rng.binomial(96, expit(truth)) / 96
        said.append(curve(range(1, 13), shares, np.full(12, 96)).near_top(0.85).mean(1))
        whole = np.append(0, truth)
        true.append(whole >= 0.85 * whole.max())
    said, true = np.concatenate(said), np.concatenate(true)
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        some = (said >= low) & (said < high)
        assert some.sum() > 20
        # looks of one curve go together: sixty curves, not so many looks
        assert abs(said[some].mean() - true[some].mean()) < 3 * 0.5 / math.sqrt(60)


def test_what_does_not_matter():
    shares, n = [0.6, 0.7, 0.65, 0.5], [96, 96, 90, 96]
    plain = curve([1, 2, 3, 4], shares, n)
    assert np.array_equal(curve([5, 10, 15, 20], shares, n, run_steps=200).draws, plain.draws)  # a step is no unit
    assert np.array_equal(curve([1, 2, 3, 4], shares, n).draws, plain.draws)  # the same draws give the same bits
    swapped = curve([1, 2, 3, 4], [1 - share for share in shares], n)
    # who is called the policy; its draws are not mirrored, so that both means have their error
    assert (np.abs(swapped.mean + plain.mean) <= 6 * plain.draws.std(1) / math.sqrt(plain.draws.shape[1])).all()
    assert swapped.weights == pytest.approx(plain.weights, rel=1e-6)
    assert (plain.draws[0] == 0).all()  # at the start both are one


def test_many_votes_leave_no_doubt_and_none_leave_the_start():
    truth = np.array([0.2, 0.4, 0.5, 0.45, 0.1])
    sure = curve(range(1, 6), expit(truth), np.full(5, 1e7))
    assert sure.mean[1:] == pytest.approx(truth, abs=1e-3)
    assert sure.near_top(0.85).mean(1).tolist() == [0, 0, 0, 1, 1, 0]
    nothing = curve([], [], [])
    assert nothing.near_top(0.85).all()
    assert not fallen_rule(nothing.near_top(0.85), of_top=0.85, sure=0.9).stop
    one_sided = curve(range(1, 4), [1.0, 1.0, 1.0], [96, 96, 96])
    assert np.isfinite(one_sided.draws).all()
    assert (np.diff(one_sided.mean) > 0.5).all()


def test_kept_are_the_best_alone_and_what_may_be_instead():
    near = np.zeros((4, 100), dtype=bool)
    near[0, :60] = True  # best alone
    near[1, :55] = True  # says the same
    near[2, 60:90] = True
    near[3, 85:] = True
    assert covering(near, 1) == [0]
    assert covering(near, 2) == [0, 2]
    assert covering(near, 3) == [0, 2, 3]
    assert covering(near, 9) == [0, 1, 2, 3]
    assert likeliest(near, [1, 2, 3]) == 1
    assert covering(np.ones((3, 5), dtype=bool), 1) == [2]
    assert likeliest(np.ones((3, 5), dtype=bool), [0, 1, 2]) == 0
    decision = fallen_rule(near, of_top=0.85, sure=0.84)
    assert decision.stop
    assert decision.reason == "with probability 0.85 below 0.85 of the highest gain so far, by all votes; limit 0.84"


@pytest.mark.parametrize(
    ("steps", "shares", "n"),
    [([2, 1], [0.5, 0.5], [9, 9]), ([0], [0.5], [9]), ([1], [1.2], [9]), ([1], [0.5], [0]), ([1, 2], [0.5], [9])],
)
def test_what_cannot_be_is_refused(steps, shares, n):
    with pytest.raises(InputError, match="vote_curve: found"):
        curve(steps, shares, n)
    with pytest.raises(InputError, match="run_steps 0"):
        curve([1], [0.5], [9], run_steps=0)


def test_a_way_looked_at_less_often_is_the_same_way():
    """Few looks with many votes each say what many looks with few votes say, where they look."""
    truth = 0.5 * np.sin(np.pi * np.arange(1, 41) / 24)
    often = curve(range(1, 41), expit(truth), np.full(40, 96))
    seldom = curve(range(4, 41, 4), expit(truth[3::4]), np.full(10, 384))
    gap = np.abs(often.mean[4::4] - seldom.mean[1:])
    assert (gap < 0.5 * often.draws[4::4].std(1)).all()
    # but for the last look, behind which one has four looks' votes and the other one's
    assert np.abs(often.draws[4:-1:4].std(1) / seldom.draws[1:-1].std(1) - 1).max() < 0.1
