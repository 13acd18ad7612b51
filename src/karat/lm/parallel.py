"""The one place that knows about processes: who I am, my share of the work, and sums over all of us.

With one process every function here is the identity, so that the same code runs alone, to the bit. Work is dealt out in
micro-batches, whose losses are divided by the denominator of the whole minibatch; gradients are then *added up* over the
processes, in one message an optimiser step. Nothing is averaged, so it does not matter that shares differ in size or
that some process has none (DistributedDataParallel averages, and waits for ever where one process has nothing to do).

Knows torch.distributed; knows nothing about models or losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def count() -> int:
    """How many processes work together; 1 = alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them I am, from 0."""
    return distributed.get_rank() if _together() else 0


def is_main() -> bool:
    """True = I write files and show progress."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `accelerate launch` or `torchrun` started, for the block; alone, nothing happens.

    accelerate chooses the backend: nccl where there are GPUs, gloo on CPUs.
    """
    from accelerate.state import PartialState

    state = PartialState()
    try:
        yield
    finally:
        state.destroy_process_group()


def share(items: Sequence[T]) -> list[T]:
    """My part of the work: every count-th item, so that neighbours of like size go to different processes."""
    return list(items[rank() :: count()])


def budget(token_budget: int, n_tokens: int) -> int:
    """The token budget with which to cut a minibatch so that there is something for every process.

    Args:
        token_budget: of one forward pass.    n_tokens: of the whole minibatch.
    Returns: min(token_budget, ⌈n_tokens/count⌉); alone, the token budget unchanged.
    """
    return token_budget if count() == 1 else min(token_budget, -(-n_tokens // count()))


def total(number: float) -> float:
    """The sum of everybody's number."""
    if count() == 1:
        return number
    everybody = torch.tensor([number], dtype=torch.float64)
    distributed.all_reduce(everybody)
    return float(everybody)


def everywhere(flag: bool) -> bool:
    """Whether it is so in every process."""
    return flag if count() == 1 else total(float(not flag)) == 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of everybody's gradients; who has none for a parameter adds nothing.

    All processes must name the same parameters in the same order.
    """
    if count() == 1:
        return
    chosen = list(parameters)
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in sorted({parameter.grad.dtype for parameter in chosen}, key=str):
        gradients = [parameter.grad for parameter in chosen if parameter.grad.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def wait() -> None:
    """Until everybody is here: what the main process wrote can now be read."""
    if count() > 1:
        distributed.barrier()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
