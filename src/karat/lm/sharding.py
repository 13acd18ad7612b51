"""Weights in shards: each process keeps its part of the trained weights, of their gradients and of the optimiser's state.

torch's `fully_shard` (FSDP2) holds the parts. A training pass gathers one block of the decoder at a time, by hooks of the
block, and adds up the gradients part by part. Whatever else reads weights (sampling, scoring, a look, saving) reads them
within `whole`, where the very modules that were given stand with their full weights, as if nothing were in shards; so do
they once the training is over. All processes must enter `whole`, and make as many training passes (`even_share`).

Knows torch.distributed and modules; knows nothing about losses, texts or what is trained.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from karat.errors import InvariantError
from karat.lm import parallel
from karat.lm.final_block import block_lists
from karat.lm.freed_memory import give_memory_back

T = TypeVar("T")
_now: Shards | None = None
NO_DIVISION_BY_ZERO = 1e-6
"""What PyTorch adds to a norm before it divides by it."""


class _Root(nn.Module):
    """All trained modules; its forward pass is whatever work is handed over, so that its hooks enclose that work."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, work: Callable[[], T]) -> T:
        """What the work returns."""
        return work()


class Shards:
    """The trained modules of one training loop in shards; made by `sharded`."""

    def __init__(self, modules: Sequence[nn.Module], optimisers: Iterable[torch.optim.Optimizer]) -> None:
        device = next(p.device for module in modules for p in module.parameters())
        self.gives_back = device.type == "cpu" and give_memory_back()
        self.mesh = init_device_mesh(device.type, (parallel.count(),))
        self.depth = 0
        # Blocks are sharded as copies that stand in for them in training, so that the modules themselves keep their
        # class and stay free of hooks; all that is not in a block belongs to the root, and is gathered with it.
        self.lists, self.left = _apart(modules)
        self.plain = [list(blocks) for blocks in self.lists]
        self.units = [[_copied(block) for block in blocks] for blocks in self.plain]
        pairs = [(own, own) for module in modules for own in module.modules()]
        stand_in = {
            id(a): b
            for blocks, units in zip(self.plain, self.units, strict=True)
            for block, unit in zip(blocks, units, strict=True)
            for a, b in zip(block.modules(), unit.modules(), strict=True)
        }
        self.slots = [
            (own, stand_in.get(id(own), own), name, p)
            for own, _ in pairs
            for name, p in own.named_parameters(recurse=False)
            if p not in self.left
        ]
        hooked = [own for own, _ in pairs if id(own) not in stand_in]
        before = [[list(hooks) for hooks in _state_dict_hooks(own)] for own in hooked]
        self._stand_in()
        self.root = _Root(modules)
        self._shard()
        # it would put the shards back whenever a module that is whole is saved
        for own, known in zip(hooked, before, strict=True):
            for hooks, keys in zip(_state_dict_hooks(own), known, strict=True):
                for key in set(hooks) - set(keys):
                    del hooks[key]
        part_of = {id(p): getattr(there, name) for _, there, name, p in self.slots}
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                if optimiser.state or any(id(p) not in part_of for p in group["params"]):
                    raise InvariantError("sharding: found an optimiser that has begun, or trains what is in no module")
                group["params"] = [part_of[id(p)] for p in group["params"]]
        self._empty()

    def passes(self, losses: Iterable[Tensor], *, shared: bool) -> Iterator[Tensor]:
        """The losses one after the other, each made with weights gathered block by block; afterwards all are in shards.

        Args:
            shared: True = each process has its own losses, and gradients are to be their sum. FSDP2 averages, and gloo
                has no scaled sum that would let it add: so losses are multiplied by the number of processes.
        """
        iterator = iter(losses)
        factor = parallel.count() if shared else 1
        with parallel.backend():
            while (loss := self.root(partial(next, iterator, None))) is not None:
                yield _Scaled.apply(loss, factor) if loss.requires_grad else loss
        self.root.reshard()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within: the modules as they were given, with all their weights."""
        self.depth += 1
        if self.depth == 1:
            self._gather()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self._stand_in()
                self._empty()
                for unit in self._every():
                    unit.reshard()

    def dissolve(self) -> None:
        """Leave the modules as they were given, whole, with what was learnt; a block at a time, so that nothing is held twice."""
        done: set[int] = set()
        own: set[int] = set()
        for unit in reversed(self._every()):  # the root, which encloses the blocks, last
            with parallel.backend():
                unit.unshard()
            inside = {id(module) for module in unit.modules()} - done
            for _, there, name, parameter in self.slots:
                if id(there) in inside and id(parameter) not in own:
                    parameter.data = getattr(there, name).detach().clone()
                    own.add(id(parameter))
            unit.reshard()
            done |= inside
        for module, _, name, parameter in self.slots:
            setattr(module, name, parameter)
        self._stand_back()

    def _shard(self) -> None:
        for units in self.units:
            for unit in units:
                fully_shard(unit, mesh=self.mesh, ignored_params=self.left)
        fully_shard(self.root, mesh=self.mesh, ignored_params=self.left)
        assert isinstance(self.root, FSDPModule)
        # embeddings and output layer serve every pass of a step: gathered once, and parted by `passes`
        self.root.set_reshard_after_backward(False, recurse=False)
        self.root(lambda: None)  # it learns what it consists of
        self.root.reshard()
        # Each block's weights are fetched while the one behind it works. By itself FSDP fetches in the order of the
        # last passes, also of those without a gradient, for blocks that never come to a backward pass.
        self.root.set_modules_to_backward_prefetch([self.root])
        for units in self.units:
            for before, unit in zip([units[0], *units], units, strict=False):
                unit.set_modules_to_backward_prefetch([before])

    def _every(self) -> list[Any]:
        return [self.root, *(unit for units in self.units for unit in units)]

    def _gather(self) -> None:
        with parallel.backend():
            for unit in self._every():
                unit.unshard()
        for own, there, name, parameter in self.slots:
            parameter.data = getattr(there, name).data
            if own is not there:
                setattr(own, name, parameter)
        for own, there, name, parameter in self.slots:
            if own is there:
                setattr(own, name, parameter)
        self._stand_back()

    def _stand_back(self) -> None:
        for blocks, plain in zip(self.lists, self.plain, strict=True):
            for index, block in enumerate(plain):
                blocks[index] = block

    def _stand_in(self) -> None:
        for blocks, units in zip(self.lists, self.units, strict=True):
            for index, unit in enumerate(units):
                blocks[index] = unit

    def _empty(self) -> None:
        """Let go of the weights that the modules themselves hold while they are in shards."""
        for _, _, _, parameter in self.slots:
            parameter.data = parameter.data.new_empty(0)


@contextlib.contextmanager
def sharded(
    modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> Iterator[Shards | None]:
    """Within: what is trained of these modules is in shards, if this run was told so; None where it was not.

    After an error they are left as they are: whole weights would need the other processes.
    """
    global _now
    trained = [module for module in modules.values() if any(p.requires_grad for p in module.parameters())]
    if not trained or not parallel.in_shards():
        yield None
        return
    _now = Shards(trained, optimisers.values())
    try:
        yield _now
        _now.dissolve()
    finally:
        _now = None


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Within: the modules in training have their whole weights, to read. All processes must enter it."""
    with _now.whole() if _now is not None else contextlib.nullcontext():
        yield


