"""How well token scores predict marks that were kept apart: by a slow loop, and with a known sign."""

import math

import numpy as np
import pytest
import torch

from karat.reward.dense import MarkedTokens, TokenHeads, fit_marks
from karat.reward.mark_quality import NOT_HELD_OUT, constant, held_out_quality, mark_rows, mark_table, nll, only

NAMES = ("rude", "step", "wrong")


def planted(n: int, seed: int, *, signal: float = 2.0) -> list[MarkedTokens]:
    """Responses of six tokens in two steps; a direction of the features says what is wrong, another which step is."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        inside, bad = rng.random(6) < 0.3, rng.random(2) < 0.5
        features = rng.standard_normal((6, 4))
        features[:, 0] += signal * inside
        features[:, 1] += signal * np.repeat(bad, 3)
        steps = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
        marks = torch.tensor([0 if one else 2 for one in bad])
        found.append(MarkedTokens(torch.from_numpy(features).float(), steps, marks, {"wrong": torch.tensor(inside)}))
    return found


def test_planted_marks_are_predicted_better_than_by_equal_scores_and_noise_is_not():
    kept, raters = planted(60, 1), [f"r{i % 6}" for i in range(60)]
    heads = fit_marks(planted(80, 0), NAMES)
    rude, step, wrong = held_out_quality(heads, NAMES, planted(80, 0), kept, raters, seed=0)
    assert step.gain.low > 0.1
    assert wrong.gain.low > 0.1
    assert (step.n_judgements, step.gain.n) == (80, 6)
    assert (rude.n_judgements, rude.nll.value, rude.nll.method) == (0, None, NOT_HELD_OUT)
    noise = planted(60, 3, signal=0.0)
    fitted = fit_marks(noise, NAMES)
    _, step, wrong = held_out_quality(
        fitted, NAMES, noise, planted(400, 4, signal=0.0), ["r"] * 200 + ["s"] * 200, seed=0
    )
    assert step.gain.value < 0
    assert wrong.gain.value < 0


def test_the_figures_are_those_of_the_slow_loop():
    heads = TokenHeads(
        torch.tensor([[0.0] * 4, [0.3, 1.0, 0, 0], [1.0, -0.2, 0, 0]]),
        torch.tensor([0, 0, 0.4]),
        torch.tensor([-0.5, 0.2]),
    )
    kept = planted(4, 5)
    found = {one.name: one for one in held_out_quality(heads, NAMES, planted(9, 6), kept, list("abab"), seed=0)}

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    tokens, flat = [], []
    share = (sum(float(one.inside["wrong"].float().mean()) for one in planted(9, 6)) + 0.5) / 10
    for one in kept:
        own = without = 0.0
        for features, is_in in zip(one.features.tolist(), one.inside["wrong"].tolist(), strict=True):
            p = sigmoid(features[0] - 0.2 * features[1] - 0.4)
            own -= math.log(p if is_in else 1 - p) / 6
            without -= math.log(share if is_in else 1 - share) / 6
        tokens.append(own)
        flat.append(without)
    assert found["wrong"].nll.value == pytest.approx(np.mean(tokens), rel=1e-5)
    assert found["wrong"].gain.value == pytest.approx(np.mean(flat) - np.mean(tokens), rel=1e-4)


def test_equal_scores_give_the_marks_of_training_their_own_shares():
    trained = planted(30, 7)
    for name in ("step", "wrong"):
        own = [only(one, name) for one in trained]
        best = sum(nll(constant(own, name, NAMES), one, NAMES) for one in own)
        for place in ("threshold", "cutpoints"):
            for by in (-0.3, 0.3):
                heads = constant(own, name, NAMES)
                moved = heads._replace(**{place: getattr(heads, place) + by})
                assert sum(nll(moved, one, NAMES) for one in own) > best - 1e-9


def test_a_class_without_kept_marks_is_a_dash_in_the_table():
    heads = fit_marks(planted(20, 0), NAMES)
    rows = mark_rows(held_out_quality(heads, NAMES, planted(20, 0), [], [], seed=0))
    assert mark_table(rows)[1:] == [["rude", "0", "–", "–"], ["step", "20", "–", "–"], ["wrong", "20", "–", "–"]]
