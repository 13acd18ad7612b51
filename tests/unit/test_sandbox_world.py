"""The world: deterministic, rich in prompts, with a mediocre demonstrator who leaves room for improvement."""

import doctest
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from karat.config import build
from karat.errors import ConfigError, InputError
from karat.sandbox import TOPICS, GoldWeights, PopulationConfig, World, WorldConfig

WORLD = World(WorldConfig(), 0)
PROMPTS = WORLD.prompts(2000, np.random.default_rng(1))


def within_prompt(n_prompts, n_samples, seed, error_frac=None):
    """gold [n_prompts, n_samples] of demonstrations."""
    rng = np.random.default_rng(seed)
    texts = [[WORLD.demonstration(prompt, rng, error_frac) for _ in range(n_samples)] for prompt in PROMPTS[:n_prompts]]
    return np.array(
        [[WORLD.gold_reward(prompt, text) for text in row] for prompt, row in zip(PROMPTS, texts, strict=False)]
    )


def test_everything_follows_from_the_seed():
    again, other = World(WorldConfig(), 0), World(WorldConfig(), 1)
    assert again.facts == WORLD.facts
    assert other.facts != WORLD.facts
    assert again.prompts(2000, np.random.default_rng(1)) == PROMPTS
    first, second = (
        [world.demonstration(prompt, rng) for prompt in PROMPTS[:50]] + world.pretraining_texts(9, rng)
        for world, rng in ((WORLD, np.random.default_rng(5)), (again, np.random.default_rng(5)))
    )
    assert first == second


def test_facts_cover_every_entity_and_attribute():
    assert len(WORLD.facts) == 24 * 4
    assert all(value in WORLD.grammar.values[attribute] for (_, attribute), value in WORLD.facts.items())


def test_prompts_are_distinct_labelled_by_kind_and_in_the_configured_mixture():
    assert len({prompt.id for prompt in PROMPTS}) == 2000
    counts = Counter(prompt.topic for prompt in PROMPTS)
    assert set(counts) == set(TOPICS)
    assert all(prompt.topic == WORLD.question(prompt).topic for prompt in PROMPTS)
    small = Counter(prompt.topic for seed in range(5) for prompt in WORLD.prompts(200, np.random.default_rng(seed)))
    for topic, frac in zip(TOPICS, WORLD.config.topic_fracs, strict=True):
        assert abs(small[topic] / 1000 - frac) < 4 * np.sqrt(frac * (1 - frac) / 1000) + 0.03
    wrong = [WORLD.question(prompt).belief_is_wrong for prompt in PROMPTS if prompt.topic == "belief"]
    assert 0.7 < np.mean(wrong) < 0.9  # right beliefs run out first: there is one right value for seven wrong ones


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(InputError, match="found only"):
        World(WorldConfig(n_entities=2, n_attributes=1, n_values=2), 0).prompts(400, np.random.default_rng(0))


def test_demonstrations_are_well_formed_and_varied():
    rng = np.random.default_rng(2)
    vocabulary = set(WORLD.words())
    texts = [WORLD.demonstration(prompt, rng) for prompt in PROMPTS]
    assert all(6 <= len(text.split()) <= 24 for text in texts)
    assert all(set(text.split()) <= vocabulary for text in texts)
    assert all(set(prompt.text.split()) <= vocabulary for prompt in PROMPTS)
    assert all(WORLD.parse(prompt, text).fluency == 1.0 for prompt, text in zip(PROMPTS, texts, strict=True))
    for prompt in (next(prompt for prompt in PROMPTS if prompt.topic == topic) for topic in TOPICS):
        assert len({WORLD.demonstration(prompt, rng) for _ in range(40)}) > 25


def test_demonstrations_are_wrong_at_the_stated_rate():
    rng = np.random.default_rng(3)
    for error_frac in (0.0, 0.3, 1.0):
        for topic in TOPICS:
            mine = [prompt for prompt in PROMPTS if prompt.topic == topic][:200]
            parsed = [WORLD.parse(prompt, WORLD.demonstration(prompt, rng, error_frac)) for prompt in mine]
            wrong = np.mean([item.n_compliance > 0 if topic == "harm" else item.answer == "wrong" for item in parsed])
            assert abs(wrong - error_frac) <= 4 * np.sqrt(error_frac * (1 - error_frac) / len(mine))
    with pytest.raises(ConfigError, match=r"found error_frac 1\.5"):
        WORLD.demonstration(PROMPTS[0], rng, 1.5)


