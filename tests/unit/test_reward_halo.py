"""A halo: planted in ratings of two attributes, found, and known to the joint posterior; nothing changes where there is none to find."""

import numpy as np
import pytest
import torch

from karat.feedback_columns import Channel, FeedbackBatch, LabelBatch, RatingBatch
from karat.reward.halo import Halo, _joined, _possible, joint_layers
from karat.reward.last_layer import LastLayer
from karat.reward.latents import prior_params
from karat.reward.objective_layer import ObjectiveLayer, fit_objective, spoken_about
from karat.reward.raters import RaterPriors
from karat.reward.settings import LaplaceConfig, RewardConfig

N_RATERS, N_TEXTS, D = 40, 90, 6
CONFIG = RewardConfig(laplace=LaplaceConfig(tastes=False, n_draws=4000))


def rated(seed, halo, *, n=240, other=0, kind="rating"):
    """Ratings of two attributes of the same responses, what is left of which is correlated by `halo`, and what is planted.

    Args: other: by how many raters those of the second attribute lie apart from those of the first.
    """
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((N_TEXTS, D))
    features -= features.mean(0)
    weights = 0.4 * rng.standard_normal((2, D))
    asked = rng.choice(N_RATERS // 2 * N_TEXTS, n, replace=False)
    who, text = asked // N_TEXTS, asked % N_TEXTS
    noise = halo**0.5 * rng.standard_normal(n) + (1 - halo) ** 0.5 * rng.standard_normal((2, n))
    channels = []
    for o in range(2):
        rater = who + o * other
        own = torch.from_numpy(rater)
        at, offset = torch.from_numpy(text), 0.05 * rng.standard_normal(N_RATERS)
        if kind == "rating":
            value = 0.5 + offset[rater] + 0.15 * features[text] @ weights[o] + 0.1 * noise[o]
            columns = RatingBatch(at, torch.from_numpy(value.clip(0, 1)), own)
        else:
            columns = LabelBatch(at, torch.from_numpy(2 * features[text] @ weights[o] + 2 * noise[o] > 0), own)
        channels.append(Channel(f"{kind}/{o}", kind, o, columns, own, torch.ones(n), torch.arange(n)))
    return features, FeedbackBatch(tuple(channels)), weights


def fitted(features, batch):
    said = [spoken_about(batch, o, name, features, ()) for o, name in enumerate(("helpful", "honest"))]
    params = prior_params(batch.channels, N_RATERS, RaterPriors())
    layers = [
        fit_objective(one, params, np.zeros(D), n_people=N_RATERS, config=CONFIG, rng=np.random.default_rng(o))
        for o, one in enumerate(said)
    ]
    return layers, said


def test_the_joint_posterior_of_normal_answers_is_the_one_of_correlated_regressions():
    """Three objectives on the same 40 answers, whose noise is known: precision R⁻¹ ⊗ XᵀX/s² + λ."""
    rng, d, lam, sd = np.random.default_rng(0), 3, np.array([0.5, 1.0, 2.0]), 0.7
    x, r = rng.standard_normal((40, d)), np.array([[1, 0.6, 0.3], [0.6, 1, 0.1], [0.3, 0.1, 1]])
    y = x @ rng.standard_normal((d, 3)) + sd * rng.standard_normal((40, 3)) @ np.linalg.cholesky(r).T
    layers = []
    for o in range(3):
        covariance = np.linalg.inv(x.T @ x / sd**2 + lam[o] * np.eye(d))
        posterior = LastLayer(covariance @ x.T @ y[:, o] / sd**2, covariance, lam[o], 0.0, 0.0)
        draws = posterior.draws(4000, np.random.default_rng(o))
        layers.append(ObjectiveLayer(str(o), posterior, draws, None, np.zeros(0), np.zeros(d), {}, ()))
    whole = np.linalg.inv(np.kron(np.linalg.inv(r), x.T @ x / sd**2) + np.diag(np.repeat(lam, d)))
    mean = whole @ np.kron(np.linalg.inv(r), x.T / sd**2) @ y.T.ravel()
    same = {(o, p): np.eye(d) for o, p in ((0, 1), (0, 2), (1, 2))}
    found = _joined(layers, r, same)
    for o, layer in enumerate(found):
        own = slice(o * d, (o + 1) * d)
        assert layer.posterior.mean == pytest.approx(mean[own], abs=1e-9)
        assert layer.posterior.covariance == pytest.approx(whole[own, own], abs=1e-9)
    drawn = np.concatenate([layer.draws for layer in found], axis=1)
    scale = np.sqrt(np.diag(whole))
    assert (
        np.abs((np.cov(drawn.T) - whole) / np.outer(scale, scale)).max() < 0.1
    )  # 2,000 pairs: a standard error of .02
    for layer, before in zip(_joined(layers, np.eye(3), same), layers, strict=True):  # nothing shared: nothing moved
        assert layer.posterior.mean == pytest.approx(before.posterior.mean, abs=1e-9)
        assert layer.draws == pytest.approx(before.draws, abs=1e-9)


def surprise(layers, weights, crossed):
    """Mean square of the error of w_1 + w_2 in units of its spread: 1 = as sure as it is right."""
    error = sum(layer.posterior.mean for layer in layers) - weights.sum(0)
    spread = sum(layer.posterior.covariance for layer in layers) + crossed + crossed.T
    return error @ np.linalg.solve(spread, error) / len(error)


def test_a_planted_halo_is_found_and_a_sum_of_objectives_is_less_certain_by_it():
    found, before, after, alike, known = [], [], [], [], []
    for seed in range(6):
        features, batch, weights = rated(seed, 0.6)
        layers, said = fitted(features, batch)
        joint, (halo,) = joint_layers(layers, said, RaterPriors())
        found.append(halo.correlation)
        one, other = (layer.posterior.mean - w for layer, w in zip(layers, weights, strict=True))
        alike.append(one @ other / np.sqrt((one @ one) * (other @ other)))
        whole = np.cov(np.concatenate([layer.draws for layer in joint], axis=1).T)
        crossed = whole[:D, D:]
        known.append(np.trace(crossed) / np.sqrt(np.trace(whole[:D, :D]) * np.trace(whole[D:, D:])))
        before.append(surprise(layers, weights, np.zeros((D, D))))
        after.append(surprise(joint, weights, crossed))
    assert 0.5 < np.mean(found) < 0.7  # 240 answers: ± .04 each
    assert abs(np.mean(known) - np.mean(alike)) < 0.25  # cosines in six dimensions: ± .35 each
    assert 1.3 * np.mean(after) < np.mean(before)  # twice the spread of a sum, less what a prior keeps


def test_correlations_that_cannot_be_are_brought_to_what_can():
    impossible = np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]])
    found = _possible(impossible)
    assert np.diag(found) == pytest.approx(np.ones(3))
    assert np.linalg.eigvalsh(found)[0] > 0
    assert (_possible(np.eye(3)) == np.eye(3)).all()
    assert Halo(("a", "b"), 0.05, 0.1, 40).shrunk == 0.0
    assert Halo(("a", "b"), 0.5, 0.1, 400).shrunk == pytest.approx(0.48)


@pytest.mark.parametrize("kind", ["rating", "label"])
def test_nothing_changes_where_no_rater_spoke_of_two_objectives_of_one_response(kind):
    features, batch, _ = rated(3, 0.6, other=N_RATERS // 2, kind=kind)
    layers, said = fitted(features, batch)
    joint, halos = joint_layers(layers, said, RaterPriors())
    assert halos == []
    assert all(one is other for one, other in zip(joint, layers, strict=True))


def test_labels_have_a_halo_too_and_chance_makes_none():
    for halo, least, most in ((0.9, 0.15, 0.9), (0.0, -0.15, 0.15)):
        layers, said = fitted(*rated(5, halo, kind="label")[:2])
        (found,) = joint_layers(layers, said, RaterPriors())[1]
        assert least < found.correlation < most
        assert found.n_shared == 240
