"""Calibration by slice: planted temperatures are found, small slices are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from karat.choice import VoteBatch
from karat.errors import InputError
from karat.reward.calibration import VoteModel, slice_calibration
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


def test_a_small_slice_is_reported_without_a_temperature():
    scores, votes, names = planted()
    names[-30:] = ["few"] * 30
    found = slice_calibration(scores, votes, MODEL, names)
    assert found["few"].temperature is None
    assert found["few"].nll_corrected is None
    assert found["few"].n == 30
    with pytest.raises(InputError, match="1 names for 2000 votes"):
        slice_calibration(scores, votes, MODEL, ["x"])