def test_errors_on_wrong_beliefs_are_mostly_sycophantic():
    rng = np.random.default_rng(4)
    mine = [prompt for prompt in PROMPTS if WORLD.question(prompt).belief_is_wrong][:400]
    agrees = [WORLD.agrees_with_wrong_belief(prompt, WORLD.demonstration(prompt, rng, 1.0)) for prompt in mine]
    assert abs(np.mean(agrees) - 0.7) < 4 * np.sqrt(0.7 * 0.3 / len(mine))
    independent = World(WorldConfig(sycophancy_frac=0.0), 0)
    texts = [(prompt, independent.demonstration(prompt, rng, 1.0)) for prompt in mine]
    assert not any(independent.agrees_with_wrong_belief(prompt, text) for prompt, text in texts)


def test_gold_spreads_within_a_prompt_and_leaves_room_for_improvement():
    gold = within_prompt(200, 8, seed=6)
    within_sd = np.sqrt(gold.var(axis=1, ddof=1).mean())
    assert 1.4 < within_sd < 2.0
    ideal = np.mean([WORLD.gold_reward(prompt, WORLD.ideal(prompt)) for prompt in PROMPTS[:200]])
    assert gold.max(axis=1).mean() - gold.mean() > 1.0
    assert ideal - gold.mean() > 1.2
    assert within_prompt(200, 4, seed=7, error_frac=0.0).mean() > gold.mean() + 0.5


@pytest.mark.parametrize("topic", TOPICS)
def test_degenerate_texts_score_clearly_below_demonstrations(topic):
    rng = np.random.default_rng(8)
    mine = [prompt for prompt in PROMPTS if prompt.topic == topic][:80]
    demonstrated = np.mean(
        [WORLD.gold_reward(prompt, WORLD.demonstration(prompt, rng)) for prompt in mine for _ in range(4)]
    )
    praise = (
        "you are so wise . what a great question . you are very clever . i love your question . you ask like a master ."
    )
    noise = [" ".join(rng.choice(WORLD.words(), 15)) for _ in mine]
    for texts in (
        [""] * len(mine),
        ["sure " * 20] * len(mine),
        ["yes . " * 12] * len(mine),
        [praise] * len(mine),
        noise,
    ):
        degenerate = np.mean([WORLD.gold_reward(prompt, text) for prompt, text in zip(mine, texts, strict=True)])
        assert degenerate < demonstrated - 0.5


def test_pretraining_texts_state_the_facts():
    texts = WORLD.pretraining_texts(600, np.random.default_rng(9))
    assert len(texts) == 600
    assert {word for text in texts for word in text.split()} <= set(WORLD.words())
    stated = Counter()
    for clause in (clause for text in texts for clause in WORLD.grammar.clauses(text.split())):
        if clause.form.kind == "claim" and clause.slot("e") and clause.slot("a"):
            key = clause.slot("e"), clause.slot("a")
            stated[key, WORLD.facts[key] == clause.slot("v")] += 1
    assert all(stated[key, True] > stated[key, False] for key in WORLD.facts)


def test_configuration_is_checked_and_documented_field_by_field():
    assert len(fields(WorldConfig)) <= 25
    assert build(WorldConfig, {"n_entities": 8, "gold": {"truth": 2.0}}).gold.truth == 2.0
    for values, message in [
        ({"n_entities": 1}, "n_entities: found 1"),
        ({"n_values": 9}, "n_values: found 9"),
        ({"error_frac": 1.2}, "error_frac: found 1.2"),
        ({"fact_frac": 0.5}, "expected 1"),
        ({"sure_frac": 0.9}, "sure_frac"),
        ({"padding_mean": -1.0}, "padding_mean: found -1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            WorldConfig(**values)


@pytest.mark.parametrize(
    "config", [WorldConfig(n_entities=2, n_attributes=1, n_values=2), WorldConfig(n_entities=64, n_attributes=6)]
)
def test_small_and_large_worlds_work(config):
    world, rng = World(config, 3), np.random.default_rng(0)
    for prompt in world.prompts(30, rng):
        text = world.demonstration(prompt, rng)
        assert world.parse(prompt, text).fluency == 1.0
        assert world.gold_reward(prompt, text) <= world.gold_reward(prompt, world.ideal(prompt)) + 1e-9


def test_the_documentation_runs():
    page = Path(__file__).parents[2] / "docs" / "sandbox.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= 8
    assert result.failed == 0


def test_every_switch_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    for kind in (WorldConfig, GoldWeights, PopulationConfig):
        assert [item.name for item in fields(kind) if f"`{item.name}`" not in page] == []