def even_share(items: Sequence[T], filler: Callable[[], T]) -> list[T]:
    """This process's share of what is to be trained on; where weights are in shards, as many items in every process.

    Args:
        filler: makes an item whose loss is 0 but has a gradient: a pass that the others need in order to gather weights.
    """
    mine = parallel.share(items)
    if _now is None:
        return mine
    return mine + [filler() for _ in range(-(-len(items) // parallel.count()) - len(mine))]


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be in shards; all processes must ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    with parallel.backend():
        return tensor.full_tensor()


def part_like(whole_one: Tensor, parameter: Tensor) -> Tensor:
    """What this process holds of a tensor that belongs to a parameter (a moment of it, say); of others all."""
    if not isinstance(parameter, DTensor) or whole_one.shape != parameter.shape:
        return whole_one
    there = whole_one.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale gradients down to a norm, over all shards of them; returns the norm before.

    One message for all parameters: the norm of a DTensor is one for each.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    apart = isinstance(gradients[0], DTensor)
    norm = nn.utils.get_total_norm([g.to_local() if isinstance(g, DTensor) else g for g in gradients])
    if apart:
        norm = torch.full_like(norm, math.sqrt(parallel.total(float(norm) ** 2)))
    found = float(norm)
    if not found + NO_DIVISION_BY_ZERO <= max_norm:  # else PyTorch multiplies all of them by 1; NaN goes its way
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return found


class _Scaled(torch.autograd.Function):
    """The loss itself, with so many times its gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _apart(modules: Sequence[nn.Module]) -> tuple[list[nn.ModuleList], set[nn.Parameter]]:
    """The lists of blocks that can be gathered one by one, and the frozen weights that stay whole: FSDP2 wants each weight
    in one place, and a policy and its critic may have theirs from one memory.

    Blocks that share what is trained belong to the root.
    """
    found = [blocks for module in modules for blocks in block_lists(module)]
    places: dict[nn.Parameter, set[int]] = {}
    for blocks in found:
        for block in blocks:
            for parameter in block.parameters():
                places.setdefault(parameter, set()).add(id(block))
    lists = [
        blocks
        for blocks in found
        if len(set(blocks)) == len(blocks)
        and not any(p.requires_grad and len(places[p]) > 1 for block in blocks for p in block.parameters())
    ]
    return lists, {p for p, where in places.items() if len(where) > 1 and not p.requires_grad}


def _copied(block: nn.Module) -> nn.Module:
    """The same block once more, on the same weights."""
    shared = [*block.parameters(), *block.buffers()]
    shared += [getattr(own, "config", None) for own in block.modules()]  # read, never changed
    return copy.deepcopy(block, {id(one): one for one in shared if one is not None})


def _state_dict_hooks(module: nn.Module) -> list[Any]:
    return [module._state_dict_pre_hooks, module._load_state_dict_pre_hooks]
