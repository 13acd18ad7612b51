"""CUDA graphs that are none: what is done while one is "captured" is noted, undone, and done again when it is replayed.

As with real ones, nothing a capture does has happened when it ends; a replay does the same operations on the same memory,
whatever Python has changed since; and whatever waits for a number while it is captured ends the capture. Knows PyTorch;
knows nothing of karat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default)


class NotPermitted(RuntimeError):
    """What a driver says of an operation that cannot be captured."""


class _Recorder(TorchDispatchMode):
    """Notes operations and, of memory that was there before, what it held before it was first written to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func in WAITS:
            raise NotPermitted("operation not permitted when stream is capturing")
        for value in _tensors((args, kwargs)):
            whole = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
            place = value.untyped_storage().data_ptr()
            if place not in self.made and place not in self.before:
                self.before[place] = (whole, whole.clone())
        out = func(*args, **kwargs)
        self.made |= {one.untyped_storage().data_ptr() for one in _tensors(out)} - set(self.before)
        self.calls.append((func, args, kwargs, out))
        return out


def _tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in tree_flatten(value)[0] if isinstance(one, torch.Tensor)]


class PretendGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, counts: Counts) -> None:
        self.counts, self.calls = counts, []
        counts.n_graphs += 1

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        self.counts.n_replays += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for target, source in zip(_tensors(out), _tensors(again), strict=True):
                if target.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
                    target.copy_(source)


class Counts:
    """How often what was asked for; `fail` = captures end with an error, `wrong` = replays are a little off."""

    def __init__(self) -> None:
        self.n_graphs = self.n_replays = 0
        self.fail = False
        self.pools: list[Any] = []


class _Stream:
    def __init__(self, device: Any = None) -> None:
        del device

    def wait_stream(self, other: Any) -> None:
        assert isinstance(other, _Stream)


@contextmanager
def pretend_graphs(monkeypatch: Any) -> Iterator[Counts]:
    """Within the block `torch.cuda` records graphs of what the processor does."""
    counts = Counts()

    @contextmanager
    def captured(graph: PretendGraph, *, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        counts.pools.append(pool)
        if counts.fail:
            raise NotPermitted("operation failed due to a previous error during capture;\nof two lines")
        recorder = _Recorder()
        with recorder:
            yield
        for whole, held in recorder.before.values():
            whole.copy_(held)
        graph.calls = recorder.calls

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        assert isinstance(stream, _Stream)
        yield

    with monkeypatch.context() as patched:
        for name, value in {
            "CUDAGraph": lambda: PretendGraph(counts), "graph": captured, "Stream": _Stream, "stream": on,
            "current_stream": _Stream,
        }.items():  # fmt: skip
            patched.setattr(torch.cuda, name, value)
        yield counts
