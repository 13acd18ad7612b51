"""The others' opinion leaves a rater out; habits are recovered; an honest rater's p-values are what they say."""

import numpy as np
import pytest
from scipy import optimize

from detector_crowds import crowd, replaced, shown_first, with_levels
from karat.errors import InputError
from karat.feedback.detect.habits import (
    KINDS,
    Population,
    Tally,
    fit_habits,
    habit_p_values,
    kind_log_odds,
    robust_habits,
    tally,
)
from karat.feedback.detect.pool import N_FOLDS, RIDGE, pool_view


def test_nobody_is_measured_against_himself():
    record = crowd(2, n_raters=40)
    before = pool_view(record)
    mine = record.annotator == 3
    after = pool_view(with_levels(record, [3], 2 - record.level))
    if before.concentration == after.concentration:
        assert np.allclose(before.logit[mine], after.logit[mine])
    assert np.allclose(before.prior[mine], after.prior[mine])
    assert np.allclose(before.counts[mine], after.counts[mine])
    assert not np.allclose(before.logit[~mine], after.logit[~mine])


def test_nor_against_a_second_answer_of_his_own():
    record = crowd(2, n_raters=40)
    twice = {name: np.append(getattr(record, name), getattr(record, name)[:1]) for name in (
        "item", "a", "b", "level", "n_levels", "side", "annotator")}  # fmt: skip
    assert np.allclose(pool_view(replaced(record, **twice)).counts[[0, -1]], pool_view(record).counts[0])


def test_strengths_are_the_ridge_fit_of_the_other_folds():
    record = crowd(3, n_raters=30, n_prompts=6, n_votes=10)
    pool = pool_view(record)
    low, high = record.texts_in_order
    for fold in range(N_FOLDS):
        used = (record.annotator % N_FOLDS != fold) & (record.direction != 0)

        def loss(s, used=used):
            gap = (s[low] - s[high])[used] * record.direction[used]
            return np.logaddexp(0, -gap).sum() + RIDGE / 2 * (s**2).sum()

        best = optimize.minimize(loss, np.zeros(len(record.texts)), options={"gtol": 1e-8}).x
        mine = record.annotator % N_FOLDS == fold
        assert np.allclose(pool.prior[mine], 1 / (1 + np.exp(-(best[low] - best[high])[mine])), atol=1e-3)


def test_who_is_not_heard_does_not_count():
    record = crowd(4, n_raters=40)
    weights = np.ones(40)
    weights[:5] = 0
    heard = pool_view(record, weights)
    other = pool_view(with_levels(record, range(5), 2), weights)
    assert np.allclose(heard.probs, other.probs)
    with pytest.raises(InputError, match="expected 40 numbers ≥ 0"):
        pool_view(record, np.full(40, -1.0))


def test_a_tally_counts_votes_and_its_likelihood_is_that_of_single_votes():
    record = crowd(5, n_raters=30)
    pool = pool_view(record)
    counts = tally(record, pool)
    decided = record.direction != 0
    assert np.array_equal(counts.n.sum(axis=1), np.bincount(record.annotator[decided], minlength=30))
    agrees = np.where(pool.logit < 0, -1, 1) == record.direction
    assert np.array_equal(counts.n_agree.sum(axis=1), np.bincount(record.annotator, agrees & decided, 30))
    a, b = 0.7, -0.4
    slow = [
        sum(
            agree * np.log(p) + (n - agree) * np.log(1 - p)
            for agree, n, gap, shown in zip(counts.n_agree[w], counts.n[w], counts.gap, counts.shown, strict=True)
            for p in [1 / (1 + np.exp(-(a * gap + b * shown)))]
        )
        for w in range(30)
    ]
    assert np.allclose(counts.loglik(np.array([a]), np.array([b]))[:, 0], slow)


def drawn_tally(rng, a, b, n_votes):
    gap, shown = np.repeat([0.3, 1.0, 2.0, 3.0], 2), np.tile([-1.0, 1.0], 4)
    n = rng.multinomial(n_votes, np.full(8, 1 / 8), len(a)).astype(float)
    p = 1 / (1 + np.exp(-(np.outer(a, gap) + np.outer(b, shown))))
    return Tally(n, rng.binomial(n.astype(int), p).astype(float), gap, shown)


