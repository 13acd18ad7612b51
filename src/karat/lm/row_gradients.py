"""Gradients of input embeddings by the rows that were read, instead of a matrix that is zero nearly everywhere.

PyTorch gives an embedding a gradient as large as its table, and where the table is the output layer too adds that to the
output layer's into a third. Over a vocabulary of 150,000 this takes longer than the blocks of a small model, and three
times the table's memory. Within `gradients_by_rows` a backward pass notes rows, which are added to what the other layers left.
Knows modules; knows nothing about language.

Dimension letters: n rows read, d their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Rows = tuple[nn.Parameter, Int[Tensor, " n"], Float[Tensor, "n d"]]
_NOTED: ContextVar[list[Rows] | None] = ContextVar("karat_rows_noted", default=None)


@contextmanager
def gradients_by_rows(*, active: bool = True) -> Iterator[Callable[[], None]]:
    """Within: tables that are parameters on a processor get their gradients by rows.

    Args: active: False = as outside, where gradients are asked for otherwise than by `backward`, or are parted among processes.
    Yields: what has to be called after each backward pass: it adds the rows to `grad`, in the order of the pass.
    """
    noted: list[Rows] = []
    token = _NOTED.set(noted if active else None)
    try:
        yield lambda: _add(noted)
    finally:
        _NOTED.reset(token)


def embedding_forward(self: nn.Embedding, ids: Tensor) -> Tensor:
    """The forward function of a plain embedding."""
    noted, weight = _NOTED.get(), self.weight
    if noted is None or not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf and _on_cpu(weight)):
        return F.embedding(ids, weight, self.padding_idx)
    return _Read.apply(weight, ids, self.padding_idx, noted)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is an embedding that only picks rows, so that `embedding_forward` does what it does."""
    if type(module) is not nn.Embedding:
        return False
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


def _on_cpu(weight: Tensor) -> bool:
    # elsewhere index_add adds in an order of its own, and two runs would differ
    return type(weight) is nn.Parameter and weight.device.type == "cpu"


@torch.no_grad()
def _add(noted: list[Rows]) -> None:
    for weight, ids, gradient in noted:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, gradient)
    noted.clear()


class _Read(torch.autograd.Function):
    """Rows of a table, whose gradients are noted and not returned."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, ids: Tensor, padding: int | None, noted: list[Rows]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding, ctx.noted = weight, padding, noted
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        ids = ctx.saved_tensors[0].flatten()
        gradient = grads[0].reshape(len(ids), -1)
        if ctx.padding is not None:  # which PyTorch never changes
            kept = ids != ctx.padding
            ids, gradient = ids[kept], gradient[kept]
        ctx.noted.append((ctx.weight, ids, gradient))
        return None, None, None, None
