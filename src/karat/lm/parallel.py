"""The one place that knows about processes: who I am, my share of the work, and sums over all of us.

All processes run the same program on the same inputs and hold the same state. With one process every function here is
the identity, so that the same code runs alone, to the bit. Work is dealt out in items (micro-batches, prompts); losses
are divided by the denominator of the whole minibatch, and gradients are *added up* over the processes. Nothing is
averaged, so it does not matter that shares differ in size or that some process has none (DistributedDataParallel
averages, and waits for ever where one process has nothing to do).

What only one may do (write a file, ask a rater, decide by a clock) goes through `from_main`: the first process does it
alone, and all of them go on with what came of it. Every other call here must be made by all processes, in one order.

Knows torch.distributed; knows nothing about models or losses.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from karat.devices import backends
from karat.errors import ConfigError, ProcessError
from karat.ranks import launched, launched_rank

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = datetime.timedelta(days=365)
"""Others wait for the first process while it does what only one may do, and that can be waiting for people's votes. One
that ended is noticed at once, whatever this is: its connections close."""
BUCKET_NUMBERS = 1 << 24
"""Gradients summed in one message: bounds the copy, 64 MB of float32."""
FIRST_WORDS = "karat/complained"
ALONE_S = 60.0
"""Seconds after which a process that waits for the others to begin says so."""
_alone = 0
_in_shards = False


class _Followed(ProcessError):
    """The first process failed and says why."""


def count() -> int:
    """How many processes work together; 1 = alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them I am, from 0."""
    return distributed.get_rank() if _together() else 0


def is_main() -> bool:
    """True = I write files and show progress."""
    return rank() == 0


def in_shards() -> bool:
    """Whether the processes hold what they train in shards (`sharding`)."""
    return _in_shards and count() > 1


@contextlib.contextmanager
def joined(*, in_shards: bool = False) -> Iterator[None]:
    """Join the processes that `karat run --processes`, torchrun or `accelerate launch` started, for the block.

    Alone, nothing happens. Of several processes that fail, or fail because another did, the first alone raises its own
    error; the others raise ProcessError without a message.

    Args:
        in_shards: True = weights in training, their gradients and the optimiser's state are parted among the processes.
    Raises: ConfigError where the environment names a number of processes but not which this is or where to meet.
    """
    global _in_shards
    n = launched()
    if n == 1 or distributed.is_initialized():
        yield
        return
    here, address = launched_rank(), [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if here is None or None in address:
        raise ConfigError(
            f"processes: found {n} of them and no {'rank' if here is None else 'MASTER_ADDR and MASTER_PORT'} in the "
            "environment; expected both: use `karat run --processes`, torchrun or `accelerate launch`"
        )
    if not 0 <= here < n:
        raise ConfigError(f"processes: found the rank {here} among {n} of them; expected 0 … {n - 1}")
    os.environ |= {"RANK": str(here), "WORLD_SIZE": str(n)}
    with _said_if_alone(here, n, ":".join(map(str, address))):
        distributed.init_process_group(backends(), timeout=PATIENCE)
    _in_shards = in_shards
    try:
        yield
        wait()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | _Followed) or _first_to_complain():
            raise
        raise ProcessError("") from error
    finally:
        _in_shards = False
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


@contextlib.contextmanager
def _said_if_alone(here: int, n: int, address: str) -> Iterator[None]:
    """Say where this process waits, if the others do not come soon: one may not have been started, or cannot reach us."""
    words = (
        f"karat: process {here} of {n} waits for the others at {address}; they are started apart, or cannot reach it"
    )
    note = threading.Timer(ALONE_S, lambda: print(words, file=sys.stderr, flush=True))
    note.daemon = True
    note.start()
    try:
        yield
    finally:
        note.cancel()


def from_main(work: Callable[[], T]) -> T:
    """What the first process makes of it, alone, for every process; the others wait.

    Inside, `count` is 1: the first process has all of any work to itself.

    Args:
        work: called in the first process only; what it returns must be picklable, tensors in it on the CPU.
    Raises: in the first process whatever `work` raises; in the others ProcessError when it did.
    """
    global _alone
    if count() == 1:
        return work()
    if not is_main():
        made, failed = _broadcast(None)
        if failed:
            raise _Followed("")
        return made
    _alone += 1
    try:
        made = work()
    except BaseException:
        _alone -= 1
        with contextlib.suppress(ProcessError):
            _broadcast((None, True))
        raise
    _alone -= 1
    return _broadcast((made, False))[0]


def agreed(value: T) -> T:
    """The first process's value, for all: where a decision follows from it, all must decide alike."""
    return from_main(lambda: value)


