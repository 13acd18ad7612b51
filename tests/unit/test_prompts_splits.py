"""Splits: by hash alone, stable when items are added, and never with the same key on both sides."""

import pytest

from karat.errors import ConfigError, LeakageError
from karat.prompts.splits import check_no_leakage, folds, part_of, split
from karat.records import user_prompt

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
KEYS = [f"key {i}" for i in range(3000)]


def test_parts_have_about_their_size_and_lose_nothing():
    parts = split(KEYS, FRACTIONS)
    assert sorted(key for part in parts.values() for key in part) == sorted(KEYS)
    assert list(parts) == list(FRACTIONS)
    for name, fraction in FRACTIONS.items():
        sd = (3000 * fraction * (1 - fraction)) ** 0.5  # of a binomial count
        assert 3000 * fraction - 3 * sd < len(parts[name]) < 3000 * fraction + 3 * sd


def test_adding_items_moves_none():
    before, after = split(KEYS[:100], FRACTIONS), split(KEYS, FRACTIONS)
    assert all(set(before[name]) <= set(after[name]) for name in FRACTIONS)
    assert {name: set(part) for name, part in split(KEYS[::-1], FRACTIONS).items()} == {
        name: set(part) for name, part in after.items()
    }


def test_the_split_is_pinned():
    # printf 'split\x1fkey 0' | sha256sum and so on begin with the fractions .343 .828 .945 .109 .226 .105 .957
    found = [part_of(f"key {i}", FRACTIONS) for i in range(7)]
    assert found == ["train", "validation", "test", "train", "train", "train", "test"]


def test_another_salt_is_another_split():
    assert split(KEYS, FRACTIONS, salt="a") != split(KEYS, FRACTIONS, salt="b")


def test_items_with_one_key_stay_together():
    prompts = [user_prompt(f"q{i}", topic=f"topic {i % 9}") for i in range(200)]
    parts = split(prompts, {"train": 0.5, "test": 0.5}, key=lambda prompt: prompt.topic)
    topics = [{prompt.topic for prompt in part} for part in parts.values()]
    assert not topics[0] & topics[1]
    assert all(topics)


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}]
)
def test_fractions_must_be_a_partition(fractions):
    with pytest.raises(ConfigError, match="split: "):
        split(KEYS, fractions)


def test_folds_are_balanced_and_disjoint():
    found = folds([f"topic {i}" for i in range(16)] * 3, 3)
    assert sorted(map(len, found)) == [5, 5, 6]
    assert len({key for fold in found for key in fold}) == 16
    assert folds([f"topic {i}" for i in reversed(range(16))], 3) == found
    with pytest.raises(ConfigError, match="found 2 different keys for 3 folds"):
        folds(["x", "y", "x"], 3)


def test_leakage_is_refused_with_counts_and_the_first():
    assert check_no_leakage(["x", "y"], ["z"]) == 0
    with pytest.raises(LeakageError, match=r"2 of 3 test prompts also occur in training \(first: y\)"):
        check_no_leakage(["x", "y"], ["z", "y", "x", "y"])
    assert check_no_leakage(["x", "y"], ["z", "y", "x", "y"], allow_leakage=True) == 2
    with pytest.raises(LeakageError, match="test raters"):
        check_no_leakage(["x"], ["x"], what="raters")
