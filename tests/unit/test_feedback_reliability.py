"""The ordinal comparison model: gradients, oracles, planted raters, honest errors, invariances."""

import os
from dataclasses import replace

import choix
import numpy as np
import pytest
from scipy import optimize, stats

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality import joint_posterior, reliability
from karat.feedback.quality.expectation import direction_probs, expected_agreement, predicted_probs
from karat.feedback.quality.joint_posterior import JointPosterior, Priors
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.reliability import fit_priors, fit_reliability, rescaled
from reference.slow_reliability import negative_log_posterior, vote_probability

CUTS = {2: [0.0], 3: [-0.6, 0.6], 4: [-0.9, 0.0, 0.9], 5: [-1.5, -0.5, 0.5, 1.5]}


def world(rng, *, n_scores=12, n_raters=8, n_votes=400, k=5, competence=None, side_bias=None, lapse=0.0, spread=1.5):
    """Comparisons drawn from the model, and what they were drawn with."""
    scores = rng.normal(0, spread, n_scores)
    competence = rng.normal(1, 0.5, n_raters) if competence is None else np.asarray(competence, dtype=float)
    side_bias = rng.normal(0, 0.4, n_raters) if side_bias is None else np.asarray(side_bias, dtype=float)
    a = rng.integers(0, n_scores, n_votes)
    b = (a + rng.integers(1, n_scores, n_votes)) % n_scores
    w = rng.permutation(np.arange(n_votes) % n_raters)
    side = rng.choice([-1, 1], n_votes)
    levels = np.broadcast_to(k, n_votes)
    level = np.empty(n_votes, dtype=int)
    for one in np.unique(levels):
        rows = levels == one
        eta = competence[w] * (scores[a] - scores[b]) + side_bias[w] * side
        probs = level_probs(eta[rows], np.array(CUTS[int(one)]), lapse)
        level[rows] = (probs.cumsum(1) < rng.random((rows.sum(), 1))).sum(1)
    return Comparisons(a, b, level, levels, side, w, n_scores, n_raters), scores, competence, side_bias


def tuples(votes):
    columns = (votes.a, votes.b, votes.level, votes.n_levels, votes.side, votes.annotator)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def slow_value(votes, priors, x):
    problem = JointPosterior(votes, priors)
    scores, steps, a, b, lapse = problem.parts(x)
    by_scale, before = {}, 0
    for k in votes.scales.n_levels:
        half = (k - 1) // 2
        by_scale[k] = steps[before : before + half].tolist()
        before += half
    sds = {
        "score": priors.score_sd,
        "competence": priors.competence_sd,
        "side": priors.side_bias_sd,
        "step": priors.step_sd,
    }
    value = negative_log_posterior(
        tuples(votes), scores.tolist(), by_scale, a.tolist(), b.tolist(), lapse.tolist(), sds
    )
    return value - (18 * np.log1p(-lapse).sum() if priors.lapse is None else 0.0)


def mixed_world(seed):
    rng = np.random.default_rng(seed)
    votes, *_ = world(rng, n_scores=5, n_raters=3, n_votes=60, k=rng.choice([2, 3, 4, 5], 60), lapse=0.1)
    side = np.where(rng.random(60) < 0.2, 0, votes.side)
    return Comparisons(votes.a, votes.b, votes.level, votes.n_levels, side, votes.annotator, 5, 4)  # rater 3 is silent


