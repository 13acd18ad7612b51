"""What the sandbox's people write and how they use scales: better than what was there, each in her own way."""

from dataclasses import replace

import numpy as np
import pytest

from karat.errors import ConfigError
from karat.sandbox import (
    RaterPopulation,
    Scales,
    World,
    WorldConfig,
    careful_population,
    corrected,
    default_population,
    demonstrated,
)
from karat.sandbox.raters import ScaleConfig

WORLD = World(WorldConfig(), 0)
PROMPTS = WORLD.prompts(200, np.random.default_rng(1))
WRONG_BELIEF = next(prompt for prompt in PROMPTS if WORLD.question(prompt).belief_is_wrong)


def people(config, seed=0):
    return RaterPopulation(WORLD, config, seed)


def gains(crowd, seed=0):
    """Gold after minus before, 0 where nobody changed anything."""
    rng, raters = np.random.default_rng(seed), crowd.annotators()
    found = []
    for i, prompt in enumerate(PROMPTS):
        before = WORLD.demonstration(prompt, rng, 0.6)
        after = corrected(crowd, raters[i % len(raters)], prompt, before, rng)
        after = before if after is None else after
        found.append(WORLD.gold_reward(prompt, after) - WORLD.gold_reward(prompt, before))
    return np.array(found)


def test_a_correction_makes_a_response_better_and_no_careful_rater_makes_it_worse():
    careful = gains(people(careful_population()))
    assert np.mean(careful > 0) > 0.5
    assert careful.min() >= 0
    usual = gains(people(default_population()))
    assert 0 < usual.mean() < careful.mean()  # who does not check leaves errors where they are


def test_what_is_wrong_goes_and_the_right_answer_comes():
    crowd, asked = people(careful_population()), WORLD.question(WRONG_BELIEF)
    text = f"what a great question . it is {asked.belief} ."
    after = corrected(crowd, crowd.annotators()[0], WRONG_BELIEF, text, np.random.default_rng(0))
    assert asked.truth in after
    assert f"it is {asked.belief}" not in after
    best = WORLD.ideal(WRONG_BELIEF)
    assert corrected(crowd, crowd.annotators()[0], WRONG_BELIEF, best, np.random.default_rng(0)) is None


def test_a_demonstration_is_the_best_of_her_drafts_and_a_random_clickers_any_of_them():
    def gold(config):
        crowd, rng = people(config), np.random.default_rng(2)
        raters = crowd.annotators()
        texts = [demonstrated(crowd, raters[i % len(raters)], prompt, rng) for i, prompt in enumerate(PROMPTS)]
        return np.mean([WORLD.gold_reward(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)])

    rng = np.random.default_rng(3)
    any_draft = np.mean([WORLD.gold_reward(prompt, WORLD.demonstration(prompt, rng)) for prompt in PROMPTS])
    clicks = gold(replace(careful_population(), spam_frac=1.0))
    assert gold(careful_population()) > gold(default_population()) > any_draft + 0.3
    assert abs(clicks - any_draft) < 0.3


def test_scales_differ_between_raters_and_stay_a_raters_own():
    crowd = people(default_population())
    first, again = Scales(crowd), Scales(crowd)
    assert [first.of(one) for one in crowd.annotators()] == [again.of(one) for one in crowd.annotators()]
    own = [first.of(one) for one in crowd.annotators()]
    assert len({one.middle for one in own}) == len({one.spread for one in own}) == 1
    assert 0.4 < np.std([one.offset for one in own]) < 0.8  # 40 raters of sd 0.6
    assert min(one.gain for one in own) > 0
    same = Scales(people(replace(default_population(), scales=ScaleConfig(0.0, 0.0, 1.0, 0.0))))
    assert {(same.of(one).gain, same.of(one).offset, same.of(one).threshold) for one in crowd.annotators()} == {
        (1, 0, 0)
    }
    with pytest.raises(ConfigError, match="expected sds ≥ 0 and noise > 0"):
        ScaleConfig(noise=0.0)
