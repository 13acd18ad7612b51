"""How a belief becomes one score, by name: `mean_score`, `lower_bound:0.05`. Knows names and numbers; `belief` knows what they do."""

from __future__ import annotations

import math

from karat.errors import ConfigError

AGGREGATOR_NAMES = (
    "jury_median", "lower_bound", "mean_minus_sd", "mean_score", "weighted_objectives", "worst_group", "worst_member",
)  # fmt: skip
"""The keys of `belief.AGGREGATORS`."""
NUMBERED = {"lower_bound": "quantile", "mean_minus_sd": "n_sd"}
"""Those that take a number: what it is."""


def aggregator_named(name: str) -> tuple[str, float | None]:
    """An aggregator's plain name, and the number after its colon; None = there is none.

    >>> aggregator_named("lower_bound:0.05"), aggregator_named("mean_score")
    (('lower_bound', 0.05), ('mean_score', None))

    Raises: ConfigError for an unknown name, or a number that does not fit.
    """
    base, colon, number = name.partition(":")
    if base not in AGGREGATOR_NAMES or (colon and base not in NUMBERED):
        raise ConfigError(
            f"aggregator: found {name!r}; expected one of {', '.join(AGGREGATOR_NAMES)}, with a number as in "
            "mean_minus_sd:2 or lower_bound:0.05 only for these two"
        )
    if not colon:
        return base, None
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    fits = 0 < value < 1 if base == "lower_bound" else 0 <= value < math.inf
    if not fits:
        wanted = "a quantile between 0 and 1" if base == "lower_bound" else "a number of sd ≥ 0"
        raise ConfigError(f"aggregator: found {name!r}; expected {wanted} after the colon")
    return base, value
