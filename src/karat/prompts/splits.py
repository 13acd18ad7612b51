"""Splits by hash, decided before the first vote is read, and the check that nothing is on both sides.

Which part a key falls into depends on the key and the salt alone: adding items moves none of the others. Knows
strings; what they name (prompts, topics, raters) is the caller's affair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from karat.errors import ConfigError, LeakageError

T = TypeVar("T")


def part_of(key: str, fractions: Mapping[str, float], *, salt: str = "split") -> str:
    """The part a key falls into.

        u = SHA-256(salt, key) / 2⁶⁴;   the part whose interval of the cumulated fractions holds u

    Args:
        fractions: positive, summing to 1, in a fixed order.    salt: names the split; another salt, another split.
    Raises: ConfigError where the fractions are no partition.
    """
    _check(fractions)
    u, upto = _uniform(key, salt), 0.0
    for name, fraction in fractions.items():
        upto += fraction
        if u < upto:
            return name
    return next(reversed(fractions))  # the sum may end a rounding below 1


def split(
    items: Iterable[T], fractions: Mapping[str, float], *, key: Callable[[T], str] | None = None, salt: str = "split"
) -> dict[str, list[T]]:
    """Items by part, in their order; items with the same key are never parted.

    Args:
        key: what is hashed (a prompt's id, its topic, a rater); None = the item, a string.
    """
    _check(fractions)
    parts: dict[str, list[T]] = {name: [] for name in fractions}
    known: dict[str, str] = {}
    for item in items:
        name = str(item) if key is None else key(item)
        if name not in known:
            known[name] = part_of(name, fractions, salt=salt)
        parts[known[name]].append(item)
    return parts


def folds(keys: Iterable[str], n_folds: int, *, salt: str = "folds") -> list[list[str]]:
    """Different keys in folds of equal size (±1), by the order of their hashes: for a few groups, such as topics.

    Adding a key may move others, which `split` never does; use it where a hash alone would leave a fold empty.
    Raises: ConfigError where there are fewer keys than folds.
    """
    ordered = sorted(set(keys), key=lambda key: (_uniform(key, salt), key))
    if not 1 <= n_folds <= len(ordered):
        raise ConfigError(f"folds: found {len(ordered)} different keys for {n_folds} folds; use fewer folds")
    return [sorted(ordered[i::n_folds]) for i in range(n_folds)]


def check_no_leakage(
    train: Iterable[Hashable], test: Iterable[Hashable], *, what: str = "prompts", allow_leakage: bool = False
) -> int:
    """How many different test keys also occur in training; more than none is refused.

    Args:
        what: the plural of what the keys name.
        allow_leakage: continue with inflated figures; the report says so.
    Raises: LeakageError with counts and the first key.
    """
    seen = set(train)
    wanted: Sequence[Hashable] = list(dict.fromkeys(test))
    shared = [key for key in wanted if key in seen]
    if shared and not allow_leakage:
        raise LeakageError(
            f"{len(shared)} of {len(wanted)} test {what} also occur in training (first: {shared[0]}). Re-split with "
            "prompts.splits, or pass allow_leakage=True to continue; the report will say so."
        )
    return len(shared)


def _uniform(key: str, salt: str) -> float:
    digest = hashlib.sha256(f"{salt}\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check(fractions: Mapping[str, float]) -> None:
    if not fractions or any(not 0 < each <= 1 for each in fractions.values()):
        raise ConfigError(f"split: found the fractions {dict(fractions)}; expected numbers in (0, 1]")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-9):
        raise ConfigError(f"split: the fractions {dict(fractions)} sum to {sum(fractions.values())}; expected 1")