@pytest.mark.parametrize("priors", [Priors(), Priors(lapse=0.0), Priors(lapse=None, competence_sd=0.9)])
def test_value_gradient_and_curvature(priors):
    """The value equals the slow loop; the gradient and the curvature are those of the value, at a random point."""
    votes = mixed_world(1)
    problem = JointPosterior(votes, priors)
    rng = np.random.default_rng(2)
    x = problem.start() + rng.normal(0, 0.4, len(problem.start()))
    if priors.lapse is None:
        x[problem.size :] = rng.uniform(0.02, 0.4, problem.w)
    value, gradient = problem.value_and_gradient(x)
    assert value == pytest.approx(slow_value(votes, priors, x), abs=1e-8)
    h = 1e-5
    steps = np.eye(len(x)) * h
    numeric = [(problem.value_and_gradient(x + s)[0] - problem.value_and_gradient(x - s)[0]) / (2 * h) for s in steps]
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)
    slopes = [(problem.value_and_gradient(x + s)[1] - problem.value_and_gradient(x - s)[1]) / (2 * h) for s in steps]
    full = np.array(slopes)[: problem.size, : problem.size]
    top, cross, blocks = problem.curvature(x)
    g, w = problem.n_global, problem.w
    np.testing.assert_allclose(top.toarray(), full[:g, :g], atol=1e-6)
    np.testing.assert_allclose(cross.toarray()[:, 0::2], full[:g, g : g + w], atol=1e-6)
    np.testing.assert_allclose(cross.toarray()[:, 1::2], full[:g, g + w :], atol=1e-6)
    for i in range(w):
        np.testing.assert_allclose(blocks[i], full[np.ix_([g + i, g + w + i], [g + i, g + w + i])], atol=1e-6)


def test_the_rough_curvature_is_always_that_of_a_maximum():
    votes = mixed_world(18)
    problem = JointPosterior(votes, Priors(lapse=0.3))
    rng = np.random.default_rng(19)
    for _ in range(5):
        x = problem.start() + rng.normal(0, 1.5, problem.size)
        top, cross, blocks = problem.curvature(x, rough=True)
        inner = joint_posterior.block_diagonal(blocks).toarray()
        whole = np.block([[top.toarray(), cross.toarray()], [cross.toarray().T, inner]])
        assert np.linalg.eigvalsh(whole).min() > 0
    full = [problem.curvature(x)[0].toarray(), problem.curvature(x, rough=True)[0].toarray()]
    assert not np.allclose(*full)


def test_the_likelihood_is_exact_in_the_tails():
    eta = np.array([-60.0, 0.0, 60.0])
    probs = level_probs(eta, np.array([-0.5, 0.5]), 0.0)
    assert probs[0, 2] == pytest.approx(np.exp(-60.5), rel=1e-6)
    assert probs[2, 0] == pytest.approx(np.exp(-60.5), rel=1e-6)
    assert probs.sum(axis=1) == pytest.approx(1)
    for k, cuts in CUTS.items():
        slow = [vote_probability(level, k, 0.7, 1, 0.8, 0.3, 0.1, cuts) for level in range(k)]
        assert level_probs(np.array([0.8 * 0.7 + 0.3]), np.array(cuts), 0.1)[0] == pytest.approx(slow)


def test_the_maximum_is_that_of_the_slow_loop():
    votes = mixed_world(3)
    priors = Priors(lapse=0.05)
    fit = fit_reliability(votes, priors)
    problem = JointPosterior(votes, priors)
    found = optimize.minimize(
        lambda x: slow_value(votes, priors, x), problem.start(), method="BFGS", options={"gtol": 1e-5}
    )
    scores, _, a, b, _ = problem.parts(found.x)
    assert fit.log_posterior == pytest.approx(-found.fun, abs=1e-6)
    np.testing.assert_allclose(fit.scores, scores, atol=1e-3)
    np.testing.assert_allclose(fit.competence, a, atol=1e-3)
    np.testing.assert_allclose(fit.side_bias, b, atol=1e-3)


def test_without_raters_it_is_choix():
    rng = np.random.default_rng(4)
    votes, *_ = world(rng, k=2, n_votes=300, side_bias=np.zeros(8), competence=np.ones(8))
    fit = fit_reliability(votes, Priors(competence_sd=1e-4, side_bias_sd=1e-4, lapse=0.0, score_sd=2.0))
    won = [(a, b) if level else (b, a) for a, b, level, *_ in tuples(votes)]
    expected = choix.opt_pairwise(12, won, alpha=1 / (2 * 2.0**2), method="Newton-CG", tol=1e-9)
    np.testing.assert_allclose(fit.scores, expected, atol=1e-3)


