"""Gradients of embeddings by rows: those of PyTorch, added to what other layers leave, and no table of zeros made for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_models
from karat.lm.kernels import use_fast_kernels
from karat.lm.load import load_lm
from karat.lm.loop import TrainState, optimiser_step
from karat.lm.row_gradients import gradients_by_rows, is_plain

IDS = torch.tensor([[3, 1, 3, 0], [2, 3, 1, 1]])


class Tied(nn.Module):
    """Rows of a table, mixed and multiplied by the table, or by another one."""

    def __init__(self, *, tied: bool, padding: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4, padding_idx=padding, dtype=torch.float64)
        self.head = nn.Linear(4, 6, bias=False, dtype=torch.float64)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids).tanh()).square().mean()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [None, 1])
def test_gradients_of_several_passes_are_pytorchs(tied, padding):
    plain, ours = (Tied(tied=tied, padding=padding) for _ in range(2))
    assert use_fast_kernels(ours) == 2
    for ids in (IDS, IDS[:1], IDS + 2):
        plain(ids).backward()
    with gradients_by_rows() as add_rows:
        for ids in (IDS, IDS[:1], IDS + 2):
            ours(ids).backward()
            add_rows()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)
    assert ours.table.weight.grad.any()


def test_outside_and_where_they_are_parted_gradients_come_as_always():
    model = Tied(tied=True, padding=None)
    use_fast_kernels(model)
    (expected,) = torch.autograd.grad(model(IDS), [model.table.weight])
    with gradients_by_rows(active=False) as add_rows:
        model(IDS).backward()
        assert torch.equal(model.table.weight.grad, expected)
        add_rows()
    assert torch.equal(model.table.weight.grad, expected)


def test_frozen_tables_and_embeddings_that_do_more_than_pick_rows_are_left_alone():
    model = Tied(tied=False, padding=None)
    use_fast_kernels(model)
    model.table.requires_grad_(False)
    with gradients_by_rows() as add_rows:
        model(IDS).backward()
        add_rows()
    assert model.table.weight.grad is None
    assert is_plain(model.table)
    for odd in (nn.Embedding(3, 2, max_norm=1.0), nn.Embedding(3, 2, sparse=True), nn.EmbeddingBag(3, 2)):
        assert not is_plain(odd)


class Tables(TorchDispatchMode):
    """Counts the gradients that are as large as an embedding's table."""

    n = 0

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        self.n += "embedding_dense_backward" in str(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_an_optimiser_step_makes_no_table_of_zeros_and_learns_the_same(kind, tmp_path, monkeypatch):
    directory, found = tiny_models.tiny_checkpoint(kind, tmp_path), []
    for by_rows in (True, False):
        lm = load_lm(directory, for_training=True)
        state = TrainState({"policy": lm.model}, {"policy": torch.optim.SGD(lm.model.parameters(), lr=0.1)})
        if not by_rows:
            monkeypatch.setattr("karat.lm.loop.gradients_by_rows", lambda active: gradients_by_rows(active=False))  # noqa: ARG005
        losses = (lm.model(input_ids=IDS + n).logits.square().mean() for n in range(2))
        with Tables() as tables:
            norm = optimiser_step(state, "policy", losses, max_grad_norm=1.0)
        assert (tables.n == 0) == by_rows
        found.append([torch.tensor(norm), *(p.detach().clone() for p in lm.model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
