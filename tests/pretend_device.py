"""A device that is none: its tensors live "elsewhere", are computed on the processor, and refuse to mix with the processor's.

What a program does wrong on an accelerator, it does wrong here too, and is told: operands on two devices, numpy of a
tensor that is not the processor's, a processor's generator for draws elsewhere, draws from a device's own state, and,
where `double` is False, float64 (which Apple's devices have not). Stricter than CUDA in one thing: an index on the
processor is refused too, because it costs a copy that waits.

Registers itself as PyTorch's spare backend (`PrivateUse1`) when first used, and is available only within
`pretend_device`. Knows PyTorch; knows nothing of karat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
N_DEVICES = 2
aten = torch.ops.aten
TRANSFERS = (aten.copy_.default, aten._to_copy.default, aten._copy_from.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default)
SCALARS_GO = (aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
"""Operations beside the pointwise ones that take a scalar of the processor, as they do on CUDA."""


class Mixed(RuntimeError):
    """Something that no accelerator takes."""


@dataclass
class _State:
    on: bool = False
    double: bool = True
    index: int = 0
    n_operations: int = 0
    n_reads: int = 0


_state = _State()
_installed = False
_library = torch.library.Library("aten", "IMPL")


class DeviceTensor(torch.Tensor):
    """A tensor of the pretended device; `raw` holds its numbers."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> DeviceTensor:
        if raw.dtype == torch.float64 and not _state.double:
            raise Mixed("float64 on a device that has none")
        with torch.inference_mode(False):  # a view of an ordinary tensor is ordinary, also in inference mode
            made = torch.Tensor._make_wrapper_subclass(
                cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
                device=torch.device(NAME, 0),
            )  # fmt: skip
        made.raw = raw
        return made

    def tolist(self) -> Any:
        """As PyTorch does it for tensors of its own: copied to the processor first."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everything(TorchDispatchMode):
    """Sees what no tensor of the device takes part in: that is how its tensors are made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    asked = next((value for value in flat if isinstance(value, torch.device)), None)
    to_device = asked is not None and asked.type == NAME
    if not ours and not to_device:
        return func(*args, **kwargs)
    if torch.is_inference_mode_enabled():  # there operations arrive whole that are made of others
        made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
    _state.n_operations += 1
    _refuse_mixture(func, tensors, ours, flat)
    leaves = asked is not None and not to_device
    _state.n_reads += func in READS or (leaves and func in TRANSFERS)
    own = {id(tensor.raw): tensor for tensor in ours}
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    if func is aten._copy_from.default:
        args[1].raw.copy_(plain_args[0])
        return args[1]
    made = func(*plain_args, **plain_kwargs)
    if leaves:
        return made
    if func is aten.copy_.default and not isinstance(args[0], DeviceTensor):
        _state.n_reads += 1
        return args[0]
    for tensor in ours:
        if tensor.raw.shape != tensor.shape or tensor.raw.stride() != tensor.stride():
            raise NotImplementedError(f"the pretended device has no {func}, which changes a tensor's shape in place")

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return own[id(value)] if id(value) in own else DeviceTensor(value)

    return tree_map(wrapped, made)


def _plain(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _refuse_mixture(func: Any, tensors: list[torch.Tensor], ours: list[DeviceTensor], flat: list[Any]) -> None:
    theirs = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    if ours and theirs and func not in TRANSFERS:
        scalars = all(tensor.dim() == 0 for tensor in theirs)
        if not (scalars and (torch.Tag.pointwise in func.tags or func in SCALARS_GO)):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in theirs)
            raise Mixed(f"{func}: tensors of two devices; those on the processor are {shapes}")
    generators = [value for value in flat if isinstance(value, torch.Generator)]
    if generators:
        raise Mixed(f"{func}: a generator of the processor for a tensor that is not there")
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise Mixed(f"{func}: draws from the device's own state, which no seed of karat's sets")


class _Module:
    """What `torch.pretend` is."""

    @staticmethod
    def is_available() -> bool:
        return _state.on

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        del seed

    @staticmethod
    def device_count() -> int:
        return N_DEVICES if _state.on else 0

    @staticmethod
    def current_device() -> int:
        return _state.index

    @staticmethod
    def get_device_name(device: Any) -> str:
        del device
        return "no card at all"

    @staticmethod
    def mem_get_info(device: Any) -> tuple[int, int]:
        del device
        return 3 << 30, 4 << 30


def _called(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs if func is aten._copy_from.default else kwargs | {"device": torch.device(NAME, 0)})


def _install() -> None:
    global _installed
    if _installed:
        return

    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return _state.on

        def has_primary_context(self, index: int) -> bool:
            return index == 0

        def is_built(self) -> bool:
            return True

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=Hooks())
    # where PyTorch makes a tensor from a list it looks past modes and classes, to the backend itself
    for name in ("empty_strided", "empty.memory_format", "_copy_from"):
        packet, _, overload = name.partition(".")
        _library.impl(name, partial(_called, getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
    _installed = True


@contextmanager
def pretend_device(*, double: bool = True) -> Iterator[_State]:
    """Within the block `torch.device("pretend")` is there and is what `torch.accelerator` reports.

    Args: double: False = it has no float64.
    Yields: the counts of operations, and of those that wait for a number or copy to the processor.
    """
    _install()
    _state.on, _state.double, _state.n_operations, _state.n_reads = True, double, 0, 0
    # else `module.to` makes a new parameter for each place where a shared one stands, which no accelerator's does
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        # in one thread: an error of the backward pass then reaches the test instead of ending the process
        with _Everything(), torch.autograd.set_multithreading_enabled(False):
            yield _state
    finally:
        _state.on = False
        torch.__future__.set_swap_module_params_on_conversion(swaps)