def test_errors_are_those_of_the_full_curvature():
    votes = mixed_world(5)
    fit = fit_reliability(votes, Priors())
    problem = JointPosterior(votes, Priors())
    steps = np.concatenate([np.log(np.diff(np.concatenate([[0.0], c[c > 1e-12]]))) for c in fit.cutpoints.values()])
    x = np.concatenate([fit.scores, steps, fit.competence, fit.side_bias])
    h = 1e-5 * np.eye(len(x))
    full = np.array([(problem.value_and_gradient(x + s)[1] - problem.value_and_gradient(x - s)[1]) / 2e-5 for s in h])
    covariance = np.linalg.inv((full + full.T) / 2)
    g, w = problem.n_global, problem.w
    assert fit.errors == "profiled"
    np.testing.assert_allclose(fit.score_cov, covariance[:5, :5], rtol=1e-3)
    np.testing.assert_allclose(fit.competence_sd**2, np.diag(covariance)[g : g + w], rtol=1e-3)
    np.testing.assert_allclose(fit.rater_cov[:, 0, 1], np.diag(covariance[g : g + w, g + w :]), atol=1e-5)


def test_many_scores_are_fitted_by_conjugate_gradients(monkeypatch):
    votes, *_ = world(np.random.default_rng(6))
    dense = fit_reliability(votes)
    assert fit_reliability(votes.swapped()).log_posterior == pytest.approx(dense.log_posterior)
    monkeypatch.setattr(joint_posterior, "MOST_DENSE", 5)
    found = fit_reliability(votes)
    assert (found.errors, found.score_cov) == ("profiled", None)
    np.testing.assert_allclose(found.scores, dense.scores, atol=1e-3)
    np.testing.assert_allclose(found.rater_cov, dense.rater_cov, atol=1e-6)  # scores eliminated instead of raters
    monkeypatch.setattr(reliability, "MOST_FILLED", 5)
    rough = fit_reliability(votes)
    assert rough.errors == "conditional"
    assert (rough.competence_sd < dense.competence_sd).all()
    pairs = np.array([0, 1]), np.array([2, 3])
    assert (found.difference(*pairs)[1] < dense.difference(*pairs)[1]).all()


def test_the_variance_of_a_lone_pair(monkeypatch):
    """A pair compared with nothing else, raters as good as known: what it says above 3,000 scores is what it is."""
    votes, *_ = world(np.random.default_rng(17), n_scores=2, n_raters=3, n_votes=40)
    sure = Priors(competence_sd=1e-3, side_bias_sd=1e-3, step_sd=1e-3)
    one, two = np.array([0]), np.array([1])
    dense = fit_reliability(votes, sure).difference(one, two)
    monkeypatch.setattr(joint_posterior, "MOST_DENSE", 1)
    found = fit_reliability(votes, sure).difference(one, two)
    assert found[1][0] == pytest.approx(dense[1][0], rel=1e-3)
    assert fit_reliability(votes, sure).difference(one, one)[1][0] == 0


def test_planted_raters_are_found_from_30_votes_each():
    rng = np.random.default_rng(7)
    n = 150
    competence = rng.normal(1, 0.8, n)  # some at 0, some below
    side_bias = np.where(np.arange(n) % 10 == 0, 2.0, 0.0)
    votes, scores, *_ = world(rng, n_scores=40, n_raters=n, n_votes=30 * n, competence=competence, side_bias=side_bias)
    fit = fit_reliability(votes, Priors(competence_sd=1.0, side_bias_sd=1.0, lapse=0.0))
    assert stats.spearmanr(fit.competence, competence).statistic > 0.9
    assert stats.spearmanr(fit.scores, scores).statistic > 0.97
    assert (fit.competence[competence < -0.3] < 0).all()
    assert (fit.competence[competence > 0.8] > 0).all()
    assert fit.side_bias[::10].min() > fit.side_bias[side_bias == 0].max() - 0.5
    again, refit = fit_priors(votes, Priors(lapse=0.0), n_rounds=8)
    assert abs(again.competence_sd - competence.std()) < 0.25
    assert abs(again.side_bias_sd - 2.0 * 0.1**0.5) < 0.15
    assert refit.log_posterior != fit.log_posterior


