"""Time is parted between comparisons, ratings and labels by what the answers in the store say of each."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from karat.belief import Belief
from karat.errors import ConfigError
from karat.feedback.allocation import break_even_sd
from karat.pipeline.asking import Asking, asked_beside, asked_question
from karat.pipeline.choosing import assumed_seconds
from karat.pipeline.kind_shares import KINDS_PARTED, kind_shares
from karat.records import Response, user_prompt

PROMPTS = {p.id: p for p in (user_prompt(f"about {i}?") for i in range(60))}
RESPONSES = [Response(key, f"answer {n} of {i}", "policy", n) for i, key in enumerate(PROMPTS) for n in range(3)]
BY_ID = {one.id: one for one in RESPONSES}
SCORE = dict(zip(BY_ID, np.random.default_rng(0).normal(0, 1, len(BY_ID)), strict=True))


def scorer(prompts, texts):
    """What the planted scores say, without any doubt."""
    ids = {p.id: i for i, p in enumerate(dict.fromkeys(prompts))}
    scores = [SCORE[Response(p.id, t, "").id] for p, t in zip(prompts, texts, strict=True)]
    draws = torch.tensor(scores).view(1, -1, 1).expand(4, -1, 1)
    return Belief(draws, torch.zeros(4, len(ids), 1), torch.tensor([ids[p.id] for p in prompts]))


def judged(sd, n=240, seed=1):
    """Ratings of noise sd, in logits, and comparisons with ties half a logit wide."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        one = RESPONSES[int(rng.integers(len(RESPONSES)))]
        score = 50 + 5 * (SCORE[one.id] + sd * rng.normal()) + 4 * (i % 3)
        row = {"origin": "person", "prompt_id": one.prompt_id, "annotator": f"r{i % 3}"}
        value = {"score": float(np.clip(score, 0, 100)), "low": 0, "high": 100}
        seconds = 2 * assumed_seconds(PROMPTS[one.prompt_id], one)
        found.append(SimpleNamespace(kind="rating", response_ids=(one.id,), value=value, active_s=seconds, **row))
        other = next(each for each in RESPONSES if each.prompt_id == one.prompt_id and each.id != one.id)
        gap = SCORE[one.id] - SCORE[other.id] + rng.logistic()
        value = {"level": 1 if abs(gap) < 0.5 else 2 * int(gap > 0), "n_levels": 3}
        ids = (one.id, other.id)
        found.append(SimpleNamespace(kind="comparison", response_ids=ids, value=value, active_s=None, **row))
    return found


def labelled(gain, n=400, seed=2):
    """Labels whose logit rises by `gain` for one of score, above a threshold that differs between raters."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        one = RESPONSES[int(rng.integers(len(RESPONSES)))]
        good = gain * (SCORE[one.id] - 0.5) - (i % 3 - 1) > rng.logistic()
        value = {"good": bool(good)}
        row = {"origin": "simulated", "prompt_id": one.prompt_id, "annotator": f"r{i % 3}", "active_s": None}
        found.append(SimpleNamespace(kind="label", response_ids=(one.id,), value=value, **row))
    return found


def shares(judgements, kinds=("comparison", "rating")):
    stored, rng = (PROMPTS, BY_ID), np.random.default_rng(0)
    return kind_shares(scorer, judgements, stored, PROMPTS, RESPONSES, rng, kinds=kinds)


def test_noise_and_ties_are_estimated_from_what_was_answered():
    found = shares(judged(0.8))
    assert found.rating_sd.low < 0.8 < found.rating_sd.high
    assert found.tie_width.low < 0.5 < found.tie_width.high
    one = RESPONSES[0]
    assert found.seconds["rating"] == pytest.approx(2 * assumed_seconds(PROMPTS[one.prompt_id], one))
    assert found.seconds["comparison"] == pytest.approx(assumed_seconds(PROMPTS[one.prompt_id], one, one))


def test_the_time_goes_to_ratings_below_the_break_even_noise_and_to_comparisons_above_it():
    found = shares(judged(0.3))
    ratio = found.seconds["comparison"] / found.seconds["rating"]
    gaps = np.array(
        [SCORE[a] - SCORE[b] for a in SCORE for b in SCORE if a != b and BY_ID[a].prompt_id == BY_ID[b].prompt_id]
    )
    even = break_even_sd(gaps, seconds_ratio=ratio, tie_width=found.tie_width.value)
    assert 0.35 < even < 3
    assert found.shares == {"comparison": 0.05, "rating": 0.95}
    noisy = shares(judged(2 * even))
    assert noisy.shares == {"comparison": 0.95, "rating": 0.05}


def test_without_ratings_nothing_is_known_of_them_and_a_little_is_tried():
    found = shares([])
    assert found.rating_sd.value is None
    assert [one.kind for one in found.rates] == ["comparison"]
    assert found.shares == {"comparison": 0.95, "rating": 0.05}


def test_labels_get_the_time_where_they_rise_steeply_with_the_score():
    """Break-even of labels with comparisons: g²·E[p(1 − p)]/2 for two labels against E[I(Δ)] for one comparison."""
    found = shares([*judged(3.0), *labelled(4.0)], KINDS_PARTED)
    assert found.label_scale.low < 1 / 4 < found.label_scale.high
    assert found.shares == {"comparison": 0.05, "rating": 0.05, "label": 0.9}
    rates = {one.kind: one.information for one in found.rates}
    p = 1 / (1 + np.exp(-(np.array(list(SCORE.values())) - 0.5) / found.label_scale.value))
    by_hand = np.mean(p * (1 - p)) / found.label_scale.value**2 / 2
    assert 0.9 < rates["label"] / by_hand < 1.1  # the threshold is estimated, here it is known
    noisy = shares([*judged(3.0), *labelled(1.0)], KINDS_PARTED)
    assert noisy.shares == {"comparison": 0.9, "rating": 0.05, "label": 0.05}
    assert noisy.label_scale.value > found.label_scale.value


def test_labels_that_say_nothing_of_the_score_have_no_price():
    found = shares([*judged(3.0), *labelled(0.0)], KINDS_PARTED)
    assert found.label_scale.value is None
    assert "label" not in {one.kind for one in found.rates}
    assert found.shares["label"] == 0.05
    assert shares(judged(3.0), KINDS_PARTED).label_scale.n == 0


def test_kinds_are_only_parted_where_there_is_time_to_part(tmp_path):
    beside = (asked_beside("rating"), asked_beside("label"))
    with pytest.raises(ConfigError, match="a budget of time to part"):
        Asking(reward=tmp_path, strategy="bald", beside=beside)
    with pytest.raises(ConfigError, match="found comparison and ranking together"):
        Asking(reward=tmp_path, strategy="bald", seconds=60.0, beside=(asked_question("ranking"),))
    assert Asking(reward=tmp_path, strategy="bald", seconds=60.0, beside=beside).beside == beside
