"""Randomised arms: honest p-values, raters as the unit, planted effects found, strata kept."""

import numpy as np
import pytest
from scipy import stats

from karat.errors import InputError
from karat.feedback.quality.arms import arm_effect


def experiment(seed, *, n_raters=40, votes=20, effect=0.0, spread=1.0):
    """Votes of raters whose own means differ; arm `b` adds the effect."""
    rng = np.random.default_rng(seed)
    arm = {f"r{i}": "ab"[i % 2] for i in range(n_raters)}
    own = rng.normal(0, spread, n_raters) + effect * (np.arange(n_raters) % 2)
    who = np.repeat(np.arange(n_raters), votes)
    return rng.normal(own[who], 1), [f"r{i}" for i in who], arm, rng


def test_equal_to_tests_on_the_means_of_raters():
    y, who, arm, rng = experiment(1, effect=0.5)
    found = arm_effect(y, who, arm, rng, n_draws=20_000)
    means = {rater: np.mean([v for v, w in zip(y, who, strict=True) if w == rater]) for rater in arm}
    a, b = ([means[r] for r in arm if arm[r] == one] for one in "ab")
    welch = stats.ttest_ind(b, a, equal_var=False)
    ends = welch.confidence_interval()
    effect = found.arms[1]
    assert (effect.difference.low, effect.difference.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert effect.difference.value == pytest.approx(np.mean(b) - np.mean(a))
    exact = stats.permutation_test(
        (b, a), lambda x, y: np.mean(x) - np.mean(y), n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert abs(effect.p_value - exact.pvalue) < 4 * np.sqrt(0.25 / 20_000)
    assert abs(found.p_value - effect.p_value) < 4 * np.sqrt(0.5 / 20_000)  # two arms: the same question, other draws
    assert (found.n_raters, found.arms[0].difference, found.arms[0].mean.n) == (40, None, 20)


def test_false_alarms_are_as_rare_as_stated_however_many_votes():
    p = [arm_effect(*experiment(seed)[:3], np.random.default_rng(seed), n_draws=200).p_value for seed in range(150)]
    assert np.mean(np.array(p) < 0.1) < 0.1 + 2.6 * np.sqrt(0.09 / 150)
    naive = []
    for seed in range(150):
        y, who, arm, _ = experiment(seed)
        b = np.array([arm[w] == "b" for w in who])
        naive.append(stats.ttest_ind(y[b], y[~b]).pvalue)
    assert np.mean(np.array(naive) < 0.1) > 0.4  # what counting votes instead of raters would have done


def test_a_planted_effect_is_found_among_three_arms():
    rng = np.random.default_rng(3)
    arm = {f"r{i}": ["low", "mid", "high"][i % 3] for i in range(90)}
    y = [rng.normal({"low": 0, "mid": 0, "high": 4}[arm[f"r{i}"]], 1) for i in range(90)]
    found = arm_effect(y, [f"r{i}" for i in range(90)], arm, rng, reference="low", n_draws=4000)
    assert [one.arm for one in found.arms] == ["low", "high", "mid"]
    low, high, mid = found.arms
    assert high.p_value < 0.01
    assert high.difference.low > 0
    assert found.p_value < 0.01
    assert low.p_value is None
    # the large effect of another arm does not blur this comparison
    alone = stats.ttest_ind([v for i, v in enumerate(y) if i % 3 == 1], [v for i, v in enumerate(y) if i % 3 == 0])
    assert abs(mid.p_value - alone.pvalue) < 0.04


def test_raters_are_permuted_within_their_strata():
    """All of the difference is between strata; within them there is none, and only strata see that."""
    rng = np.random.default_rng(3)
    arm = {f"r{i}": "a" if i % 4 == 0 or (i >= 40 and i % 4 != 1) else "b" for i in range(80)}
    strata = {f"r{i}": "late" if i >= 40 else "early" for i in range(80)}
    y = [rng.normal(3.0 * (i >= 40), 1) for i in range(80)]
    names = [f"r{i}" for i in range(80)]
    assert arm_effect(y, names, arm, rng, n_draws=2000).p_value < 0.01
    found = arm_effect(y, names, arm, rng, strata=strata, n_draws=2000)
    assert found.p_value > 0.05
    assert "within strata" in found.method


def test_what_has_no_interval_or_test_says_so():
    rng = np.random.default_rng(4)
    found = arm_effect([1.0, 2.0, 3.0], ["x", "y", "z"], {"x": "a", "y": "b"}, rng, n_draws=50)
    assert found.n_raters == 2
    assert found.p_value is None
    assert "found 1 rater" in found.arms[0].mean.method
    assert found.arms[1].difference.low is None
    alike = arm_effect([1.0, 1.0, 1.0, 1.0], list("wxyz"), {"w": "a", "x": "a", "y": "b", "z": "b"}, rng, n_draws=50)
    assert alike.arms[1].p_value == 1.0
    assert "all alike" in alike.arms[1].difference.method
    assert (alike.arms[0].mean.low, alike.arms[1].verdict) == (None, "cannot be told")
    assert alike.arms[0].mean.method == "mean over raters; no interval: raters are all alike"
    one = arm_effect([1.0, 2.0], ["x", "y"], {"x": "a", "y": "a"}, rng, n_draws=50)
    assert (len(one.arms), one.p_value) == (1, None)
    for wrong, match in [
        (lambda: arm_effect([1.0], ["x"], {}, rng), "no rater in any arm"),
        (lambda: arm_effect([float("nan")], ["x"], {"x": "a"}, rng), "one finite number each"),
        (lambda: arm_effect([1.0], ["x"], {"x": "a"}, rng, reference="b"), "reference arm 'b'"),
        (lambda: arm_effect([1.0], ["x"], {"x": "a"}, rng, strata={}), "no stratum for the rater 'x'"),
    ]:
        with pytest.raises(InputError, match=match):
            wrong()


def test_a_difference_is_told_from_0_only_where_interval_and_test_both_say_so():
    names = [f"r{i}" for i in range(12)]
    arm = {name: "a" if i < 6 else "b" for i, name in enumerate(names)}

    def verdict(y: list[float], **more) -> str:
        found = arm_effect(y, names, arm, np.random.default_rng(5), n_draws=2000, **more)
        assert found.arms[0].verdict == ""
        return found.arms[1].verdict

    noise = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert verdict([*noise, *noise]) == "not distinguishable from 0"
    assert verdict([*noise, *(one + 5 for one in noise)]) == "above 0"
    assert verdict([*noise, *(one - 5 for one in noise)]) == "below 0"
    few = dict(zip(names[:6], "aaabbb", strict=True))
    found = arm_effect([1.0, 1.1, 0.9, 3.0, 3.1, 2.9], names[:6], few, np.random.default_rng(5), unit="task")
    # 2 of 20 shuffles are as far: Welch's interval alone would promise more than six tasks can tell
    assert found.arms[1].difference.low > 0
    assert (found.arms[1].verdict, found.arms[1].p_value > 0.05) == ("not distinguishable from 0", True)
    assert "over tasks" in found.arms[1].difference.method
    assert found.method.startswith("permutation of tasks")
