"""An estimate's numbers in words, the same in every table, finding and command.

Knows numbers. Knows nothing about where they come from, so that no command waits for a library to print one.
"""

from __future__ import annotations


def figure(value: float | None, low: float | None, high: float | None, *, missing: str = "–") -> str:
    """Three digits and the interval; `missing` where there is no value, no brackets where there is no interval.

    >>> figure(0.123, 0.1, 0.15), figure(0.5, None, None), figure(None, None, None, missing="not estimable")
    ('0.123 [0.100, 0.150]', '0.500', 'not estimable')
    """
    if value is None:
        return missing
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
