"""Several objectives made one: the formula, floors that bite, and names that are not there."""

import pytest
import torch

from karat.belief import AGGREGATORS, Belief, mean_score
from karat.errors import ConfigError
from karat.reward.objectives import ObjectivesConfig, combined


def belief() -> Belief:
    draws = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    return Belief(draws, reference, torch.tensor([0, 1, 1, 0, 0]), ("preference", "helpful", "harmless"))


def test_the_weighted_sum_less_the_shortfall_draw_by_draw():
    given = belief()
    config = ObjectivesConfig(weights={"preference": 1.0, "helpful": -0.5}, floors={"harmless": 0.2}, multiplier=3.0)
    found = combined(given, config)
    for s in range(4):
        for b in range(5):
            p, h, safe = (float(given.draws[s, b, o] - given.reference[s, given.prompt_index[b], o]) for o in range(3))
            expected = p - 0.5 * h - 3 * max(0.0, 0.2 - safe)
            assert float(found.draws[s, b, 0]) == pytest.approx(expected, abs=1e-5)
    assert found.objectives == ("combined",)
    for aggregate in AGGREGATORS.values():
        assert aggregate(found).shape == (5,)


def test_a_floor_alone_constrains_the_first_objective_and_binds_only_below_it():
    given = belief()
    free = combined(given, ObjectivesConfig(floors={"harmless": -100.0}))
    relative = given.draws[..., 0] - given.reference[:, given.prompt_index, 0]
    assert torch.allclose(mean_score(free), relative.mean(0), atol=1e-6)
    bound = combined(given, ObjectivesConfig(floors={"harmless": 100.0}, multiplier=1e4))
    assert bool((mean_score(bound) < -1e5).all())


def test_draws_in_which_an_objective_is_shifted_for_a_whole_prompt_change_nothing():
    given = belief()
    config = ObjectivesConfig(weights={"helpful": 2.0}, floors={"preference": 0.0})
    shift = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2))
    moved = Belief(
        given.draws + shift[:, given.prompt_index], given.reference + shift, given.prompt_index, given.objectives
    )
    assert torch.allclose(combined(moved, config).draws, combined(given, config).draws, atol=1e-4)


def test_unknown_names_and_useless_numbers_are_named():
    with pytest.raises(ConfigError, match="'honest', for which the reward has no output; it has preference, helpful"):
        combined(belief(), ObjectivesConfig(weights={"honest": 1.0}))
    with pytest.raises(ConfigError, match="found only zeros"):
        ObjectivesConfig(weights={"preference": 0.0})
    with pytest.raises(ConfigError, match="expected finite numbers"):
        ObjectivesConfig(floors={"a": float("nan")})
