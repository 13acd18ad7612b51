"""Kinds of people, whom a reward serves, juries and weighted populations, against loops from the definitions."""

import numpy as np
import pytest

from karat.errors import ConfigError, ConvergenceError, InputError
from karat.reward.jury import (
    JuryComposition,
    borda,
    common_scale,
    condorcet,
    empanel,
    jury_scores,
    verdicts,
)
from karat.reward.linear_votes import LinearVotes
from karat.reward.mixtures import choose_kinds, fit_from, fit_mixture, membership_of, mixture_probs
from karat.reward.population import named_flips, side_by_side
from karat.reward.served import correct, predicted_side, served, worst_decile
from people_worlds import answers, planted_people
from reference import people_loops


def two_kinds(n_users=30, n_votes=20, seed=0):
    rng = np.random.default_rng(seed)
    theta = np.array([[1.5, 0.0, 1.0], [-1.5, 1.0, 0.5]])
    kind = (np.arange(n_users) % 3 == 0).astype(int)
    user = np.repeat(np.arange(n_users), n_votes)
    x = rng.normal(size=(len(user), 3))
    level = answers(rng, (x * theta[kind[user]]).sum(1), 3)
    return LinearVotes(x, level, 3, user, n_users), theta, kind


def test_mixture_finds_the_planted_kinds_and_never_lowers_its_posterior():
    votes, theta, kind = two_kinds()
    found = fit_mixture(votes, 2, np.random.default_rng(0), n_starts=3)
    assert (np.diff(found.path) > -1e-6).all()
    assert found.membership.argmax(1).tolist() == kind.tolist()  # the larger kind stands first
    assert np.abs(found.theta - theta).max() < 0.5
    assert found.shares == pytest.approx([21 / 32, 11 / 32], abs=1e-3)
    assert len(found.starts) == 3
    assert max(found.starts) == found.path[-1]


def test_names_of_kinds_do_not_matter():
    votes, *_ = two_kinds(12, 15)
    start = np.random.default_rng(1).dirichlet(np.ones(2), 12)
    prior = np.zeros(3), np.ones(3)
    one, two = fit_from(votes, start, prior, 500), fit_from(votes, start[:, ::-1], prior, 500)
    assert one[2][-1] == pytest.approx(two[2][-1], abs=1e-6)
    assert one[0][0].theta == pytest.approx(two[0][1].theta, abs=1e-4)
    assert membership_of(one[0], one[1], votes) == pytest.approx(
        membership_of(two[0], two[1], votes)[:, ::-1], abs=1e-4
    )
    again = [fit_mixture(votes, 2, np.random.default_rng(7), n_starts=2) for _ in range(2)]
    assert (again[0].theta == again[1].theta).all()


def test_number_of_kinds_is_what_was_planted():
    votes, *_ = two_kinds(24, 20, seed=2)
    found = choose_kinds(votes, [1, 2, 3], np.random.default_rng(0), n_starts=2)
    assert found.n_kinds == 2
    assert found.gain[0].low > 0
    alike, *_ = planted_people(16, 20, d=3, rank=0)
    assert choose_kinds(alike, [1, 2], np.random.default_rng(0), n_starts=2).n_kinds == 1


def test_one_kind_is_one_reward_and_probabilities_mix():
    votes, *_ = two_kinds(12, 15)
    one = fit_mixture(votes, 1, np.random.default_rng(0))
    assert one.shares.tolist() == [1.0]
    assert one.membership.tolist() == [[1.0]] * 12
    two = fit_mixture(votes, 2, np.random.default_rng(0), n_starts=1)
    first, second = (mixture_probs(two, np.tile(row, (12, 1)), votes) for row in ([1.0, 0.0], [0.0, 1.0]))
    mixed = mixture_probs(two, np.full((12, 2), 0.5), votes)
    assert mixed == pytest.approx((first + second) / 2)
    assert mixed.sum(1) == pytest.approx(np.ones(len(votes)))


def test_a_mixture_that_does_not_converge_gives_no_numbers():
    votes, *_ = two_kinds(12, 15)
    with pytest.raises(ConvergenceError, match="after 2 iterations the best of 2 starts"):
        fit_mixture(votes, 2, np.random.default_rng(0), n_starts=2, max_iter=2)
    with pytest.raises(InputError, match="13 kinds of 12 people"):
        fit_mixture(votes, 13, np.random.default_rng(0))


