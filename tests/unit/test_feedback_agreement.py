"""Agreement: the textbook values, intervals that cover, and no number where there is none."""

import numpy as np
import pytest

from karat.errors import InputError
from karat.feedback.quality.agreement import alpha, pairwise_agreement
from karat.records import Vote
from reference.slow_alpha import nominal_alpha
from reference.slow_alpha import pairwise_agreement as slow_agreement


def votes_of(units, *, n_levels=3, swap=False):
    """One item a unit; unit[i] is the level that rater i gave, None = none."""
    found = []
    for item, unit in enumerate(units):
        for rater, level in enumerate(unit):
            if level is None:
                continue
            a, b = f"{item}a", f"{item}b"
            if swap and (item + rater) % 2:
                a, b, level = b, a, n_levels - 1 - level
            found.append(Vote(f"j{item}.{rater}", f"p{item}", a, b, level, n_levels, 0, f"r{rater}"))
    return found


def random_units(n_items, n_raters, seed, *, noise=0.5):
    rng = np.random.default_rng(seed)
    return [
        [int(np.clip(np.rint(truth + noise * rng.standard_normal()), 0, 2)) for _ in range(n_raters)]
        for truth in rng.integers(0, 3, size=n_items)
    ]


def rng():
    return np.random.default_rng(0)


def test_values_equal_the_definitions():
    units = random_units(30, 4, 1)
    units[0] = [2, None, None, None]
    units[1][2] = None
    given = [[level for level in unit if level is not None] for unit in units]
    assert pairwise_agreement(votes_of(units), rng(), n_draws=50).value == pytest.approx(slow_agreement(given))
    assert alpha(votes_of(units), rng(), n_draws=50).value == pytest.approx(nominal_alpha(given))


def test_sides_and_order_do_not_matter():
    units = random_units(20, 4, 2)
    plain, swapped = votes_of(units), votes_of(units, swap=True)[::-1]
    for measure in (pairwise_agreement, alpha):
        assert measure(plain, rng(), n_draws=20).value == pytest.approx(measure(swapped, rng(), n_draws=20).value)


def test_ties_can_be_left_out():
    units = [[2, 2, 1], [0, 1, 2], [1, 1, 1]]
    assert pairwise_agreement(votes_of(units), rng(), n_draws=50).value == pytest.approx(4 / 9)
    found = pairwise_agreement(votes_of(units), rng(), ties=False, n_draws=50)
    assert (found.value, found.n) == (pytest.approx(1 / 2), 2)


def test_strength_counts_by_direction_only():
    assert pairwise_agreement(votes_of([[4, 3], [0, 1]], n_levels=5), rng(), n_draws=20).value == 1.0


@pytest.mark.parametrize("over", ["item", "annotator"])
def test_intervals_hold_the_value_and_shrink_with_more_items(over):
    few, many = (alpha(votes_of(random_units(n, 12, 3)), rng(), over=over, n_draws=200) for n in (20, 320))
    for found in (few, many):
        assert found.low < found.value < found.high
        assert over.replace("annotator", "raters")[:4] in found.method
    assert many.high - many.low < few.high - few.low


def test_intervals_cover_the_long_run_value():
    truth = alpha(votes_of(random_units(4000, 3, 100)), rng(), n_draws=2).value
    inside = [
        found.low <= truth <= found.high
        for found in (alpha(votes_of(random_units(40, 3, seed)), rng(), n_draws=100) for seed in range(30))
    ]
    assert sum(inside) >= 25  # binomial(30, .95) is below 25 in 1 of 300 cases


def test_what_is_not_estimable_is_none_with_a_reason():
    one_each = alpha(votes_of([[2, None], [None, 1]]), rng())
    assert (one_each.value, one_each.method) == (None, "undefined: no item has two votes")
    equal = alpha(votes_of([[1, 1], [1, 1]]), rng())
    assert (equal.value, equal.low, equal.method) == (None, None, "undefined: no variation")
    assert pairwise_agreement(votes_of([[1, 1]]), rng()).value == 1.0
    assert pairwise_agreement([], rng()).value is None
    assert pairwise_agreement(votes_of([[1, 1]]), rng(), ties=False).value is None
    with pytest.raises(InputError, match="expected 'item' or 'annotator'"):
        alpha(votes_of([[1, 2]]), rng(), over="prompt")
