"""A person's own reward: information, questions, answers in any order, and limits that taste cannot override."""

import numpy as np
import pytest

from karat.errors import InputError
from karat.reward.personal import (
    Limits,
    as_posterior,
    choose_questions,
    expected_curvature,
    information,
    new_person,
    person_scores,
    ranked,
    ruling,
    standing,
    updated,
    winner,
)
from karat.reward.user_em import fit_users
from people_worlds import answers, planted_people
from reference import people_loops


@pytest.fixture(scope="module")
def population():
    votes, theta, *_ = planted_people(40, 20, d=5, seed=1)
    return fit_users(votes, 2), theta


def test_information_is_the_mutual_information_of_the_slow_sum(population):
    model, _ = population
    person = new_person(model)
    x = np.random.default_rng(0).normal(size=(4, 5))
    bits = information(model, person, x)
    for row, found in zip(x, bits, strict=True):
        z = model.basis @ row
        mean, sd = row @ model.shared + z @ person.mean, np.sqrt(z @ person.cov @ z)
        assert found == pytest.approx(people_loops.mutual_information(mean, sd, model.cuts[1:-1]), abs=1e-4)
    assert information(model, person, np.zeros((1, 5))) == pytest.approx([0.0], abs=1e-12)
    assert information(model, person, x) == pytest.approx(information(model, person, -x))
    assert (bits <= np.log2(3)).all()


def test_a_batch_does_not_ask_the_same_thing_twice(population):
    model, _ = population
    person = new_person(model)
    one, other = model.basis[0] * 2, model.basis[1] * 2
    x = np.stack([one, one * 1.001, other])
    chosen = choose_questions(model, person, x, 2)
    assert set(chosen.tolist()) in ({0, 2}, {1, 2})
    assert sorted(choose_questions(model, person, x, 9).tolist()) == [0, 1, 2]
    # the expected curvature of a two-sided logistic vote at a known η is p(1 − p) for two levels
    votes, *_ = planted_people(20, 15, d=3, n_levels=2)
    two = fit_users(votes, 1)
    p = 1 / (1 + np.exp(-0.7))
    assert expected_curvature(0.7, 0.0, two) == pytest.approx(p * (1 - p), abs=1e-12)


def test_answers_count_the_same_in_any_order_and_narrow_the_posterior(population):
    model, _ = population
    rng = np.random.default_rng(1)
    x, taste = rng.normal(size=(12, 5)), rng.normal(size=2) * 1.5
    level = answers(rng, x @ (model.shared + taste @ model.basis), 3)
    at_once = updated(model, new_person(model), x, level)
    in_turn = new_person(model)
    for i in rng.permutation(12):
        in_turn = updated(model, in_turn, x[i], level[i])
    assert at_once.mean == pytest.approx(in_turn.mean, abs=1e-6)
    assert at_once.cov == pytest.approx(in_turn.cov, abs=1e-6)
    assert at_once.n_votes == 12
    assert np.linalg.eigvalsh(model.cov - at_once.cov).min() > 0
    assert as_posterior([at_once, in_turn]).n_votes.tolist() == [12, 12]


def test_nobody_known_gets_the_population_and_it_is_said(population):
    model, _ = population
    person = new_person(model)
    features = np.random.default_rng(2).normal(size=(3, 5))
    mean, spread = person_scores(model, person, features)
    assert mean == pytest.approx(features @ (model.shared + model.mean[0] @ model.basis))
    z = features @ model.basis.T
    assert spread == pytest.approx(np.sqrt([row @ model.cov @ row for row in z]))
    assert standing(model, person).startswith("0 answers; 0% of the variance")
    assert "mostly the population's" in standing(model, person)
    many = updated(model, person, np.random.default_rng(3).normal(size=(30, 5)), np.full(30, 1))
    assert "mostly" not in standing(model, many)
    assert standing(model, many).startswith("30 answers")
    clear = updated(model, person, np.random.default_rng(3).normal(size=(3, 5)) * 20, np.full(3, 1))
    assert "mostly" not in standing(model, clear)  # few answers that told most of what there is to know
    assert standing(model, updated(model, person, np.ones((1, 5)), np.array([1]))).startswith("1 answer; ")
    with pytest.raises(InputError, match="group 3; expected 0 … 0"):
        new_person(model, 3)