def test_errors_are_as_large_as_the_mistakes():
    """z of competence and side bias over 20 worlds drawn from the prior: sd within its own 99 % interval of 1."""
    z_a, z_b, common = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        votes, _, a, b = world(
            rng,
            n_scores=20,
            n_raters=30,
            n_votes=1200,
            competence=rng.normal(1, 0.5, 30),
            side_bias=rng.normal(0, 0.5, 30),
            spread=3,
        )
        fit = fit_reliability(votes, Priors(lapse=0.0))
        z = (fit.competence - a) / fit.competence_sd
        z_a += (z - z.mean()).tolist()  # a world's common scale moves all of its raters together
        common.append(z.mean())
        z_b += ((fit.side_bias - b) / fit.side_bias_sd).tolist()
    for z in (z_a, z_b):
        assert abs(np.std(z) - 1) < 2.6 / np.sqrt(2 * len(z)) + 0.03
    assert abs(np.mean(common)) < 0.4
    assert abs(np.mean(z_b)) < 2.6 / np.sqrt(len(z_b))


def test_on_the_raters_common_scale_errors_are_as_large_as_the_mistakes_and_answers_as_likely():
    """z of competence over 10 worlds of many raters with 30 votes each, their common scale included; the mode fails it."""
    at_mode, scaled = [], []
    for seed in range(10):
        rng = np.random.default_rng(300 + seed)
        competence = rng.normal(1, 0.5, 60)
        votes, *_ = world(rng, n_scores=20, n_raters=60, n_votes=1800, competence=competence)
        fit = fit_reliability(votes, Priors(lapse=0.0))
        own = rescaled(fit)
        assert own.competence[0] * own.difference(2, 3)[0] == pytest.approx(fit.competence[0] * fit.difference(2, 3)[0])
        for one, found in ((fit, at_mode), (own, scaled)):
            found.append(float((((one.competence - competence) / one.competence_sd) ** 2).mean()))
        problem = JointPosterior(votes, fit.priors)
        steps = votes.scales.log_steps(own.cutpoints)
        x = np.concatenate([own.scores, steps, own.competence, own.side_bias])
        assert own.log_posterior == pytest.approx(-problem.value_and_gradient(x)[0], abs=1e-6)
    assert np.mean(at_mode) > 1.3
    # worlds are independent, raters of one share its scale: three standard errors over worlds
    assert abs(np.mean(scaled) - 1) < 3 * np.std(scaled, ddof=1) / 10**0.5


def test_rescaling_leaves_a_rater_without_votes_at_the_prior():
    votes, *_ = world(np.random.default_rng(9))
    more = replace(votes, n_annotators=votes.n_annotators + 1)
    own = rescaled(fit_reliability(more))
    assert own.competence[-1] == 1
    assert own.rater_cov[-1] == pytest.approx(np.diag([0.25, 0.25]))


def test_sides_order_and_names_do_not_matter():
    rng = np.random.default_rng(8)
    votes, *_ = world(rng)
    fit = fit_reliability(votes)
    order = rng.permutation(len(votes))
    rename = rng.permutation(votes.n_scores)
    moved = votes.select(order)
    moved = replace(moved, a=rename[moved.a], b=rename[moved.b]).swapped()
    other = fit_reliability(moved)
    np.testing.assert_allclose(other.scores[rename], fit.scores, atol=1e-3)
    np.testing.assert_allclose(other.competence, fit.competence, atol=1e-3)


def test_a_fit_can_start_from_an_earlier_one():
    votes = mixed_world(15)
    for priors in (Priors(), Priors(lapse=None)):
        cold = fit_reliability(votes, priors)
        warm = fit_reliability(votes, priors, start=fit_reliability(votes, Priors(competence_sd=0.2)))
        assert warm.log_posterior == pytest.approx(cold.log_posterior, abs=1e-6)
        np.testing.assert_allclose(warm.competence, cold.competence, atol=1e-3)
    other, *_ = world(np.random.default_rng(16))
    with pytest.raises(InputError, match="a fit of other responses"):
        fit_reliability(other, start=warm)


