"""Random numbers as arguments: every draw comes from a seed and the purpose it serves.

A child seed is a hash of its parent and a path of names and numbers, so that the draws of step 17 are the same
whether the run came there in one go or was killed and resumed, and whichever process makes them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def child_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose: SHA-256 of the parent seed and the path.

    >>> child_seed(0, "sft", 3) == child_seed(0, "sft", 3), child_seed(0, "sft", 3) == child_seed(0, "sft", 4)
    (True, False)
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator seeded for one purpose."""
    import torch  # here only: who wants a seed, or numpy's numbers, should not wait for it

    return torch.Generator().manual_seed(child_seed(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A numpy generator seeded for one purpose."""
    return np.random.default_rng(child_seed(seed, *path))
