"""What becomes of memory that was freed, kept for the next step or given back to the system, and of prepared products.

A training step asks for the same blocks as the step before. glibc gives the end of its heap back whenever enough of it is
free, and a block above a threshold at once, so that the system must clear the same pages for every step (6 % of a PPO
iteration, docs/LOG.md). Knows the C library's allocator; knows nothing about tensors. Elsewhere than under glibc, and
where a user has told glibc himself, nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
THRESHOLD_VARIABLE = "MALLOC_MMAP_THRESHOLD_"
"""By which a user tells glibc from which size on a block is given back when it is freed; then his number stands."""
TOLD_BY = (THRESHOLD_VARIABLE, "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
LARGE_BLOCK = 1 << 22
"""Bytes from which a block goes back where memory counts more than time (`give_memory_back`). glibc keeps blocks of up to
32 MB and cuts them up, so that without this nothing is saved; a smaller number saves little more and costs more time."""
KEPT_BLOCK = 1 << 25
"""Bytes up to which a block stays while a loop runs: glibc's own limit, which it comes to only after freeing such a block."""
NEVER = -1
MOST_GROWTH = 1.1
"""Resident size over that after one step from which free pages between blocks go back: steps of other sizes than those before
leave holes that fit nothing, and fill them bit by bit (docs/LOG.md)."""
PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Of oneDNN and of PyTorch's way to it: each keeps what it prepared for up to 1,024 products, a quarter of a megabyte each."""
MOST_PRODUCTS = 400
"""Kept by each: what the steps of a recipe ask for again, now that rows are filled up to few numbers (`shapes`); with 24 every
product of a step is prepared anew (docs/LOG.md). Those that are dropped leave holes between tensors, which fit nothing."""


def keep_few_products() -> None:
    """Have few products kept prepared, unless the user has said how many; takes effect before the first of them."""
    for name in PRODUCT_CACHES:
        os.environ.setdefault(name, str(MOST_PRODUCTS))


def give_memory_back() -> bool:
    """Have this process's allocator give large blocks back when they are freed; False where it is not glibc or was told."""
    return THRESHOLD_VARIABLE not in os.environ and _set(M_MMAP_THRESHOLD, LARGE_BLOCK)


class Holes:
    """Gives free pages between blocks back whenever the process has grown too much beyond what one step takes."""

    def __init__(self) -> None:
        self._of_one_step: int | None = None

    def step_ended(self) -> bool:
        """To be called after each step; whether pages were given back."""
        resident = resident_bytes()
        if self._of_one_step is None:
            self._of_one_step = resident
        elif resident > MOST_GROWTH * self._of_one_step:
            ctypes.CDLL(None).malloc_trim(0)
            self._of_one_step = None  # the next step says it
            return True
        return False


def resident_bytes() -> int:
    """What this process holds in memory now, by Linux."""
    with open("/proc/self/statm", encoding="ascii") as told:
        return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[Holes | None]:
    """Within: what is freed stays with this process; on leaving it goes back. Gives None where nothing was changed."""
    kept = (
        not any(name in os.environ for name in TOLD_BY)
        and _set(M_MMAP_THRESHOLD, KEPT_BLOCK)
        and _set(M_TRIM_THRESHOLD, NEVER)
    )
    try:
        yield Holes() if kept else None
    finally:
        if kept:
            _set(M_TRIM_THRESHOLD, 2 * KEPT_BLOCK)  # where glibc's own rule ends
            ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> bool:
    """Whether glibc took it."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))