def test_correct_leaves_ties_out_and_counts_undecided_predictions_half():
    probs = np.array([[0.2, 0.1, 0.7], [0.5, 0.2, 0.3], [0.4, 0.2, 0.4], [0.1, 0.1, 0.8]])
    side = predicted_side(probs)
    assert side.tolist() == [1.0, 0.0, 0.5, 1.0]
    right, rows = correct(side, np.array([2, 2, 0, 1]), 3)
    assert right.tolist() == [1.0, 0.0, 0.5]
    assert rows.tolist() == [0, 1, 2]
    assert correct(predicted_side(np.array([[0.3, 0.7]])), np.array([1]), 2)[0].tolist() == [1.0]


def test_served_names_the_worst_group_and_tenth():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 25)
    group = (np.arange(40) < 10).astype(int)
    right = (rng.random(1000) < np.where(group[person] == 1, 0.4, 0.8)).astype(float)
    found = served(right, person, rng, group=group, groups=("many", "few"), n_draws=200)
    assert found.overall.value == pytest.approx(right.mean())
    by = dict(found.by_group)
    assert by["few"].value == pytest.approx(right[group[person] == 1].mean()) == pytest.approx(found.worst_group.value)
    assert "few" in found.worst_group.method
    assert found.worst_group.low < found.worst_group.value < found.worst_group.high
    assert found.worst_decile.value == pytest.approx(people_loops.lowest_tenth(right.tolist(), person.tolist()))
    assert found.worst_decile.value < found.if_equal < found.overall.value
    alone = served(right, person, rng, n_draws=50)
    assert alone.worst_group.value is None
    assert "fewer than two groups" in alone.worst_group.method
    few, equal = worst_decile(right[:100], person[:100], rng, n_draws=50)
    assert few.value is None
    assert equal is None
    assert "needs 10 people" in few.method
    with pytest.raises(InputError, match="one of each a vote"):
        served(right, person[1:], rng)


def test_the_worst_of_groups_of_few_people_lies_between_the_least_ends_of_their_intervals():
    def drawn(seed, sizes):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(len(sizes)), sizes)
        person = np.repeat(np.arange(len(group)), 12)
        chance = np.clip(rng.normal(0.7, 0.15, len(group)), 0.05, 0.95)  # people differ, groups do not
        right = (rng.random(len(person)) < chance[person]).astype(float)
        return served(right, person, rng, group=group, groups=list("abc")[: len(sizes)], n_draws=100).worst_group

    found = drawn(0, (4, 12))
    assert found.low < found.value < found.high
    assert found.n == 16
    assert "least ends of 2 groups' intervals over people at 97.5 % each" in found.method
    hits = [one.low <= 0.7 <= one.high for one in (drawn(seed, (3, 4, 3)) for seed in range(200))]
    assert np.mean(hits) > 0.93
    assert "a group has 1 person" in drawn(1, (1, 12)).method


def test_chance_alone_explains_the_worst_tenth_of_equals():
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(200), 20)
    found, equal = worst_decile((rng.random(4000) < 0.7).astype(float), person, rng, n_draws=100)
    assert abs(found.value - equal) < 0.05 < 0.7 - found.value


def test_seats_add_up_and_jurors_come_from_their_groups():
    made = JuryComposition({"a": 1, "b": 1, "c": 1}, 11)
    assert made.seats() == {"a": 4, "b": 4, "c": 3}
    members = {"a": [0, 1], "b": [2, 3, 4, 5, 6], "c": [7]}
    jurors = empanel(made, members, np.random.default_rng(0))
    assert len(jurors) == 11
    assert np.isin(jurors[:4], [0, 1]).all()
    assert len(set(jurors[4:8].tolist())) == 4
    assert (jurors == empanel(made, members, np.random.default_rng(0))).all()
    with pytest.raises(InputError, match="no member of 'b' for its 4 seats"):
        empanel(made, {"a": [0], "c": [1]}, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="expected seats and shares"):
        JuryComposition({"a": -1.0})