OVERSHOT = {  # 75 lone pairs, two votes each, of twelve simulated raters who agree much: level, rater and side of each vote
    "level": "212202021002200011022220220200221222222210021200221200002000002202210022002"
    "100002010220200121222002102210001220022001222220022120020200002220022022212",
    "rater": "053b64739257799238543165365a3290a9234b4889647ba7824b807571351aa29a922b2a78a"
    "88a30165925655160255830105462a053a9ba9bb38b71703a83131aab4695634653a7134115",
    "side": "-++++-+--------+++--+--+--++-+----++--+-+---+--++-+++--++--+-+-+--+-++++++-"
    "+-+---++-+++-++-+-++++-+-++++--++--++----+-+---++++---+++-++---+-+-++--+-+-",
}


def test_votes_on_which_rough_steps_overshoot_to_and_fro_are_fitted_all_the_same():
    pair = np.repeat(np.arange(75), 2)
    votes = Comparisons(
        2 * pair, 2 * pair + 1, np.array([int(one) for one in OVERSHOT["level"]]), np.full(150, 3),
        np.array([1 if one == "+" else -1 for one in OVERSHOT["side"]]),
        np.array([int(one, 16) for one in OVERSHOT["rater"]]), 150, 12,
    )  # fmt: skip
    priors, fit = fit_priors(votes)
    colder = fit_reliability(votes, priors)
    assert fit.log_posterior == pytest.approx(colder.log_posterior, abs=1e-6)


def test_components_are_placed_apart_and_never_compared():
    rng = np.random.default_rng(9)
    one, *_ = world(rng, n_scores=6, n_votes=200)
    two, *_ = world(rng, n_scores=6, n_votes=200)
    both = Comparisons(
        np.concatenate([one.a, two.a + 6]), np.concatenate([one.b, two.b + 6]), np.concatenate([one.level, two.level]),
        5, np.concatenate([one.side, two.side]), np.concatenate([one.annotator, two.annotator]), 13, 9,
    )  # fmt: skip
    fit = fit_reliability(both)
    assert len(set(fit.component)) == 3  # the thirteenth was never shown
    assert fit.scores[:6].mean() == pytest.approx(0, abs=1e-4)
    assert fit.scores[6:12].mean() == pytest.approx(0, abs=1e-4)
    assert fit.score_cov[12, 12] == pytest.approx(9.0)
    assert (fit.competence[8], fit.competence_sd[8], fit.n_votes[8]) == (1.0, 0.5, 0)
    delta, var = fit.difference(np.array([0]), np.array([1]))
    assert delta[0] == pytest.approx(fit.scores[0] - fit.scores[1])
    assert 0 < var[0] < fit.score_cov[0, 0] + fit.score_cov[1, 1]
    with pytest.raises(InputError, match="no vote connects them"):
        fit.difference(np.array([0]), np.array([7]))


def test_lapses_can_be_fitted():
    rng = np.random.default_rng(10)
    a, b = rng.integers(0, 10, 6000), rng.integers(1, 10, 6000)
    b = (a + b) % 10
    scores, w = rng.normal(0, 3, 10), np.arange(6000) % 3
    probs = level_probs(scores[a] - scores[b], np.array(CUTS[3]), np.array([0.0, 0.02, 0.4])[w])
    level = (probs.cumsum(1) < rng.random((6000, 1))).sum(1)
    fit = fit_reliability(Comparisons(a, b, level, 3, np.zeros(6000), w, 10, 3), Priors(lapse=None))
    assert fit.lapse[0] < 0.03
    assert abs(fit.lapse[2] - 0.4) < 0.06


def test_an_unknown_rater_is_a_draw_from_the_prior():
    votes, *_ = world(np.random.default_rng(11))
    fit = fit_reliability(votes)
    draws = np.random.default_rng(12)
    a, b = draws.normal(1, 0.5, 400_000), draws.normal(0, 0.5, 400_000)
    expected = level_probs(a * 1.3 + b * -1, fit.cutpoints[5], 0.05).mean(axis=0)
    found = predicted_probs(fit, np.array([1.3]), np.zeros(1), np.array([-1]), np.array([-1]), 5)[0]
    assert np.abs(found - expected).max() < 4 * 0.5 / np.sqrt(400_000)
    with pytest.raises(InputError, match="fitted were"):
        predicted_probs(fit, np.zeros(1), np.zeros(1), np.zeros(1), np.array([0]), 3)