def test_ten_chosen_questions_tell_more_than_ten_random_ones(population):
    model, _ = population
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 5))
    chosen, drawn = [], []
    for _ in range(20):
        theta = model.shared + (rng.normal(size=2) * np.sqrt(np.diag(model.cov))) @ model.basis
        level = answers(rng, x @ theta, 3)
        person = new_person(model)
        for _ in range(10):
            place = choose_questions(model, person, x, 1)
            person = updated(model, person, x[place], level[place])
        random = updated(model, new_person(model), x[:10], level[:10])
        chosen.append(np.linalg.slogdet(person.cov)[1])
        drawn.append(np.linalg.slogdet(random.cov)[1])
    assert np.mean(np.array(chosen) < np.array(drawn)) > 0.8


def test_limits_stand_above_taste():
    limits = Limits({"harmless": -0.5, "honest": 0.0}, ("threat",))
    objectives = {"harmless": np.array([0.0, -1.0, 0.2, 0.1]), "honest": np.array([0.1, 0.5, -0.2, 0.3])}
    verdict = ruling(limits, objectives, [(), (), (), ("threat", "rude")])
    assert verdict.allowed.tolist() == [True, False, False, False]
    assert verdict.reasons == ("", "harmless is 0.5 below its floor", "honest is 0.2 below its floor", "breaks threat")
    scores = np.array([-100.0, 3.0, 2.0, 50.0])
    assert ranked(scores, verdict).tolist() == [0, 2, 1, 3]
    assert winner(scores, verdict) == 0
    for taste in np.random.default_rng(0).normal(0, 1e6, (50, 4)):
        assert ranked(taste, verdict).tolist() == [0, 2, 1, 3]
    assert winner(scores, ruling(limits, {k: v - 9 for k, v in objectives.items()}, [()] * 4)) is None
    free = ruling(Limits({}), {}, [("rude",)] * 4)
    assert ranked(scores, free).tolist() == [3, 1, 2, 0]
    assert free.reasons == ("",) * 4
    with pytest.raises(InputError, match="a floor on 'honest' and scores of harmless"):
        ruling(limits, {"harmless": objectives["harmless"]}, [()] * 4)
    with pytest.raises(InputError, match="expected a finite number"):
        Limits({"harmless": float("nan")})


def test_a_principle_is_known_in_any_case_and_a_misspelt_one_lets_nothing_win():
    limits = Limits({}, ("threat", "Personal data"))
    verdict = ruling(limits, {}, [["Threat"], ["personal  DATA", "rude"], []])
    assert verdict.allowed.tolist() == [False, False, True]
    assert verdict.reasons == ("breaks threat", "breaks Personal data", "")
    with pytest.raises(InputError, match="found 'threats', which is no principle; did you mean 'threat'"):
        ruling(limits, {}, [["threats"]])


def test_somebody_without_a_group_starts_between_all_groups():
    votes, _, _, group = planted_people(30, 20, d=4, rank=1, group_shift=3.0, seed=2)
    model = fit_users(votes, 1, group=group, groups=("left", "right"))
    nobody, left = new_person(model), new_person(model, 0)
    assert nobody.mean.tolist() == [0.0]
    assert left.mean == pytest.approx(model.mean[0])
    between = (model.mean[:, 0] ** 2).mean()
    assert nobody.cov == pytest.approx(model.cov + between)
    assert left.cov == pytest.approx(model.cov)
    x = np.ones((1, 4))
    assert updated(model, left, x, np.array([2])).group == 0
    assert updated(model, nobody, x, np.array([2])).group == -1
