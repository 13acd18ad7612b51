"""Consensus: the paper's data, another library, planted raters, a likelihood that never falls, degenerate answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.answer_table import AnswerTable, answer_table
from karat.feedback.quality.consensus import credible_sets, dawid_skene, majority, one_coin
from reference import slow_dawid_skene

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "consensus.json").read_text(encoding="utf-8"))


def table_of(answers, *, k=None):
    item, rater, value = np.array(answers).T
    k = k or value.max() + 1
    return AnswerTable(
        item,
        rater,
        value,
        tuple(range(item.max() + 1)),
        tuple(f"r{w}" for w in range(rater.max() + 1)),
        tuple(range(k)),
    )


def planted(seed, *, n_items=300, n_raters=30, k=3, overlap=5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n_items)
    accuracy = rng.uniform(0.4, 0.95, n_raters)
    answers = []
    for item in range(n_items):
        for w in rng.choice(n_raters, overlap, replace=False):
            wrong = (truth[item] + rng.integers(1, k)) % k
            answers.append((item, w, truth[item] if rng.random() < accuracy[w] else wrong))
    return table_of(answers, k=k), truth, accuracy


def test_the_anaesthetists_of_1979():
    published = GOLDEN["anaesthetists"]
    answers = [
        (i, o, value - 1)
        for i, patient in enumerate(published["answers"])
        for o, given in enumerate(patient)
        for value in given
    ]
    found = dawid_skene(table_of(answers), smoothing=0, tol=1e-12)
    assert found.prevalence.round(2).tolist() == published["prevalence"]
    assert np.abs(found.confusion[0] - published["observer_1"]).max() <= 0.0051  # the paper rounds to two digits
    assert found.posterior.argmax(axis=1)[[0, 1, 10]].tolist() == [0, 3, 3]  # most said 3 of patient 2
    assert np.isclose(found.posterior.sum(axis=1), 1).all()


def test_equal_to_crowd_kit_without_a_prior():
    expected = GOLDEN["planted"]
    table = table_of(expected["answers"])
    found = dawid_skene(table, smoothing=0, tol=1e-14)
    np.testing.assert_allclose(found.posterior, expected["dawid_skene"]["posterior"], atol=1e-3)
    np.testing.assert_allclose(found.confusion, expected["dawid_skene"]["confusion"], atol=1e-3)
    coin = one_coin(table, smoothing=0, tol=1e-14)
    np.testing.assert_allclose(coin.posterior, expected["one_coin"]["posterior"], atol=1e-3)
    np.testing.assert_allclose(coin.accuracy, expected["one_coin"]["accuracy"], atol=1e-3)


def test_equal_to_the_slow_loop_step_by_step():
    answers = GOLDEN["planted"]["answers"]
    lengths = []
    for tol in (np.inf, 1e-2, 1e-4, 1e-13):  # where it stops, and so how many steps are compared
        found = dawid_skene(table_of(answers), smoothing=0, tol=tol)
        lengths.append(len(found.log_posterior))
        posterior, confusion = slow_dawid_skene.fit(answers, 80, 10, 3, lengths[-1])
        np.testing.assert_allclose(found.posterior, posterior, atol=1e-9)
        np.testing.assert_allclose(found.confusion, confusion, atol=1e-9)
    assert lengths[0] == 2
    assert sorted(set(lengths)) == lengths
    with pytest.raises(ConvergenceError, match="after 7 iterations"):
        dawid_skene(table_of(answers), smoothing=0, tol=0, max_iter=7)


@pytest.mark.parametrize("model", [dawid_skene, one_coin])
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_the_posterior_never_falls(model, smoothing):
    for seed in range(5):
        table, *_ = planted(seed, n_items=60, overlap=3)
        path = np.array(model(table, smoothing=smoothing).log_posterior)
        assert (np.diff(path) > -1e-9 * np.abs(path[:-1])).all()
        assert path[-1] > path[0]


def test_planted_raters_are_found_and_beat_the_majority():
    table, truth, accuracy = planted(1, n_items=1500)
    votes = majority(table)
    coin = one_coin(table)
    right = [(labels == truth).mean() for labels in (votes.winner, coin.posterior.argmax(axis=1))]
    assert right[1] > right[0] + 0.02
    inside = (coin.accuracy_low <= accuracy) & (accuracy <= coin.accuracy_high)
    assert inside.sum() >= 26  # binomial(30, .95) is below 26 in 2 of 100 cases
    assert np.corrcoef(coin.accuracy, accuracy)[0, 1] > 0.97
    full = dawid_skene(table)
    assert np.abs(full.accuracy - accuracy).max() < 0.12
    assert np.abs(full.confusion.sum(axis=2) - 1).max() < 1e-9
    assert abs(coin.certainty.mean() - right[1]) < 0.02  # the posteriors are calibrated


def test_a_prior_keeps_raters_of_one_answer_from_being_perfect():
    answers = [(0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    coin = one_coin(table_of(answers))
    assert 0.7 < coin.accuracy[2] < 0.85
    assert coin.accuracy_low[2] < 0.35
    bare = one_coin(table_of(answers), smoothing=0)
    assert bare.accuracy[2] == pytest.approx(1)
    assert np.isnan(bare.accuracy_low[2])


def test_names_of_values_and_raters_do_not_matter():
    table, *_ = planted(2, n_items=50)
    found = dawid_skene(table)
    flipped = AnswerTable(table.item, table.annotator, 2 - table.code, table.items, table.annotators, table.domain)
    np.testing.assert_allclose(dawid_skene(flipped).posterior[:, ::-1], found.posterior, atol=1e-9)
    order = np.random.default_rng(0).permutation(len(table))
    np.testing.assert_allclose(dawid_skene(table.select(order)).posterior, found.posterior, atol=1e-9)


def test_the_majority_is_a_view():
    table = answer_table([("x", "r0", "a"), ("x", "r1", "a"), ("x", "r2", "b"), ("y", "r0", "a"), ("y", "r1", "b")])
    found = majority(table)
    assert found.winner.tolist() == [0, -1]
    assert found.shares.tolist() == [[2 / 3, 1 / 3], [0.5, 0.5]]
    assert found.n_answers.tolist() == [3, 2]
    assert majority(table.select(np.array([0]))).winner.tolist() == [0, -1]


def test_credible_sets_hold_the_truth_as_often_as_they_say():
    table, truth, _ = planted(3, n_items=2000, overlap=2)
    posterior = one_coin(table).posterior
    sets = credible_sets(posterior, 0.8)
    covered = sets[np.arange(2000), truth].mean()
    assert covered > 0.8 - 3 * (0.16 / 2000) ** 0.5
    assert credible_sets(np.array([[0.6, 0.3, 0.1], [0.96, 0.03, 0.01]])).tolist() == [
        [True, True, True],
        [True, False, False],
    ]
    with pytest.raises(InputError, match="found level 1"):
        credible_sets(posterior, 1)


@pytest.mark.parametrize("model", [dawid_skene, one_coin])
def test_what_cannot_be_aggregated_is_said(model):
    with pytest.raises(InputError, match="found 0 answers"):
        model(answer_table([]))
    with pytest.raises(InputError, match="of 1 values"):
        model(answer_table([("x", "r0", 1), ("x", "r1", 1)]))
    with pytest.raises(InputError, match="a smoothing of -1"):
        model(answer_table([("x", "r0", 1), ("x", "r1", 0)]), smoothing=-1)
    unanswered = AnswerTable(np.array([0, 0]), np.array([0, 1]), np.array([1, 1]), ("x", "y"), ("r0", "r1"), (0, 1))
    found = model(unanswered)
    assert np.isclose(found.posterior[1], found.prevalence).all()


@pytest.mark.long
def test_a_million_answers_fit_into_memory():
    rng = np.random.default_rng(0)
    n_items, n_raters, k = 200_000, 20_000, 5
    truth, item = rng.integers(0, k, n_items), np.repeat(np.arange(n_items), 5)
    rater, accuracy = rng.integers(0, n_raters, len(item)), rng.beta(7, 3, n_raters)
    code = np.where(rng.random(len(item)) < accuracy[rater], truth[item], rng.integers(0, k, len(item)))
    names = tuple(map(str, range(n_raters)))
    table = AnswerTable(item, rater, code, tuple(range(n_items)), names, tuple(range(k)))
    for model in (one_coin, dawid_skene):
        assert (model(table).posterior.argmax(axis=1) == truth).mean() > (majority(table).winner == truth).mean() + 0.01
