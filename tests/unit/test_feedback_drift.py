"""Drift: published run lengths, false alarms as often as stated, planted drift found, exact chains."""

from fractions import Fraction

import numpy as np
import pytest

from karat.errors import ConvergenceError, InputError
from karat.feedback.quality.drift import (
    average_run_length,
    bernoulli_arl,
    bernoulli_reference,
    gaussian_arl,
    gold_chart,
    residual_chart,
    simulated_arl,
    solve_threshold,
)


@pytest.mark.parametrize(
    ("threshold", "shift", "published"),
    # Montgomery, Introduction to Statistical Quality Control, table 9.3 (two-sided, k = ½): h = 4 and 5
    [(4, 0.0, 168), (4, 1.0, 8.38), (5, 0.0, 465), (5, 0.5, 38.0), (5, 1.0, 10.4)],
)
def test_published_run_lengths(threshold, shift, published):
    one, other = gaussian_arl(threshold, 0.5, shift), gaussian_arl(threshold, 0.5, -shift)
    both = 1 / (1 / one + 1 / other)
    digits = 0 if published > 100 else (1 if published > 10 else 2)
    assert abs(both - published) < 0.6 * 10**-digits


def test_the_chain_has_converged():
    def normal(x):
        from scipy import stats

        return stats.norm.cdf(x + 0.5)

    assert average_run_length(normal, 4.0, 201) == pytest.approx(average_run_length(normal, 4.0, 402), rel=1e-3)


def test_a_chain_by_hand():
    """γ = ½: S goes +½ on a failure, −½ otherwise; to reach 1 from 0 two failures in a row: (1 + p) / p²."""
    p = 0.3
    assert bernoulli_arl(p, Fraction(1, 2), 2) == pytest.approx((1 + p) / p**2)
    assert bernoulli_arl(p, Fraction(1, 2), 1) == pytest.approx(1 / p)


def test_the_reference_value_lies_between():
    for p0, p1 in [(0.05, 0.2), (0.1, 0.5), (0.3, 0.4)]:
        found = bernoulli_reference(p0, p1)
        assert p0 < found < p1
        assert found.denominator <= 60
    with pytest.raises(InputError, match="too close"):
        bernoulli_reference(0.3, 0.3001)


@pytest.mark.parametrize("p0", [0.95, 0.8])
def test_gold_charts_keep_their_promise(p0):
    chart = gold_chart([], p0=p0, p1=p0 - 0.25, arl0=200)
    assert chart.arl0 >= 200
    reference = float(bernoulli_reference(1 - p0, 1 - p0 + 0.25))
    found = simulated_arl(
        lambda rng, n: (rng.random(n) > p0) - reference, chart.threshold - 1e-9, np.random.default_rng(1), n_runs=1500
    )
    assert found.low < chart.arl0 < found.high


def test_residual_charts_keep_their_promise_on_votes():
    """Residuals of votes are skewed: the null of the data keeps ARL₀, the normal one does not."""
    draw = np.random.default_rng(2)
    p = draw.uniform(0.55, 0.98, 4000)

    def residuals(rng, n):
        chosen = rng.choice(p, n)
        return ((rng.random(n) < chosen) - chosen) / np.sqrt(chosen * (1 - chosen))

    null = residuals(draw, 20_000)
    for two_sided in (False, True):
        chart = residual_chart([0.0], arl0=150, null=null, two_sided=two_sided)
        if not two_sided:
            found = simulated_arl(
                lambda rng, n: -residuals(rng, n) - 0.5, chart.threshold, np.random.default_rng(3), n_runs=1500
            )
            assert found.low * 0.97 < 150 < found.high * 1.03  # the null itself is a sample
        assert chart.arl0 == pytest.approx(150, rel=1e-2 / 10)
    normal = residual_chart([0.0], arl0=150)
    broken = simulated_arl(
        lambda rng, n: -residuals(rng, n) - 0.5, normal.threshold, np.random.default_rng(4), n_runs=1500
    )
    assert broken.high < 135


def test_planted_drift_is_found_and_soon():
    rng = np.random.default_rng(5)
    delays = []
    for _ in range(60):
        passed = np.concatenate([rng.random(50) < 0.95, rng.random(120) < 0.6])
        after = [a for a in gold_chart(passed.tolist(), p0=0.95, p1=0.7, arl0=500).alarms if a >= 50]
        delays.append(after[0] - 50 if after else 999)
    assert np.median(delays) < 12
    assert max(delays) < 60
    worse = np.concatenate([rng.normal(0, 1, 100), rng.normal(-1, 1, 60)])
    chart = residual_chart(worse, arl0=500)
    assert any(100 <= alarm < 130 for alarm in chart.alarms)
    assert not any(alarm >= 100 for alarm in residual_chart(-worse, arl0=500).alarms)
    assert any(alarm >= 100 for alarm in residual_chart(-worse, arl0=500, two_sided=True).alarms)


def test_a_chart_by_hand():
    chart = gold_chart([False, True, False, False, True, False], p0=0.75, p1=0.25, arl0=5)
    assert bernoulli_reference(0.25, 0.75) == Fraction(1, 2)
    # ½, 0, ½, 1: an alarm, and from 0 again
    assert chart.threshold == 1.0
    assert chart.path == (0.5, 0.0, 0.5, 1.0, 0.0, 0.5)
    assert chart.alarms == (3,)
    assert chart.arl0 == pytest.approx(1.25 / 0.25**2)
    assert chart.false_alarms == pytest.approx(6 / 20)
    assert "ARL₀ = 20 (exact)" in chart.method
    assert gold_chart([], p0=0.9, p1=0.5).alarms == ()


def test_what_cannot_be_charted_is_said():
    with pytest.raises(InputError, match="expected 0 < p1 < p0 < 1"):
        gold_chart([True], p0=0.5, p1=0.9)
    with pytest.raises(InputError, match="found an ARL₀ of 1"):
        gold_chart([True], p0=0.9, p1=0.5, arl0=1)
    with pytest.raises(InputError, match="found 3 null residuals"):
        residual_chart([0.0], null=[0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="not finite"):
        residual_chart([float("nan")])
    with pytest.raises(InputError, match="a shift of 0"):
        residual_chart([0.0], shift=0)
    with pytest.raises(InputError, match="a threshold of 0"):
        average_run_length(np.tanh, 0)
    with pytest.raises(ConvergenceError, match=r"below 1,000"):
        solve_threshold(lambda _: 2.0, 5)
    cut = simulated_arl(lambda _, n: np.zeros(n), 1.0, np.random.default_rng(0), n_runs=3, longest=5)
    assert (cut.value, cut.method) == (None, "undefined: 3 of 3 runs reached 5 answers")
