"""Best-of-n: what it picks, and its KL against enumeration of all draws."""

import math

import numpy as np
import pytest

from karat.errors import InputError
from karat.overopt import best_of_n_kl
from karat.policy.best_of_n import best_of_n
from karat.records import user_prompt
from karat.sampled_ties import best_of_n_kl_sampled
from reference import ppo_loops


def enumerated_kl(probs, scores, n):
    chosen = ppo_loops.best_of_n_probs(probs, scores, n)
    return sum(q * math.log(q / p) for p, q in zip(probs, chosen, strict=True) if q > 0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_kl_is_exact_with_ties(n):
    """The law this room reports, against enumeration of all draws."""
    probs, scores = [0.1, 0.25, 0.05, 0.4, 0.2], [1.0, 2.0, 2.0, 0.5, 3.0]
    assert best_of_n_kl(scores, n, probs=probs) == pytest.approx(enumerated_kl(probs, scores, n), abs=1e-12)


def test_the_kl_from_samples_is_the_bound_where_none_tie_and_exact_where_levels_are_found_again():
    for n in (1, 2, 4, 8):
        bound = math.log(n) - (n - 1) / n
        assert best_of_n_kl_sampled([0.3, 0.1, 0.7, 0.2, 0.9, 0.4, 0.5, 0.8][:n], n) == pytest.approx(bound, abs=1e-12)
    probs, scores = [0.1, 0.25, 0.05, 0.4, 0.2], [1.0, 2.0, 2.0, 0.5, 3.0]
    drawn = [score for score, p in zip(scores, probs, strict=True) for _ in range(round(40 * p))]
    for n in (1, 2, 4):
        assert best_of_n_kl_sampled(drawn, n) == pytest.approx(enumerated_kl(probs, scores, n), abs=1e-12)
    assert best_of_n_kl_sampled([1.0] * 8, 4) == 0
    # a score with an atom of a half below a continuous half, by numerical integration of the law's density
    u = (np.arange(400_000) + 0.5) / 400_000
    density = 3 * u**2
    expected = 0.125 * math.log(0.25) + float((density * np.log(density))[u > 0.5].sum() / 400_000)
    half = [0.0] * 500 + [1.0 + i for i in range(500)]
    assert best_of_n_kl_sampled(half, 3) == pytest.approx(expected, abs=1e-6)


def test_picks_the_best_of_the_first_n():
    def sampler(prompts, *, n_samples, seed):
        return [[f"{p.text}{seed}{'x' * (i % 4)}" for i in range(n_samples)] for p in prompts]

    def score_fn(prompts, texts):
        return [len(text) + 10 * prompt.text.startswith("b") for prompt, text in zip(prompts, texts, strict=True)]

    result = best_of_n([user_prompt("a"), user_prompt("b")], sampler, score_fn, n=3, n_samples=8, seed=7)
    assert result.texts == ("a7xx", "b7xx")
    assert result.scores == (4.0, 14.0)
    assert len(result.candidates[0]) == 8
    assert result.kl_bound == pytest.approx(math.log(3) - 2 / 3)
    assert result.kl_estimate == pytest.approx(enumerated_kl([0.25] * 4, [0.0, 1.0, 2.0, 3.0], 3), abs=1e-12)


def test_refuses_bad_input():
    with pytest.raises(InputError, match="1 ≤ n ≤ n_samples"):
        best_of_n([user_prompt("a")], list, list, n=4, n_samples=2, seed=0)
    one = {"n": 1, "seed": 0}
    texts = lambda prompts, *, n_samples, seed: [["x"] * n_samples for _ in prompts]  # noqa: ARG005, E731
    with pytest.raises(InputError, match="expected a finite number"):
        best_of_n([user_prompt("a")], texts, lambda _prompts, _texts: [math.nan], **one)
    with pytest.raises(InputError, match="found 2 scores for 1 responses"):
        best_of_n([user_prompt("a")], texts, lambda _prompts, _texts: [1.0, 2.0], **one)
