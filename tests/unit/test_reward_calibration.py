"""Calibration by slice: planted temperatures are found, small slices are left alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from karat.choice import VoteBatch
from karat.errors import InputError
from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams, LabelBatch, LabelParams, RatingBatch
from karat.ratings import RatingParams
from karat.records import Estimate
from karat.reward.calibration import (
    VoteModel,
    along_temperature,
    predicted_probs,
    slice_calibration,
    temperature_finding,
    vote_nll,
)
from karat.reward.prediction import fit_feedback_temperature, kind_calibration, predicted_nll
from karat.reward.raters import RaterPriors

MODEL = VoteModel(RaterPriors(modelled=False), (0.0,))


def planted(n=2000, seed=0):
    """Votes of two groups: for `calm` the scores are twice too large, for `sure` they are right."""
    rng = np.random.default_rng(seed)
    scores = torch.tensor(2 * rng.standard_normal((1, 80)))
    a, b = rng.integers(0, 80, (2, n))
    names = np.where(np.arange(n) < n // 2, "calm", "sure")
    eta = (scores[0, a] - scores[0, b]).numpy() / np.where(names == "calm", 2.0, 1.0)
    level = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    zeros = torch.zeros(n)
    votes = VoteBatch(torch.tensor(a), torch.tensor(b), torch.tensor(level), zeros, zeros.long(), 2)
    return scores, votes, names.tolist()


def test_each_group_has_its_own_temperature():
    scores, votes, names = planted()
    found = slice_calibration(scores, votes, MODEL, names)
    assert {name: one.n for name, one in found.items()} == {"calm": 1000, "sure": 1000}
    # 1,000 votes: the standard error of log T is about 0.07 here; 4 of them either way
    assert 2.0 / 1.35 < found["calm"].temperature < 2.0 * 1.35
    assert 1 / 1.35 < found["sure"].temperature < 1.35
    assert found["calm"].nll_corrected < found["calm"].nll - 0.01
    # the interval is where twice the loss of log-likelihood is at most 3.84, and holds the planted temperature
    for name, true in (("calm", 2.0), ("sure", 1.0)):
        one = found[name]
        assert one.low < true < one.high
        own = votes.select(torch.tensor([i for i, each in enumerate(names) if each == name]))
        best, *ends = (
            float(vote_nll(predicted_probs(scores, own, MODEL, temperature=t), own).sum())
            for t in (one.temperature, one.low, one.high)
        )
        assert [2 * (end - best) for end in ends] == pytest.approx([3.841459] * 2, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("priors", [RaterPriors(modelled=False), RaterPriors()])
def test_between_its_points_a_likelihood_is_followed(priors):
    scores, votes, _ = planted(200)
    model = VoteModel(priors, (0.0,))
    calls = []

    def total_at(temperature: float) -> torch.Tensor:
        calls.append(temperature)
        return vote_nll(predicted_probs(scores, votes, model, temperature=temperature), votes).sum().unsqueeze(0)

    followed = along_temperature(total_at)
    assert len(calls) == 32
    for temperature in (1 / 20, 0.06, 0.31, 1.0, 1.7, 5.0, 19.9, 20.0):
        # 200 votes, each off by some 1e-7 nats
        np.testing.assert_allclose(followed(temperature), total_at(temperature).numpy(), rtol=0, atol=2e-4)


def test_a_small_slice_is_reported_without_a_temperature():
    scores, votes, names = planted()
    names[-30:] = ["few"] * 30
    found = slice_calibration(scores, votes, MODEL, names)
    assert found["few"].temperature is None
    assert found["few"].nll_corrected is None
    assert found["few"].n == 30
    with pytest.raises(InputError, match="1 names for 2000 votes"):
        slice_calibration(scores, votes, MODEL, ["x"])


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ((1.2, 0.9, 1.6), "info", ""),
        ((20.0, 3.0, 20.0), "warn", "ends at 20: these votes would have the scores count for less still"),
        ((0.05, 0.05, 0.4), "warn", "ends at 0.05: these votes would have the scores count for more still"),
        ((1.2, 0.3, 20.0), "info", "the interval reaches 20: these votes hardly say how sure"),
        ((1.2, 0.05, 20.0), "info", "the interval reaches 0.05 and 20: these votes hardly say how sure"),
    ],
)
def test_a_temperature_at_an_end_of_the_search_is_said_to_be_there(ends, status, said):
    found = temperature_finding(Estimate(*ends, 300, "profile likelihood"))
    assert (found.name, found.status) == ("reward.temperature", status)
    assert said in found.detail
    assert bool(said) == ("the search goes from 0.05 to 20" in found.detail)
    assert temperature_finding(None).status == "not measured"


def test_the_temperature_of_held_out_votes_has_the_interval_that_their_likelihood_gives():
    scores, votes, _ = planted()
    ones, zeros = torch.ones(1), torch.zeros(1)
    params = FeedbackParams(ones, zeros, zeros, {"comparison/2": zeros})
    channel = Channel(
        "comparison/2", "comparison", 0, votes, votes.annotator, torch.ones(len(votes)), torch.arange(2000)
    )
    found = fit_feedback_temperature(scores[..., None] * 3, FeedbackBatch((channel,)), params, MODEL.priors)
    assert found.n == 2000
    assert found.low < found.value < found.high < 1.5 * found.low

    def total(temperature: float) -> float:
        each = predicted_nll(scores * 3, channel, params, MODEL.priors, temperature=temperature)
        return float(each.sum())

    for end in (found.low, found.high):
        assert 2 * (total(end) - total(found.value)) == pytest.approx(3.841458820694124, rel=1e-3)


def test_kinds_are_held_against_the_same_temperature():
    scores, votes, _ = planted()
    ones, zeros = torch.ones(1), torch.zeros(1)
    params = FeedbackParams(
        ones, zeros, zeros, {"comparison/2": zeros},
        ratings={"rating/preference/1-5": RatingParams(zeros, ones, ones)},
    )  # fmt: skip
    channel = Channel(
        "comparison/2", "comparison", 0, votes, votes.annotator, torch.ones(len(votes)), torch.arange(2000)
    )
    rated = RatingBatch(votes.a[:60], scores[0, votes.a[:60]].float(), votes.annotator[:60])
    ratings = Channel(
        "rating/preference/1-5", "rating", 0, rated, votes.annotator[:60], torch.ones(60), torch.arange(60)
    )
    unseen = dataclasses.replace(channel, name="comparison/5")
    batch = FeedbackBatch((channel, ratings, unseen))
    found = kind_calibration(scores[..., None] * 3, batch, params, MODEL.priors, temperature=3.0)
    # the votes are half of a calm group (T = 2) and half of a sure one; kinds that training did not see are left out
    assert set(found) == {"comparison/2", "rating/preference/1-5"}
    alone = slice_calibration(scores, votes, MODEL, ["all"] * len(votes))["all"]
    assert found["comparison/2"].temperature == pytest.approx(alone.temperature, rel=1e-3)
    assert found["comparison/2"].nll == pytest.approx(alone.nll)
    assert found["rating/preference/1-5"].n == 60
    assert found["rating/preference/1-5"].temperature is not None


@pytest.mark.parametrize("level", [0.0, 40.0])
def test_labels_and_ratings_have_a_temperature_about_their_own_mean(level):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 6000, generator=generator, dtype=torch.float64) + level
    relative = scores[0] - level
    unit, response, who = torch.ones(1, dtype=torch.float64), torch.arange(6000), torch.zeros(6000, dtype=torch.long)
    priors = RaterPriors(modelled=False)
    good = torch.rand(6000, generator=generator, dtype=torch.float64) < torch.sigmoid(
        relative / 2
    )  # half the fitted gain
    value = 0.5 + 0.05 * relative + 0.05 * torch.randn(6000, generator=generator, dtype=torch.float64)
    params = FeedbackParams(
        unit, unit * 0, unit * 0, {},
        ratings={"rating/preference/1-5": RatingParams(0.5 - 0.1 * level * unit, unit * 0.1, unit * 0.05)},
        labels={"label/preference": LabelParams(unit * level, unit[0])},
    )  # fmt: skip
    labels = Channel("label/preference", "label", 0, LabelBatch(response, good, who), who, torch.ones(6000), response)
    ratings = Channel(
        "rating/preference/1-5", "rating", 0, RatingBatch(response, value, who), who, torch.ones(6000), response
    )
    found = kind_calibration(scores[..., None], FeedbackBatch((labels, ratings)), params, priors, temperature=1.0)
    for one in found.values():
        assert one.low < 2 < one.high
        assert one.high - one.low < 0.6
        assert one.nll_corrected < one.nll