def test_expected_agreement_sees_who_does_not_try():
    rng = np.random.default_rng(13)
    n_pairs, n_raters = 120, 20
    competence = np.ones(n_raters)
    competence[:2], competence[2] = 0.0, -1.0
    scores = rng.normal(0, 1.5, 2 * n_pairs)
    a, b = np.repeat(np.arange(n_pairs), 5), np.repeat(np.arange(n_pairs), 5) + n_pairs
    w = np.concatenate([rng.choice(n_raters, 5, replace=False) for _ in range(n_pairs)])
    level = (
        level_probs(competence[w] * (scores[a] - scores[b]), np.array(CUTS[3]), 0.0).cumsum(1) < rng.random((len(a), 1))
    ).sum(1)
    votes = Comparisons(a, b, level, 3, np.zeros(len(a)), w, 2 * n_pairs, n_raters)
    fit = fit_reliability(votes, Priors(lapse=0.0))
    found = expected_agreement(fit, votes)
    assert (found.z[:3] < -2).all()
    assert (found.z[3:] > -2.5).all()
    assert found.n.sum() == len(votes)
    for one in range(3):  # the definition, by hand, for three raters
        rows = np.flatnonzero(w == one)
        shares = [np.mean(level[(a == a[i]) & (w != one)] == level[i]) for i in rows]
        assert found.observed[one] == pytest.approx(np.mean(shares))
    turned = expected_agreement(fit, votes.swapped())
    np.testing.assert_allclose(turned.z, found.z, atol=1e-8)
    assert np.abs(expected_agreement(fit, votes, typical=False).z).max() < np.abs(found.z).max()
    assert direction_probs(fit, votes, typical=False).sum(axis=1) == pytest.approx(1)


def test_what_cannot_be_fitted_is_said():
    votes, *_ = world(np.random.default_rng(14), n_votes=20)
    with pytest.raises(InputError, match="found no comparisons"):
        fit_reliability(votes.select(np.zeros(20, dtype=bool)))
    with pytest.raises(InputError, match="compared with itself"):
        replace(votes, a=votes.b)
    with pytest.raises(InputError, match="a level outside its scale"):
        replace(votes, level=votes.level + 5)
    with pytest.raises(InputError, match=r"expected 0 … 11"):
        replace(votes, a=votes.a + 12)
    with pytest.raises(InputError, match="whole numbers"):
        replace(votes, side=votes.side * 0.5)
    with pytest.raises(InputError, match="expected spreads above 0"):
        Priors(competence_sd=0)
    with pytest.raises(ConvergenceError, match="the gradient is"):
        fit_reliability(votes, Priors(lapse=None), max_iter=1)


@pytest.mark.data
@pytest.mark.skipif("KARAT_DATA" not in os.environ, reason="needs the real votes in $KARAT_DATA")
def test_the_fit_matches_the_published_consensus_of_real_votes():
    import gzip
    import json
    from pathlib import Path

    folder = Path(os.environ["KARAT_DATA"]) / "ukp_arguments"
    with gzip.open(folder / "votes.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for line in file if (row := json.loads(line))["a"] != row["b"]][:12000]
    texts = {name: i for i, name in enumerate(sorted({row[side] for row in rows for side in "ab"}))}
    raters = {name: i for i, name in enumerate(sorted({row["annotator"] for row in rows}))}
    level = [{"b": 0, "tie": 1, "a": 2}[row["choice"]] for row in rows]
    columns = ([texts[row["a"]] for row in rows], [texts[row["b"]] for row in rows], level, 3, np.zeros(len(rows)))
    votes = Comparisons(
        *map(np.asarray, columns), np.array([raters[row["annotator"]] for row in rows]), len(texts), len(raters)
    )
    fit = fit_reliability(votes)
    with gzip.open(folder / "gold.jsonl.gz", "rt", encoding="utf-8") as file:
        gold = {row["pair"]: row["gold"] for row in map(json.loads, file)}
    judged = {row["pair"]: (row["a"], row["b"]) for row in rows}
    right = [
        (fit.scores[texts[a]] > fit.scores[texts[b]]) == (gold[pair] == "a")
        for pair, (a, b) in judged.items()
        if gold.get(pair) in ("a", "b")
    ]
    assert len(right) > 1500
    assert np.mean(right) > 0.85
