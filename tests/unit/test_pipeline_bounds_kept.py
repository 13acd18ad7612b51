"""Whether a bound was kept, and at which price: what the report says of it."""

import pytest

from karat.pipeline.beside_settings import ConstraintConfig
from karat.pipeline.bounds_kept import bound_finding
from karat.records import Estimate

BEFORE = Estimate(0.0, -0.1, 0.1, 40, "t")


@pytest.mark.parametrize(
    ("keep", "after", "prices", "status", "said"),
    [
        ("above", (0.3, 0.25, 0.35), [0.0, 0.0], "pass", "price λ of 0: the bound cost nothing"),
        ("above", (0.21, 0.1, 0.3), [0.0, 0.5, 0.4], "pass", "price λ of 0.4"),
        ("above", (0.1, -0.1, 0.3), [0.0, 0.5], "info", "beyond the limit, but its interval holds it"),
        ("above", (0.1, 0.05, 0.15), [0.0, 0.5], "warn", "beyond the limit; in the last iteration 0.100"),
        ("above", (0.1, 0.05, 0.15), [0.0, 2.0], "warn", "the limit may be out of reach"),
        ("below", (0.3, 0.25, 0.35), [0.0, 0.5], "warn", "price λ of 0.5, still rising"),
        ("below", (0.1, 0.05, 0.35), [0.0, 0.5], "pass", "after 0.100 [0.050, 0.350]"),
        ("above", (0.1, None, None), [], "warn", "beyond the limit"),
    ],
)
def test_a_bound_is_kept_broken_or_not_told_and_its_price_is_named(keep, after, prices, status, said):
    bound = ConstraintConfig(objective="harmless", keep=keep, limit=0.2, largest=2.0)
    found = bound_finding(bound, BEFORE, Estimate(*after, 40, "t"), prices, [0.1] * len(prices))
    assert (found.status, found.threshold) == (status, f"{'≥' if keep == 'above' else '≤'} 0.2")
    assert said in found.detail
