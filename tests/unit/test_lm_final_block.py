"""The last block computed only where it is read: equal to the plain pass, gradients included, or left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny_models
from karat.lm import final_block
from karat.lm.adapters import add_lora
from karat.lm.final_block import MARK, only_rows, position_wise, try_alone
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states, trunk_of
from karat.lm.trees import Batch, Tree, pack_trees, padded_batch

TREES = [
    Tree((5, 9, 17, 30, 31, 32), ((40, 41), (42,), (43, 44, 45))),
    Tree((6, 7), ((50,),)),
]
N_MODULES = {"gpt2": 1, "llama": 3, "qwen3": 3, "gemma": 3, "gemma3": 3}
"""The MLP, and where they are apart the projections of queries and of the output."""


def batches(pad_id: int) -> list[Batch]:
    return [padded_batch(TREES, pad_id), *pack_trees(TREES, token_budget=1000)]


def gradients(model: nn.Module, read: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(read.shape, generator=torch.Generator().manual_seed(1), dtype=read.dtype)
    model.zero_grad()
    (read * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rows_seen(module: nn.Module) -> list[int]:
    """How many positions each call of a module is given from now on."""
    seen: list[int] = []
    module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("kind", [*tiny_models.KINDS, "gemma3"])
def test_what_is_read_and_every_gradient_are_those_of_the_plain_pass(kind, tmp_path) -> None:
    lm = load_lm(
        tiny_models.tiny_checkpoint(kind, tmp_path, dtype=torch.float64), dtype=torch.float64, for_training=True
    )
    modules = position_wise(trunk_of(lm.model))
    assert len(modules) == N_MODULES[kind]
    for batch in batches(lm.pad_id):
        for rows in (batch.last_index, batch.predict_index, batch.predict_index.flip(0)):
            plain = hidden_states(lm.model, batch).index_select(0, rows)
            expected = gradients(lm.model, plain)
            seen = rows_seen(modules[0])
            found = hidden_at(lm.model, batch, rows)
            assert seen == [len(rows.unique())]
            torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
            grads = gradients(lm.model, found)
            assert grads.keys() == expected.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_adapters_in_the_last_block_get_the_same_gradients(tmp_path) -> None:
    lm = load_lm(
        tiny_models.tiny_checkpoint("qwen3", tmp_path, dtype=torch.float64), dtype=torch.float64, for_training=True
    )
    adapted = add_lora(lm.model, 2, 4.0)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(2))
    batch = batches(lm.pad_id)[1]
    expected = gradients(adapted, hidden_states(adapted, batch).index_select(0, batch.last_index))
    found = gradients(adapted, hidden_at(adapted, batch, batch.last_index))
    assert any("lora_A" in name for name in found)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-11, msg=name)


def test_the_plain_pass_stays_where_most_is_read_or_blocks_are_computed_again(tmp_path) -> None:
    lm = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path), for_training=True)
    trunk, batch = trunk_of(lm.model), batches(lm.pad_id)[0]
    n = batch.input_ids.numel()
    seen = rows_seen(position_wise(trunk)[0])
    hidden_at(lm.model, batch, torch.arange(n))
    assert seen.pop() == n
    new_name = getattr(lm.model, "activation_checkpointing_enable", None)
    (new_name or lm.model.gradient_checkpointing_enable)()
    lm.model.train()
    gradients(lm.model, hidden_at(lm.model, batch, batch.last_index))
    assert set(seen) == {n}
    seen.clear()
    with torch.no_grad():
        hidden_at(lm.model, batch, batch.last_index)
    assert seen == [len(batch.last_index)]


def test_a_trunk_that_was_not_compared_or_that_differs_is_left_alone(tmp_path, monkeypatch) -> None:
    lm = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path), for_training=True)
    trunk, batch = trunk_of(lm.model), batches(lm.pad_id)[1]
    seen = rows_seen(position_wise(trunk)[0])

    def raising() -> float:
        raise RuntimeError("expected 9 rows")

    for gap, alone in ((lambda: 0.0, True), (lambda: 0.1, False), (lambda: float("nan"), False), (raising, False)):
        try_alone(trunk, gap, most=1e-3)
        hidden_at(lm.model, batch, batch.last_index)
        assert seen.pop() == (len(batch.last_index) if alone else batch.input_ids.numel())
    monkeypatch.setattr(final_block, "position_wise", lambda _trunk: [])
    try_alone(trunk, lambda: 0.0, most=1e-3)
    assert not getattr(trunk, MARK)


def test_an_unknown_layout_has_no_modules_to_cut(tmp_path) -> None:
    trunk = trunk_of(load_lm(tiny_models.tiny_checkpoint("llama", tmp_path)).model)
    del trunk.layers[-1].mlp
    assert position_wise(trunk) == []
    assert position_wise(nn.Sequential(nn.Linear(2, 2))) == []


def test_nothing_is_left_on_the_modules_afterwards(tmp_path) -> None:
    trunk = trunk_of(load_lm(tiny_models.tiny_checkpoint("llama", tmp_path)).model)
    with only_rows(trunk, torch.tensor([0]), (1, 9)):
        assert all(module._forward_pre_hooks for module in position_wise(trunk))
    with pytest.raises(IndexError):
        hidden_at(trunk, batches(0)[1], torch.tensor([10_000]))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in position_wise(trunk))