def test_the_honest_population_is_recovered_beside_a_tenth_of_others():
    rng = np.random.default_rng(6)
    a, b = rng.normal(1.0, 0.25, 3000), rng.normal(0.1, 0.35, 3000)
    a[:100], b[100:200], a[100:200], a[200:300], b[200:300] = -a[:100], 4.0, 0.0, 0.0, 0.0
    habits = fit_habits(drawn_tally(rng, a, b, 60))
    found = habits.population
    # standard errors of means over 2,700 raters: below 0.01
    assert abs(found.competence - 1.0) < 0.04
    assert abs(found.competence_sd - 0.25) < 0.04
    assert abs(found.side_habit - 0.1) < 0.04
    assert abs(found.side_habit_sd - 0.35) < 0.04
    assert np.all(np.abs(habits.shares[[1, 2, 3]] - 1 / 30) < 0.015)
    assert (habits.honest[:200] < 0.5).mean() > 0.95
    assert (habits.honest[300:] > 0.5).mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_rater_reaches_a_p_value_no_oftener_than_it_says(kind):
    rng = np.random.default_rng(7)
    n = 3000
    habits = fit_habits(drawn_tally(rng, rng.normal(1, 0.3, n), rng.normal(0, 0.3, n), 16))
    candidates = np.flatnonzero(habits.log_odds[:, KINDS.index(kind)] > 0)
    p = np.ones(n)
    p[candidates] = habit_p_values(habits, kind, candidates, rng, n_draws=2000)
    for level in (0.003, 0.01):
        # binomial: mean + 4 sd
        assert (p <= level).sum() <= n * level + 4 * (n * level) ** 0.5


def test_a_p_value_is_the_frequency_among_honest_raters_of_the_same_questions():
    rng = np.random.default_rng(8)
    habits = fit_habits(drawn_tally(rng, rng.normal(1, 0.3, 500), rng.normal(0, 0.3, 500), 30))
    odds = habits.log_odds[:, 0]
    rater = int(np.flatnonzero(odds > 0)[np.argmin(odds[odds > 0])])  # the least suspect of the suspects
    found = habit_p_values(habits, "flipper", np.array([rater]), rng, n_draws=8000)[0]
    n, gap, shown = habits.tally.n[rater], habits.tally.gap, habits.tally.shown
    one, draws = habits.population, 40_000
    a, b = rng.normal(one.competence, one.competence_sd, draws), rng.normal(one.side_habit, one.side_habit_sd, draws)
    agree = rng.binomial(n.astype(int), 1 / (1 + np.exp(-(np.outer(a, gap) + np.outer(b, shown)))))
    odds = kind_log_odds(Tally(np.broadcast_to(n, agree.shape), agree.astype(float), gap, shown), one)[:, 0]
    share = (odds >= habits.log_odds[rater, 0] - 1e-9).mean()
    assert abs(found - share) < 4 * (share / 8000) ** 0.5 + 1 / 8000


def test_kinds_are_told_apart():
    record = crowd(9, n_votes=40)
    level = np.where(record.annotator < 3, 2 - record.level, record.level)
    level = np.where((record.annotator >= 3) & (record.annotator < 6), shown_first(record), level)
    random = np.random.default_rng(0).choice([0, 2], len(record))
    level = np.where((record.annotator >= 6) & (record.annotator < 9), random, level)
    _, habits = robust_habits(replaced(record, level=level))
    assert habits.log_odds[:3].argmax(axis=1).tolist() == [0] * 3
    assert habits.log_odds[3:6].argmax(axis=1).tolist() == [2] * 3
    assert habits.log_odds[6:9].argmax(axis=1).tolist() == [1] * 3
    assert (habits.honest[:6] < 0.001).all()
    assert (habits.honest[6:9] < 0.05).sum() >= 2
    assert (habits.honest[9:] > 0.5).mean() > 0.97


def test_the_flippers_do_not_bend_what_they_are_measured_against():
    record = crowd(10, n_votes=40)
    truth = pool_view(record).logit
    flipped = with_levels(record, range(12), 2 - record.level)
    plain, (pool, _) = pool_view(flipped), robust_habits(flipped)
    mine = record.annotator < 12
    assert np.abs(pool.logit - truth)[mine].mean() < np.abs(plain.logit - truth)[mine].mean()


def test_without_votes_there_is_a_population_all_the_same():
    counts = Tally(np.zeros((3, 2)), np.zeros((3, 2)), np.ones(2), np.array([-1.0, 1.0]))
    habits = fit_habits(counts)
    assert isinstance(habits.population, Population)
    assert np.all(np.abs(habits.log_odds) < 1e-9)
