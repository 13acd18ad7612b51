"""Newton's method in a trust region, on functions whose minimum is known and on votes that the dense way fits too."""

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der, rosen_hess_prod

from karat.feedback.quality import joint_posterior
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.reliability import fit_reliability
from karat.feedback.quality.trust_region import minimise


def test_a_quadratic_is_solved_within_the_region_and_at_its_edge():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    matrix, target = root @ root.T + np.eye(8), rng.normal(size=8)
    found = minimise(
        lambda x: (0.5 * (x - target) @ matrix @ (x - target), matrix @ (x - target)),
        lambda _: (lambda z: matrix @ z, np.diag(matrix)), np.zeros(8), tol=1e-9, radius=0.1,
    )  # fmt: skip
    assert found == pytest.approx(target, abs=1e-8)


def test_a_curved_valley_ends_at_its_minimum():
    start = np.array([1.3, 0.7, 0.8, 1.9, 1.2])
    diagonals = lambda x: np.array([rosen_hess_prod(x, e) @ e for e in np.eye(5)])  # noqa: E731
    found = minimise(
        lambda x: (rosen(x), rosen_der(x)), lambda x: (lambda z: rosen_hess_prod(x, z), diagonals(x)), start, tol=1e-8
    )
    assert found == pytest.approx(np.ones(5), abs=1e-6)
    assert rosen(found) < 1e-12


def test_it_leaves_a_saddle_downhill():
    # Σ (x² − 1)²/4 bends downwards around 0, where Newton's own step would climb back to it
    value = lambda x: (float(((x**2 - 1) ** 2).sum() / 4), x * (x**2 - 1))  # noqa: E731
    curve = lambda x: (lambda z: (3 * x**2 - 1) * z, 3 * x**2 - 1)  # noqa: E731
    found = minimise(value, curve, np.array([1e-3, -1e-3, 0.2]), tol=1e-10)
    assert found == pytest.approx([1, -1, 1], abs=1e-8)
    stays = minimise(value, curve, np.array([1e-3]), tol=1e-10, max_iter=0)
    assert stays.tolist() == [1e-3]


@pytest.mark.parametrize("lapse", [0.05, 0.0])
def test_many_scores_are_fitted_as_few_are(monkeypatch, lapse):
    rng = np.random.default_rng(1)
    n, scores, competence = 900, rng.normal(0, 1.5, 60), rng.normal(1, 0.6, 15)
    prompt, i = rng.integers(0, 15, n) * 4, rng.integers(0, 4, n)
    a, b, w = prompt + i, prompt + (i + rng.integers(1, 4, n)) % 4, rng.integers(0, 15, n)
    side = rng.choice([-1, 1], n)
    probs = level_probs(competence[w] * (scores[a] - scores[b]), np.array([-0.5, 0.5]), 0.05)
    level = (probs.cumsum(1) < rng.random((n, 1))).sum(1)
    votes = Comparisons(a, b, level, 3, side, w, 60, 15)
    priors = joint_posterior.Priors(lapse=lapse)
    dense = fit_reliability(votes, priors, tol=1e-6)
    monkeypatch.setattr(joint_posterior, "MOST_DENSE", 0)
    sparse = fit_reliability(votes, priors, tol=1e-6)
    assert sparse.score_cov is None
    assert dense.score_cov is not None
    assert sparse.scores == pytest.approx(dense.scores, abs=1e-4)
    assert sparse.competence == pytest.approx(dense.competence, abs=1e-4)
    assert sparse.cutpoints[3] == pytest.approx(dense.cutpoints[3], abs=1e-4)
    assert sparse.log_posterior == pytest.approx(dense.log_posterior, abs=1e-5)