def share(items: Sequence[T]) -> list[T]:
    """My part of the work: every count-th item, so that neighbours of like size go to different processes."""
    return list(items[rank() :: count()])


def each(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """work(item) of every item, in their order and in every process; each process does its share.

    Args:
        work: what it returns must be picklable; tensors come back on the CPU where there is more than one process.
    """
    return rejoined([work(item) for item in share(items)], len(items))


def rejoined(made: list[T], n_items: int) -> list[T]:
    """What came of everybody's `share` of n items, in the items' order; alone, what was given."""
    everybody, n = gathered(made), count()
    return [everybody[index % n][index // n] for index in range(n_items)]


def gathered(item: T) -> list[T]:
    """Everybody's item, by rank; tensors in it come back on the CPU where there is more than one process."""
    n = count()
    if n == 1:
        return [item]
    everybody: list[Any] = [None] * n
    with _collective():
        distributed.all_gather_object(everybody, _on_cpu(item))
    return everybody


def budget(token_budget: int, n_tokens: int) -> int:
    """The token budget with which to cut a minibatch so that there is something for every process.

    Args:
        token_budget: of one forward pass.    n_tokens: of the whole minibatch.
    Returns: min(token_budget, ⌈n_tokens/count⌉); alone, the token budget unchanged.
    """
    return token_budget if count() == 1 else min(token_budget, -(-n_tokens // count()))


def total(number: float) -> float:
    """The sum of everybody's number."""
    return totals([number])[0]


def totals(numbers: Sequence[float]) -> list[float]:
    """The sums of everybody's numbers, each at its place."""
    if count() == 1:
        return list(numbers)
    everybody = torch.tensor(list(numbers), dtype=torch.float64)
    with _collective():
        distributed.all_reduce(everybody)
    return everybody.tolist()


def everywhere(flag: bool) -> bool:
    """Whether it is so in every process."""
    return flag if count() == 1 else total(float(not flag)) == 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of everybody's gradients; who has none for a parameter adds nothing.

    A parameter without a gradient in any process is left without one: an optimiser passes it over, as it does alone.
    All processes must name the same parameters in the same order.
    """
    if count() == 1:
        return
    chosen = list(parameters)
    found = torch.tensor([parameter.grad is not None for parameter in chosen], dtype=torch.int32)
    with _collective():
        distributed.all_reduce(found)
    known = [parameter for parameter, n in zip(chosen, found.tolist(), strict=True) if n]
    for parameter in known:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in known]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with _collective():
            distributed.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def wait() -> None:
    """Until everybody is here: what the main process wrote can now be read."""
    if count() > 1:
        total(0.0)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype, in order, in groups of a bounded size."""
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        bucket: list[Tensor] = []
        n = 0
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            if bucket and n + gradient.numel() > BUCKET_NUMBERS:
                yield bucket
                bucket, n = [], 0
            bucket.append(gradient)
            n += gradient.numel()
        yield bucket


def _broadcast(made: tuple[Any, bool] | None) -> tuple[Any, bool]:
    box = [made]
    with _collective():
        distributed.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Turn what the backends raise when somebody is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"process {rank()} of {distributed.get_world_size()} lost another one, which ended without a word (was it "
            f"killed, or out of memory?); run the same command again, it continues ({_short(error)})"
        ) from error


@contextlib.contextmanager
def backend() -> Iterator[None]:
    """Within, messages are sent by others (FSDP): what the backends raise when somebody is gone becomes one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "/gloo/" not in str(error):
            raise  # nothing to do with messages
        with _collective():
            raise


def _short(error: RuntimeError) -> str:
    """The backend's words without the place in its source."""
    return " ".join(str(error).rpartition("] ")[2].split())[:80] or type(error).__name__


def _first_to_complain() -> bool:
    """Whether nobody has raised before me; whoever cannot ask assumes that the process that keeps the list has."""
    try:
        store = distributed.distributed_c10d._get_default_store()
        store.set_timeout(datetime.timedelta(seconds=5))
        return store.add(FIRST_WORDS, 1) == 1
    except RuntimeError:
        return False


def _on_cpu(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.detach().cpu()
    if isinstance(item, dict):
        return {key: _on_cpu(value) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)(_on_cpu(value) for value in item)
    return item


def _together() -> bool:
    return not _alone and distributed.is_available() and distributed.is_initialized()
