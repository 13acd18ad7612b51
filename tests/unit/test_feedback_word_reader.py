"""What counting words learns from votes: the fit against its own conditions, planted words, folds and standard errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from karat.errors import InputError
from karat.feedback.quality.word_reader import L2, reader_accuracies, reader_weights
from worded_votes import crowd


def test_the_weights_are_those_of_another_solver():
    rng = np.random.default_rng(0)
    gaps = sparse.csr_matrix(rng.normal(size=(60, 12)) * (rng.random((60, 12)) < 0.4))
    # the same likelihood as a logistic regression without intercept, each vote told from both sides
    both = sparse.vstack([gaps, -gaps])
    told = np.r_[np.ones(60), np.zeros(60)]
    oracle = LogisticRegression(C=1 / (2 * L2), fit_intercept=False, tol=1e-10, max_iter=2000).fit(both, told)
    assert reader_weights(gaps) == pytest.approx(oracle.coef_[0], abs=1e-4)


def test_planted_words_are_learned_and_more_votes_teach_more():
    points = reader_accuracies(*crowd(300, np.random.default_rng(1)), np.random.default_rng(0))
    assert [point.n_prompts for point in points] == [300] * 4
    assert [point.n_votes for point in points] == [30, 60, 120, 240]
    # a quarter of the pairs are ties of words, right half of the time; a tenth of the others is noise: at best about .8
    assert 0.74 < points[-1].accuracy < 0.86
    assert points[-1].accuracy > points[0].accuracy + points[0].standard_error


def test_labels_without_meaning_are_predicted_by_a_coin():
    texts, winner, loser, prompt = crowd(200, np.random.default_rng(2), noise=0.5)
    for point in reader_accuracies(texts, winner, loser, prompt, np.random.default_rng(0)):
        assert abs(point.accuracy - 0.5) < 3 * point.standard_error  # 1 in 370 for each of four


def test_votes_on_one_prompt_stand_or_fall_together():
    texts, winner, loser, prompt = crowd(60, np.random.default_rng(3))
    once = reader_accuracies(texts, winner, loser, prompt, np.random.default_rng(0), fractions=(1.0,))[0]
    often = reader_accuracies(texts, winner * 4, loser * 4, prompt * 4, np.random.default_rng(0), fractions=(1.0,))[0]
    assert (once.n_held_out, often.n_held_out, often.n_prompts) == (60, 240, 60)
    # four equal votes a prompt are no more evidence about prompts than one
    assert often.standard_error == pytest.approx((often.accuracy * (1 - often.accuracy) / 59) ** 0.5, rel=1e-3)


def test_the_same_seed_the_same_points_and_the_order_of_votes_does_not_matter():
    texts, winner, loser, prompt = crowd(40, np.random.default_rng(4))
    first = reader_accuracies(texts, winner, loser, prompt, np.random.default_rng(7))
    assert first == reader_accuracies(texts, winner, loser, prompt, np.random.default_rng(7))
    turned = reader_accuracies(texts, winner[::-1], loser[::-1], prompt[::-1], np.random.default_rng(7))
    assert [point.accuracy for point in turned] == pytest.approx([point.accuracy for point in first])


def test_what_cannot_be_read_is_said():
    with pytest.raises(InputError, match="found 2 votes on 2 prompts; expected 5 prompts"):
        reader_accuracies(["a", "b"], [0, 1], [1, 0], ["p", "q"], np.random.default_rng(0))
    with pytest.raises(InputError, match="the texts of every pair have the same words"):
        reader_accuracies(["a b", "A  b"], [0] * 6, [1] * 6, list("pqrstu"), np.random.default_rng(0))
