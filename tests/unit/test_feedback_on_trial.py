"""The choice model on trial: planted faults are found, its own votes pass, slow loops agree."""

import itertools

import numpy as np
import pytest

from karat.errors import InputError
from karat.feedback.quality import on_trial, scale_trial
from karat.feedback.quality.ordinal import Comparisons, level_probs
from karat.feedback.quality.reliability import fit_reliability

N_TEXTS, N_RATERS = 4, 12


def crowd(seed: int, n_prompts: int = 25, k: int = 3, cut: float = 0.6):
    """All pairs of four responses to each prompt, each judged by four raters, from the model itself."""
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(N_TEXTS), 2)))
    item = np.repeat(np.arange(n_prompts * len(pairs)), 4)
    a, b = (pairs[item % len(pairs)] + N_TEXTS * (item // len(pairs))[:, None]).T
    rater = np.concatenate([rng.choice(N_RATERS, 4, replace=False) for _ in range(n_prompts * len(pairs))])
    side = rng.choice([-1, 1], len(item))
    scores = rng.normal(0, 1.5, n_prompts * N_TEXTS)
    eta = rng.normal(1, 0.3, N_RATERS)[rater] * (scores[a] - scores[b])
    cuts = np.array([-cut, cut]) if k == 3 else np.zeros(1)
    probs = level_probs(eta, cuts, 0.05)
    level = (rng.random(len(item))[:, None] > probs.cumsum(1)[:, :-1]).sum(1)
    votes = Comparisons(a, b, level, k, side, rater, len(scores), N_RATERS)
    return votes, item, np.arange(len(scores)) // N_TEXTS, rng, eta


def with_levels(votes: Comparisons, level: np.ndarray) -> Comparisons:
    return Comparisons(
        votes.a, votes.b, level, votes.n_levels, votes.side, votes.annotator, votes.n_scores, votes.n_annotators
    )


def checks_of(votes, item, group, rng):
    return {one.name: one for one in on_trial.predictive_checks(votes, fit_reliability(votes), item, group, rng)}


def test_votes_of_the_model_itself_pass():
    votes, item, group, rng, _ = crowd(0)
    found = checks_of(votes, item, group, rng)
    assert set(found) == {
        "ties", "spread of raters' ties", "first shown preferred", "two raters agree on a pair", "cycles of three"
    }  # fmt: skip
    assert min(one.p_value for one in found.values()) > 0.02
    assert found["ties"].observed == pytest.approx((votes.level == 1).mean())


def test_a_planted_circle_shows_as_cycles_and_nothing_else_need():
    votes, item, group, rng, _ = crowd(1, k=2)
    i, j = votes.a % N_TEXTS, votes.b % N_TEXTS
    beats = (j - i) % 3 == 1  # among the first three: 0 beats 1 beats 2 beats 0
    circle = (i < 3) & (j < 3)
    level = np.where(circle, beats, votes.level)
    assert checks_of(votes, item, group, rng)["cycles of three"].p_value > 0.02
    found = checks_of(with_levels(votes, level), item, group, rng)["cycles of three"]
    assert (found.p_value, found.observed > found.high) == (pytest.approx(2 / 401), True)


def test_raters_who_never_tie_among_others_who_do_are_seen():
    votes, item, group, rng, eta = crowd(2)
    never = votes.annotator < 6
    level = np.where(never & (votes.level == 1), np.where(eta > 0, 2, 0), votes.level)
    found = checks_of(with_levels(votes, level), item, group, rng)
    assert found["spread of raters' ties"].p_value < 0.01


def test_the_share_of_cycles_is_that_of_a_slow_loop():
    votes, _, group, rng, _ = crowd(3, n_prompts=6)
    said = rng.choice([-1, 0, 1], len(votes))
    wins: dict[tuple[int, int], int] = {}
    for a, b, s in zip(votes.a.tolist(), votes.b.tolist(), said.tolist(), strict=True):
        wins[a, b] = wins.get((a, b), 0) + s
        wins[b, a] = wins.get((b, a), 0) - s
    cycles = []
    for trio in itertools.combinations(range(len(group)), 3):
        if len({group[one] for one in trio}) == 1:
            ways = [np.sign(wins[x, y]) for x, y in ((trio[0], trio[1]), (trio[1], trio[2]), (trio[2], trio[0]))]
            if 0 not in ways:
                cycles.append(abs(sum(ways)) == 3)
    found = on_trial.CycleShare.of(votes.a, votes.b, group)
    assert found is not None
    assert found.share(said) == pytest.approx(np.mean(cycles))
    assert on_trial.CycleShare.of(votes.a[:1], votes.b[:1], group) is None


@pytest.mark.parametrize("name", on_trial.LINKS)
def test_links_are_distributions_and_meet_where_they_must(name):
    eta = np.linspace(-4, 4, 9)
    for t in (0.3, 1.0):
        logs = on_trial.LINKS[name](eta, t)
        np.testing.assert_allclose(np.exp(logs).sum(1), 1, atol=1e-9)
        np.testing.assert_allclose(logs[:, ::-1], on_trial.LINKS[name](-eta, t), atol=1e-9)
    even = np.exp(on_trial.LINKS["Davidson"](np.zeros(1), 1.0))
    np.testing.assert_allclose(even, 1 / 3)
    # without ties Davidson is the logistic
    np.testing.assert_allclose(
        np.exp(on_trial.LINKS["Davidson"](eta, 0.0))[:, [0, 2]], np.exp(on_trial.LINKS["ordinal logistic"](eta, 0.0))[:, [0, 2]],
        atol=1e-9,
    )  # fmt: skip


def test_the_link_that_made_the_votes_wins_and_never_loses():
    votes, _, _, rng, eta = crowd(4, n_prompts=60)
    strong = 1.2 * eta
    probs = np.exp(on_trial.LINKS["Davidson"](strong, 3.0))  # ties even where the scores are far apart
    level = (rng.random(len(votes))[:, None] > probs.cumsum(1)[:, :-1]).sum(1)
    found = {one.name: one for one in on_trial.rival_links(with_levels(votes, level), rng)}
    assert found["Davidson"].difference.low > 0
    assert found["ordinal logistic"].difference.value == 0
    own = {one.name: one for one in on_trial.rival_links(votes, rng)}
    assert all(one.difference.value < 0.002 for one in own.values())


def test_a_taste_that_moves_is_found_and_a_change_of_raters_is_not():
    votes, _, _, rng, eta = crowd(5, n_prompts=50)
    trait = rng.normal(size=votes.n_scores)
    z = trait[votes.a] - trait[votes.b]
    time = rng.permutation(len(votes)).astype(float)
    t = time / (len(time) - 1) - 0.5
    cuts = np.array([-0.6, 0.6])

    def asked(weight: np.ndarray, when: np.ndarray):
        probs = level_probs(eta + weight * z, cuts, 0.05)
        moved = with_levels(votes, (rng.random(len(votes))[:, None] > probs.cumsum(1)[:, :-1]).sum(1))
        (one,) = on_trial.drift(moved, fit_reliability(moved), {"trait": z}, when, rng)
        return one

    found = asked(1.6 * t, time)
    assert found.p_value <= 0.01
    assert 0.5 < found.change < 2.2
    assert asked(np.zeros(len(t)), time).p_value > 0.05
    # raters with a taste of their own who come late: who judges when is no drift
    late = np.where(votes.annotator < 6, 0.0, 1e6) + time
    assert asked(np.where(votes.annotator < 6, 0.0, 1.0), late).p_value > 0.05
    assert on_trial.drift(votes, fit_reliability(votes), {"trait": z}, np.full(len(votes), np.nan), rng) == []


def test_too_few_votes_are_refused_in_one_line():
    votes, item, group, rng, _ = crowd(6, n_prompts=2)
    few = votes.select(np.arange(20))
    with pytest.raises(InputError, match="found 20 comparisons; expected 50"):
        on_trial.rival_links(few, rng)
    with pytest.raises(InputError, match="found 20 comparisons"):
        on_trial.predictive_checks(few, fit_reliability(few), item[:20], group, rng)


def planted_flips(first, second, n_ratings, *, n_prompts=100):
    """Pairs of responses whose ratings 1 … 5 are drawn from two distributions."""
    rng = np.random.default_rng(7)
    group = np.repeat(np.arange(n_prompts), 2)
    score = [rng.choice(5, n_ratings, p=(first, second)[one % 2]) + 1 for one in range(len(group))]
    response = np.repeat(np.arange(len(group)), n_ratings)
    return scale_trial.sign_flips(np.concatenate(score), response, group, rng)


def test_an_order_of_means_hangs_on_the_scale_where_distributions_cross_beyond_chance():
    low, high = [0.3, 0.3, 0.2, 0.1, 0.1], [0.1, 0.2, 0.2, 0.2, 0.3]
    assert planted_flips(low, high, 6).value <= 0.02
    assert planted_flips(low, low, 6).value <= 0.02  # crosses by chance nearly always
    assert planted_flips(low, low, 60).value <= 0.05
    ends, middle = [0.45, 0.05, 0, 0.05, 0.45], [0, 0.1, 0.8, 0.1, 0]
    crossing = planted_flips(ends, middle, 30)
    assert crossing.value >= 0.95
    assert crossing.low > 0.9
    rng = np.random.default_rng(7)
    few = scale_trial.sign_flips(np.arange(4), np.zeros(4, int), np.array([0]), rng)
    assert few.value is None
    assert "5 ratings each" in few.method
    ordered = scale_trial.sign_flips(np.repeat([2, 4], 30), np.repeat(np.arange(10), 6), np.arange(10) % 5, rng)
    assert (ordered.value, ordered.low) == (0.0, 0.0)


def test_a_few_who_care_much_turn_the_mean_and_not_the_median():
    level = np.array([6, 6, 2, 2, 2] * 10 + [6, 5, 4] * 10)  # of 7: strengths 6, 6, −2, −2, −2 and 6, 4, 2
    item = np.concatenate([np.repeat(np.arange(10), 5), np.repeat(np.arange(10, 20), 3)])
    found = scale_trial.mean_against_median(level, np.full(len(level), 7), item)
    assert (found.value, found.n) == (0.5, 20)
    none = scale_trial.mean_against_median(level % 3, np.full(len(level), 3), item)
    assert none.value is None
    assert "3 raters on 5 levels" in none.method
