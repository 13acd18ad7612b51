"""Does a concept move the score? Concept vectors in the middle of the model, tested against random concepts.

    u  = direction of a linear probe, texts with the concept against texts without, fitted on one half of them
    gap = mean of u·a over held-out texts with the concept − the same over texts without     (a = activation)
    effect = mean over texts of (∇_a score·u)·gap, logits

Knows activations and gradients; knows nothing about models or words.

Source: Kim et al. 2018, arXiv:1711.11279 (concept vectors, directional derivatives, random concepts).
Differs: the test is on the effect in logits, each of the random concepts being one observation. The published test compares
    the shares of positive derivatives of 20 vectors that have their positive texts in common; those shares are near 0 or 1
    for any direction where gradients agree, and the t-test then calls random concepts significant. The share is reported.

Dimension letters: M texts, d activations, R random concepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as distributions

from karat.errors import InputError
from karat.records import Estimate, Finding
from karat.seeding import numpy_generator

N_RANDOM = 20
"""Random concepts that each concept is held against."""
LEAST_TEXTS = 12
"""Fewer texts with a concept than this make no vector."""
RIDGE = 1.0
"""Penalty of the probe, in units of the mean squared activation: about one text's weight on every direction."""
ALPHA = 0.05

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Activations:
    """What a layer holds of each text, and how the score depends on it."""

    values: Float[Array, "M d"]
    """Mean activation over the response's tokens."""
    gradients: Float[Array, "M d"]
    """Gradient of the score for moving all of them alike."""


@dataclass(frozen=True)
class ConceptEffect:
    """What a concept does to the score."""

    effect: float
    """Logits gained by moving from texts without the concept to texts with it, along its vector."""
    positive_frac: float
    """Share of texts whose score rises along the vector (the TCAV score)."""
    accuracy: float
    """Held-out accuracy of the probe: ½ = the layer does not know the concept."""


def concept_effect(
    activations: Activations, members: Sequence[int], others: Sequence[int], rng: np.random.Generator
) -> ConceptEffect:
    """Fit the vector on one half of members and others, measure on the other half, and the other way round.

    Args:
        members, others: rows with and without the concept; of the longer as many are drawn as the shorter has.
    Raises: InputError for fewer than four rows on a side.
    """
    n = min(len(members), len(others))
    if n < 4:
        raise InputError(f"concept: found {len(members)} texts with and {len(others)} without it; expected 4 of each")
    chosen = [rng.choice(np.asarray(side), size=n, replace=False) for side in (members, others)]
    halves = [(side[: n // 2], side[n // 2 :]) for side in chosen]
    effects, shares, right = [], [], []
    for fit, test in ((0, 1), (1, 0)):
        direction, middle = probe(activations.values[halves[0][fit]], activations.values[halves[1][fit]])
        with_it, without = (activations.values[half[test]] @ direction for half in halves)
        slopes = activations.gradients @ direction
        effects.append(float(slopes.mean() * (with_it.mean() - without.mean())))
        shares.append(float((slopes > 0).mean()))
        right.append(float(((with_it > middle).mean() + (without <= middle).mean()) / 2))
    return ConceptEffect(float(np.mean(effects)), float(np.mean(shares)), float(np.mean(right)))


def probe(with_it: Float[Array, "M d"], without: Float[Array, "M d"]) -> tuple[Float[Array, " d"], float]:
    """Unit direction of a ridge probe, and the point half-way between the two means along it.

    u ∝ (S + λ·I)⁻¹·(mean with − mean without),  S the pooled covariance, λ = RIDGE·tr S/d
    """
    difference = with_it.mean(0) - without.mean(0)
    rows = np.concatenate([with_it - with_it.mean(0), without - without.mean(0)])
    covariance = rows.T @ rows / len(rows)
    level = float(np.trace(covariance)) / len(difference)
    direction = np.linalg.solve(covariance + (RIDGE * level + 1e-12) * np.eye(len(difference)), difference)
    norm = float(np.linalg.norm(direction))
    direction = direction / norm if norm > 0 else direction
    return direction, float((with_it.mean(0) + without.mean(0)) @ direction / 2)


def concept_findings(
    activations: Activations, concepts: Mapping[str, Sequence[int]], *, seed: int, n_random: int = N_RANDOM
) -> list[Finding]:
    """Test each concept's effect on the score against random concepts of the same size.

        t = (effect − mean of R random effects)/(s·√(1 + 1/R)), R − 1 degrees of freedom, two-sided, Bonferroni

    Args:
        concepts: name → rows of the texts that have it; the other rows do not.
    Returns: `inside.concept_<name>`, info, because a concept may well deserve its effect: the effect, with the spread of
        random concepts as interval. Concepts with too few texts are not measured.
    """
    n_texts = len(activations.values)
    tested = [
        name for name, rows in concepts.items() if len(rows) >= LEAST_TEXTS and n_texts - len(rows) >= LEAST_TEXTS
    ]
    findings = []
    for name, rows in concepts.items():
        question = f"Does the score follow the concept: {name.replace('_', ' ')}?"
        if name not in tested:
            detail = f"{len(rows)} of {n_texts} texts have it; {LEAST_TEXTS} with and without it are needed"
            findings.append(Finding(f"inside.concept_{name}", question, "not measured", detail=detail))
            continue
        found, p_value, estimate = concept_test(activations, rows, seed=seed, name=name, n_random=n_random)
        p_value = min(1.0, p_value * len(tested))
        significant = p_value < ALPHA
        findings.append(Finding(
            f"inside.concept_{name}", question, "info", estimate,
            detail=f"{'significant' if significant else 'not significant'} (p = {p_value:.2g} after Bonferroni over {len(tested)} "
            f"concepts); the score rises along its vector in {found.positive_frac:.0%} of {n_texts} texts; the layer tells texts "
            f"with it from texts without in {found.accuracy:.0%}",
            threshold=f"p < {ALPHA:g} against {n_random} random concepts of {len(rows)} texts",
        ))  # fmt: skip
    return findings


def concept_test(
    activations: Activations, rows: Sequence[int], *, seed: int, name: str, n_random: int = N_RANDOM
) -> tuple[ConceptEffect, float, Estimate]:
    """A concept's effect, its two-sided p-value against random concepts, and the effect with their 95 % spread as interval."""
    n_texts = len(activations.values)
    rng = numpy_generator(seed, "concept", name)
    inside = set(rows)
    found = concept_effect(activations, list(rows), [i for i in range(n_texts) if i not in inside], rng)
    effects = []
    for _ in range(n_random):
        drawn = rng.choice(n_texts, size=len(rows), replace=False)
        taken = set(drawn.tolist())
        effects.append(concept_effect(activations, drawn, [i for i in range(n_texts) if i not in taken], rng).effect)
    spread = float(np.std(effects, ddof=1)) * math.sqrt(1 + 1 / n_random)
    centred = found.effect - float(np.mean(effects))
    if spread == 0:
        p_value = 1.0 if centred == 0 else 0.0
    else:
        p_value = float(2 * distributions.t.sf(abs(centred) / spread, n_random - 1))
    half = float(distributions.t.ppf(0.975, n_random - 1)) * spread
    method = f"effect along a concept vector; interval by the spread of {n_random} random concepts, Student t, 95 %"
    return found, p_value, Estimate(found.effect, found.effect - half, found.effect + half, len(rows), method)