def test_jury_and_elections_follow_the_slow_loops():
    rng = np.random.default_rng(4)
    scores, prompts = rng.normal(size=(7, 12)) * rng.gamma(2, 2, (7, 1)), np.repeat([5, 1, 9], 4)
    scaled = common_scale(scores, prompts)
    assert scaled == pytest.approx(np.array(people_loops.on_common_scale(scores.tolist(), prompts.tolist())))
    assert common_scale(3 * scores + 100, prompts) == pytest.approx(scaled)
    assert (common_scale(np.ones((1, 4)), np.zeros(4)) == 0).all()
    jurors = np.array([0, 2, 3, 6])
    slow = [people_loops.median([scaled[j, b] for j in jurors]) for b in range(12)]
    assert jury_scores(scaled, jurors) == pytest.approx(slow)
    for own in (slice(0, 4), slice(4, 8), slice(8, 12)):
        assert borda(scaled[:, own]) == pytest.approx(people_loops.borda_count(scaled[:, own].tolist()))
        assert condorcet(scaled[:, own]) == people_loops.condorcet_winner(scaled[:, own].tolist())
    circle = np.array([[3, 2, 1], [1, 3, 2], [2, 1, 3]])
    assert condorcet(circle) is None
    assert borda(circle).tolist() == [1.0, 1.0, 1.0]
    assert condorcet(np.array([[3, 2, 1], [3, 1, 2], [1, 2, 3]])) == 0


def test_verdicts_count_changes_as_the_slow_loop_does():
    rng = np.random.default_rng(5)
    scores, prompts = rng.normal(size=(6, 12)), np.repeat([0, 1, 2], 4)
    mean = rng.normal(size=12)
    everybody = JuryComposition({"all": 1.0}, 6)
    found = verdicts(scores, mean, prompts, everybody, {"all": range(6)}, rng, n_juries=3)
    jury = np.median(common_scale(scores, prompts), axis=0)
    assert found.jury_change.value == pytest.approx(
        people_loops.changed_pairs(jury.tolist(), mean.tolist(), prompts.tolist())
    )
    assert found.jury_split.value == 0.0  # all six sit on each of the juries
    best = [int(mean[p : p + 4].argmax()) for p in (0, 4, 8)]
    scaled = common_scale(scores, prompts)
    winners = [people_loops.condorcet_winner(scaled[:, p : p + 4].tolist()) for p in (0, 4, 8)]
    assert found.no_condorcet.value == pytest.approx(np.mean([one is None for one in winners]))
    counts = [people_loops.borda_count(scaled[:, p : p + 4].tolist()) for p in (0, 4, 8)]
    assert found.borda_change.value == pytest.approx(
        np.mean([int(np.argmax(c)) != b for c, b in zip(counts, best, strict=True)])
    )
    agreed = verdicts(np.tile(mean, (6, 1)), mean, prompts, everybody, {"all": range(6)}, rng, n_juries=2)
    assert agreed.jury_change.value == agreed.jury_best_change.value == agreed.condorcet_change.value == 0.0


def test_weighting_the_minority_flips_what_only_the_majority_wanted():
    rng = np.random.default_rng(6)
    kind = (np.arange(40) < 10).astype(int)
    user = np.repeat(np.arange(40), 20)
    x = rng.normal(size=(800, 2))
    theta = np.array([[1.0, 1.0], [-2.0, 1.0]])
    votes = LinearVotes(x, answers(rng, (x * theta[kind[user]]).sum(1), 3), 3, user, 40)
    pairs = np.array([[1.0, 0.05], [0.0, 1.0], [0.4, -0.1]])
    weights = np.where(kind == 1, 3.0, 1 / 3)
    found = side_by_side(votes, weights, pairs, np.random.default_rng(0), n_draws=20)
    assert found.unweighted.theta[0] > 0 > found.weighted.theta[0]
    assert found.flips == (0, 2)
    assert found.flip_share.value == pytest.approx(2 / 3)
    assert found.noise_share < found.flip_share.low + 0.35
    rows = named_flips(found, pairs, [{"a": "a", "b": "b"}, {"a": "c", "b": "d"}, {"a": "e", "b": "f"}], 1)
    assert rows == [{"a": "a", "b": "b", "unweighted": rows[0]["unweighted"], "weighted": rows[0]["weighted"]}]
    assert rows[0]["unweighted"] > 0 > rows[0]["weighted"]
    few = np.flatnonzero((user < 4) | ((user >= 10) & (user < 14)))
    _, code = np.unique(user[few], return_inverse=True)
    eight = LinearVotes(votes.x[few], votes.level[few], 3, code, 8)
    left_out = side_by_side(eight, np.repeat([3.0, 1 / 3], 4), pairs, np.random.default_rng(0), n_draws=5).flip_share
    assert "8 clusters" in left_out.method
    assert "bootstrap" not in left_out.method
    same = side_by_side(votes, np.ones(40), pairs, np.random.default_rng(0), n_draws=10)
    assert same.flips == ()
    assert same.flip_share.value == 0.0
    with pytest.raises(InputError, match="weights for 40 raters"):
        side_by_side(votes, weights[1:], pairs, rng)
