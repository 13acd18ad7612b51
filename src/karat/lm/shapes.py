"""Few shapes: numbers filled up, so that products that are compiled for every number of rows meet few of them.

Knows numbers only.
"""

from __future__ import annotations

from karat.errors import InputError

PARTS = 32
"""Numbers between a power of two and the next that rows of texts are filled up to: on average a hundredth more of them."""
FEW_PARTS = 8
"""The same where a few rows more cost little: steps of the sampler, queries and keys of a piece of text."""


def even_number(n: int, parts: int) -> int:
    """The next number of `parts` evenly spaced ones between each power of two and the next; n itself below 2·parts.

        ⌈n/s⌉·s,   s = 2^⌊log₂ n⌋ / parts

    Args: n: ≥ 0.    parts: a power of two.
    """
    if parts < 1 or parts & (parts - 1):
        raise InputError(f"even_number: found {parts} parts; expected a power of two")
    step = max(1, (1 << (n.bit_length() - 1)) // parts) if n else 1
    return -(-n // step) * step
