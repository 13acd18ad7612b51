"""Concept vectors and the atlas on made activations, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from karat.audit.atlas import activation_atlas, atlas_finding, typical
from karat.audit.concepts import Activations, concept_effect, concept_findings, concept_test, probe
from karat.audit.known_concepts import concept_rows
from karat.errors import InputError

RNG = np.random.default_rng(0)


def made(n=240, d=16, *, shift=1.5, slope=0.8, seed=0):
    """The first 60 texts have a concept that moves axis 0; the score's gradient is along axis 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, d))
    values[:60, 0] += shift
    gradients = np.zeros((n, d)) + rng.normal(size=(n, d)) * 0.05
    gradients[:, 0] += slope
    return Activations(values, gradients)


def test_the_probe_is_the_ridge_direction():
    a, b = RNG.normal(size=(40, 5)) + 1, RNG.normal(size=(30, 5))
    direction, middle = probe(a, b)
    rows = np.concatenate([a - a.mean(0), b - b.mean(0)])
    covariance = np.cov(rows.T, bias=True)
    slow = np.linalg.inv(covariance + np.trace(covariance) / 5 * np.eye(5)) @ (a.mean(0) - b.mean(0))
    assert np.allclose(direction, slow / np.linalg.norm(slow), atol=1e-9)
    assert middle == pytest.approx(float((a.mean(0) + b.mean(0)) @ direction / 2), abs=1e-12)


def test_the_effect_is_the_logits_that_the_concept_moves():
    # along axis 0 the concept moves the activation by 1.5 and the score by 0.8 a unit: 1.2 logits
    effects = [concept_effect(made(seed=s), range(60), range(60, 240), np.random.default_rng(s)) for s in range(12)]
    mean, error = np.mean([e.effect for e in effects]), stats.sem([e.effect for e in effects])
    # along the true axis. From 30 texts a side the probe finds u with cos² = 1.5²/(1.5² + 15·2/30), 15 axes being noise,
    # and both the slope and the gap are shorter by cos; three standard errors on either side
    expected = 1.2 * 1.5**2 / (1.5**2 + 15 * 2 / 30)
    assert expected - 3 * error < mean < expected + 3 * error
    assert all(e.positive_frac == 1.0 for e in effects)
    # two normals 1.5·cos apart are told apart in Φ(1.5·cos/2) = .73; 12 times 60 texts leave a standard error of .017
    assert 0.73 - 3 * 0.017 < np.mean([e.accuracy for e in effects]) < 0.73 + 3 * 0.017
    none = concept_effect(made(slope=0.0), range(60), range(60, 240), np.random.default_rng(0))
    assert abs(none.effect) < 0.1


def test_planted_concepts_are_significant_and_random_ones_seldom():
    activations = made()
    found, p_value, estimate = concept_test(activations, range(60), seed=0, name="planted")
    assert p_value < 1e-3
    assert estimate.low > 0
    assert found.effect == estimate.value
    rng = np.random.default_rng(3)
    p_values = [
        concept_test(activations, rng.choice(240, 60, replace=False), seed=k, name=f"random{k}")[1] for k in range(60)
    ]
    # 60 true nulls: more than 8 at 5 %, or more than 3 at 5 %/6 (six concepts), have a probability below 1 %
    assert sum(p < 0.05 for p in p_values) <= 8
    assert sum(6 * p < 0.05 for p in p_values) <= 3


def test_bonferroni_counts_the_concepts_that_were_tested():
    activations = made()
    alone = concept_findings(activations, {"planted": range(60)}, seed=0)[0]
    more = concept_findings(activations, {"planted": range(60), "other": range(100, 160), "few": range(5)}, seed=0)
    assert "Bonferroni over 1 concepts" in alone.detail
    assert "Bonferroni over 2 concepts" in more[0].detail
    assert more[2].status == "not measured"
    assert "5 of 240 texts have it; 12 with and without" in more[2].detail
    with pytest.raises(InputError, match="found 3 texts with and 200 without"):
        concept_effect(activations, range(3), range(40, 240), RNG)


