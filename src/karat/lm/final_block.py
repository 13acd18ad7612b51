"""The last block of a decoder, computed only where its result is read.

A reward reads one position of a response, a policy's update those that predict response tokens. Below the last block
every position counts, because later ones attend to it; in the last block only keys and values do. What works position
by position there (queries, the output projection, the MLP) is skipped elsewhere. Knows modules of transformers and
flat positions; knows nothing of what is read.

Dimension letters: L flat positions, n of them that are read, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from karat.lm.kernels import even_rows
from karat.lm.narrow import products_of

MOST_SHARE = 0.9
"""Share of positions above which picking rows costs more than it saves."""
MARK = "karat_final_block_alone"
"""Attribute of a trunk on whose checkpoint both ways were compared and found equal."""
_READ: ContextVar[Tensor | None] = ContextVar("karat_rows_read", default=None)
_WANTED: ContextVar[tuple[nn.Module, Tensor] | None] = ContextVar("karat_rows_wanted", default=None)


def rows_read() -> Int[Tensor, " n"] | None:
    """Within the attention of a last block computed alone: the flat positions that are read, ascending; else None."""
    return _READ.get()


def rows_wanted(block: nn.Module) -> Int[Tensor, " n"] | None:
    """Within `only_rows`, of the last block: the flat positions at which its output is read, ascending; else None."""
    wanted = _WANTED.get()
    return wanted[1] if wanted is not None and wanted[0] is block else None


def try_alone(trunk: nn.Module, gap: Callable[[], float], most: float) -> None:
    """Let `only_rows` act on a trunk from now on, if it then gives what the plain pass gives.

    Args:
        gap: how far hidden states from within `only_rows` are from plain ones, relative.    most: the largest allowed.
    """
    possible = bool(position_wise(trunk))
    setattr(trunk, MARK, possible)
    try:
        possible = possible and gap() <= most
    except Exception:  # whatever a foreign module raises on fewer rows than it expects: then the plain pass stays
        possible = False
    setattr(trunk, MARK, possible)


def last_block(trunk: nn.Module) -> nn.Module | None:
    """The last of the blocks, where there is one list as long as the configuration says; else None."""
    lists = [child for child in trunk.children() if isinstance(child, nn.ModuleList) and len(child) == n_blocks(trunk)]
    return lists[0][-1] if len(lists) == 1 else None


def n_blocks(module: nn.Module) -> int | None:
    """How many blocks a module's configuration names; None where it names none."""
    return getattr(getattr(module, "config", None), "num_hidden_layers", None)


def block_lists(module: nn.Module) -> list[nn.ModuleList]:
    """The lists of blocks anywhere within a module: those as long as a configuration there says."""
    lengths = {n for own in module.modules() if (n := n_blocks(own))}
    return [own for own in module.modules() if isinstance(own, nn.ModuleList) and len(own) in lengths]


def position_wise(trunk: nn.Module) -> list[nn.Module]:
    """The modules of the last block that work position by position; [] where the layout is not known."""
    block = last_block(trunk)
    if block is None or not isinstance(getattr(block, "mlp", None), nn.Module):
        return []
    attention = _attention_of(block)
    return [block.mlp, *([attention.q_proj, attention.o_proj] if attention is not None else [])]


def _attention_of(block: nn.Module) -> nn.Module | None:
    """The part of a block whose projections of queries and of the output are apart."""
    return next((child for child in block.children() if hasattr(child, "q_proj") and hasattr(child, "o_proj")), None)


@contextmanager
def only_rows(trunk: nn.Module, rows: Int[Tensor, " n"], shape: Sequence[int]) -> Iterator[None]:
    """Within: a pass over [B, T] positions gives the right last hidden states at `rows`; elsewhere they mean nothing.

    Where the trunk does not allow it, most positions are read, or blocks are computed again for the gradient (outside
    of this context), the pass is the plain one.

    Args:
        rows: positions that are read, of the flattened batch; they may repeat.    shape: (B, T) of the batch, L = B·T.
    """
    again = torch.is_grad_enabled() and bool(getattr(last_block(trunk), "gradient_checkpointing", False))
    if again or not getattr(trunk, MARK, False):
        yield
        return
    n_positions = shape[0] * shape[1]
    wanted = torch.zeros(n_positions, dtype=torch.bool, device=rows.device)
    wanted[rows] = True
    kept = wanted.nonzero().squeeze(1)
    if len(kept) > MOST_SHARE * n_positions:
        yield
        return
    n_more = min(even_rows(len(kept), rows.device, products_of(trunk)), n_positions) - len(kept)
    if n_more:  # some that nobody reads
        wanted[(~wanted).nonzero()[-n_more:, 0]] = True
        kept = wanted.nonzero().squeeze(1)

    def pick(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].flatten(0, 1).index_select(0, kept.to(inputs[0].device)).unsqueeze(0), *inputs[1:])

    def place(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(n_positions, output.shape[-1])
        return whole.index_copy(0, kept.to(output.device), output.squeeze(0)).view(*shape, -1)

    def begin(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        _READ.set(kept)

    def end(_module: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
        _READ.set(None)

    with ExitStack() as hooks:
        hooks.callback(_READ.set, None)
        hooks.callback(_WANTED.reset, _WANTED.set((last_block(trunk), kept)))
        attention = _attention_of(last_block(trunk))
        if attention is not None:
            hooks.callback(attention.register_forward_pre_hook(begin).remove)
            hooks.callback(attention.register_forward_hook(end).remove)
        for module in position_wise(trunk):
            hooks.callback(module.register_forward_pre_hook(pick).remove)
            hooks.callback(module.register_forward_hook(place).remove)
        yield
