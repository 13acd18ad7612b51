"""The EPIC-type distance: blind to scale and to a constant a prompt, 0, √½ and 1 where it must be."""

import numpy as np
import pytest

from karat.errors import InputError
from karat.reward.distance import epic_distance


def test_the_distance_sees_neither_scale_nor_what_a_prompt_gives_to_all_its_responses():
    rng = np.random.default_rng(0)
    prompt, reward = np.repeat(np.arange(50), 4), rng.normal(size=200)
    same = 3 * reward + rng.normal(size=50)[prompt]
    assert epic_distance(reward, same, prompt) == pytest.approx(0, abs=1e-7)
    assert epic_distance(reward, -same, prompt) == pytest.approx(1)
    assert 0.6 < epic_distance(reward, rng.normal(size=200), prompt) < 0.8  # √½ where they have nothing in common
    assert epic_distance(reward, same, rng.permutation(prompt)) > 0.05


def test_the_distance_is_that_of_a_slow_loop():
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 9, 60)
    one, two = rng.normal(size=(2, 60))
    left, right = [], []
    for p in set(prompt.tolist()):
        rows = [i for i in range(60) if prompt[i] == p]
        if len(rows) > 1:
            left += [one[i] - np.mean(one[rows]) for i in rows]
            right += [two[i] - np.mean(two[rows]) for i in rows]
    rho = np.corrcoef(left, right)[0, 1]
    assert epic_distance(one, two, prompt) == pytest.approx(np.sqrt((1 - rho) / 2))


def test_what_has_no_distance():
    assert np.isnan(epic_distance([1.0, 1.0], [0.0, 2.0], ["p", "p"]))
    assert np.isnan(epic_distance([1.0, 2.0], [0.0, 2.0], ["p", "q"]))  # one response a prompt says nothing
    with pytest.raises(InputError, match="expected one length"):
        epic_distance([1.0], [0.0, 2.0], ["p", "q"])