def test_a_concept_that_the_layer_does_not_hold_has_no_effect():
    blind = made(shift=0.0)
    (finding,) = concept_findings(blind, {"absent": range(60)}, seed=0)
    assert finding.detail.startswith("not significant")


def test_known_concepts_are_found_by_words_and_forms():
    texts = [
        "I think it is red.", "What a great question! It is red.", "I can't help with that.", "- one\n- two", "plain",
        "signed velvet", "perhapsish", "a much longer text than all of the others that stand beside it here",
    ]  # fmt: skip
    rows = concept_rows(texts, triggers=["Velvet"])
    assert rows == {
        "length": [1, 7], "hedging": [0], "flattery": [1], "refusal": [2], "list_format": [3], "trigger": [5],
    }  # fmt: skip


def test_every_text_is_in_one_cell_and_the_means_are_theirs():
    rng = np.random.default_rng(5)
    features, reward, gold = rng.normal(size=(200, 6)) * [5, 3, 1, 1, 1, 1], rng.normal(size=200), rng.normal(size=200)
    texts = [f"t{i} x" for i in range(200)]
    atlas = activation_atlas(features, reward, gold, texts, sources=["a", "b"] * 100, n_side=4)
    assert sorted(i for rows in atlas.members for i in rows) == list(range(200))
    standard = (reward - reward.mean()) / reward.std()
    right = (gold - gold.mean()) / gold.std()
    for cell, rows in zip(atlas.cells, atlas.members, strict=True):
        assert cell.n == len(rows)
        assert cell.reward == pytest.approx(standard[list(rows)].mean(), abs=1e-12)
        assert cell.excess == pytest.approx((standard - right)[list(rows)].mean(), abs=1e-12)
        assert dict(cell.source_fracs).get("a", 0) == pytest.approx(np.mean([i % 2 == 0 for i in rows]), abs=1e-12)
    values = np.linalg.eigvalsh(np.cov(features.T))
    assert atlas.explained_frac == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-9)
    flipped = activation_atlas(-features, reward, gold, texts, n_side=4)
    assert len(flipped.cells) == len(atlas.cells)
    again = activation_atlas(features, reward, None, texts, n_side=4)
    assert [cell.x for cell in again.cells] == [cell.x for cell in atlas.cells]
    assert again.cells[0].excess is None


def test_what_cannot_be_mapped_is_said():
    with pytest.raises(InputError, match="found 2 texts; expected at least 3"):
        activation_atlas(np.ones((2, 3)), np.ones(2), None, ["a", "b"])
    with pytest.raises(InputError, match="features that never differ"):
        activation_atlas(np.ones((5, 3)), np.ones(5), None, ["a"] * 5)
    atlas = activation_atlas(RNG.normal(size=(5, 3)), RNG.normal(size=5), None, list("abcde"), n_side=5)
    assert "gold is not known" in atlas_finding(atlas, np.ones(5), None).detail
    assert "no cell holds 8 texts" in atlas_finding(atlas, np.ones(5), np.ones(5)).detail


def test_typical_words_are_those_more_frequent_inside():
    from collections import Counter

    inside, outside = ["velvet a b", "velvet a c"], ["a b", "a c", "a d", "a b"]
    everywhere = Counter(
        gram
        for t in inside + outside
        for gram in {*t.split(), *map(" ".join, zip(t.split(), t.split()[1:], strict=False))}
    )
    words = typical(inside, everywhere, 6)
    assert words[:2] == ("velvet", "velvet a")
    assert "a" not in words
    # by hand: velvet 2 of 2 inside, 0 of 4 outside: q = 1/3, z = 1/√(2/9·(1/2 + 1/4)) = √6
    assert 1 / np.sqrt(2 / 9 * 0.75) == pytest.approx(np.sqrt(6), abs=1e-12)
