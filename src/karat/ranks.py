"""What a launcher of several processes says in the environment: how many there are, and which one this is.

Knows the names that torchrun uses, and those of the MPIs that `accelerate launch` starts. Starts nothing, joins nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

WORLD, RANK, LOCAL_RANK = (
    ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
SPOKEN_FOR = "KARAT_SPOKEN_FOR"
"""Set in processes that `--processes` started: that they were interrupted is said by the one that started them."""


def launched() -> int:
    """How many processes were started together, this one among them; 1 = no launcher did."""
    return _number(WORLD) or 1


def launched_rank() -> int | None:
    """Which of them this is, from 0; None = nobody says."""
    return _number(RANK)


def launched_local_rank() -> int | None:
    """Which of those on this machine this is, from 0; None = nobody says."""
    return _number(LOCAL_RANK)


def speaks() -> bool:
    """Whether this process speaks for all: the first of several, or the only one."""
    return launched() == 1 or not launched_rank()


def says_interrupted() -> bool:
    """Whether this process is to say that it was interrupted: the first of several, unless who started it does."""
    return speaks() and SPOKEN_FOR not in os.environ


def launched_in_shards() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _number(names: Sequence[str]) -> int | None:
    said = next((os.environ[name] for name in names if os.environ.get(name, "").isdecimal()), None)
    return None if said is None else int(said)
