"""Blocks with adapters as one operation: the numbers and gradients of the plain way, or the plain way."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import tiny_models
from karat.lm import block_pass, fused_block, native
from karat.lm.adapters import add_lora, reference_mode, trunk_beside
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states, response_logprobs, trunk_of
from karat.lm.low_rank import SharedInput
from karat.lm.narrow import use_narrow_products
from karat.lm.trees import Tree, TreeBatch, pack_trees

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler")
TARGETS = ("all-linear", ["q_proj", "v_proj"], ["o_proj", "up_proj"], ["k_proj", "down_proj"])


def batch() -> TreeBatch:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 250, (40,), generator=generator).tolist() for _ in range(3)]
    trees = [Tree(tuple(row[:9]), (tuple(row[9:16]), tuple(row[16:17]), tuple(row[17:30]))) for row in ids]
    return pack_trees(trees, token_budget=1000)[0]


def adapted(kind: str, directory, *, targets="all-linear", products: torch.dtype | None = None) -> nn.Module:
    """A tiny model with adapters that add something."""
    lm = load_lm(tiny_models.tiny_checkpoint(kind, directory), products=products)
    model = add_lora(lm.model, 3, 6.0, targets=targets)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def plainly(model: nn.Module) -> nn.Module:
    """A copy of the model whose blocks go their own way."""
    other = copy.deepcopy(model)
    for block in trunk_of(other).layers:
        vars(block).pop("forward", None)
    return other


def found_by(model: nn.Module, *, alone: bool = False) -> list[Tensor]:
    """Hidden states that are read, and the gradients of a sum of them for everything that learns."""
    model.zero_grad()
    one = batch()
    rows = one.predict_index
    hidden = hidden_at(model, one, rows) if alone else hidden_states(model, one).index_select(0, rows)
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    learnt = [p for p in trunk_of(model).parameters() if p.requires_grad]
    assert learnt
    return [hidden.detach(), *(p.grad.clone() for p in learnt)]


def gap(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def fail(*_args, **_options):
    raise InterruptedError


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_numbers_and_gradients_are_those_of_the_plain_way(kind, targets, alone, tmp_path, monkeypatch):
    model = adapted(kind, tmp_path, targets=targets)
    found, expected = found_by(model, alone=alone), found_by(plainly(model), alone=alone)
    assert len(found) == len(expected)
    assert max(gap(a, b) for a, b in zip(found, expected, strict=True)) < 2e-5
    monkeypatch.setattr(fused_block, "fused", fail)  # and it was the fused way that gave them
    with pytest.raises(InterruptedError):
        found_by(model, alone=alone)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_bfloat16_they_are_about_as_near_to_float32_as_the_plain_way(kind, tmp_path):
    model = adapted(kind, tmp_path, products=BF16)
    plain = plainly(model)
    fused, own = found_by(model, alone=True), found_by(plain, alone=True)
    use_narrow_products(plain, None)
    gaps = [
        (gap(one, truth), gap(other, truth))
        for one, other, truth in zip(fused, own, found_by(plain, alone=True), strict=True)
    ]
    # the plain way takes the narrow products of adapters, and those alone, in float32
    assert all(0 < mine < 2 * theirs for mine, theirs in gaps), max(mine / theirs for mine, theirs in gaps)


def test_what_a_layer_adds_and_its_gradients_are_those_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, grad, scales = drawn(5, 4), drawn(5, 9), (0.5, 0.0, 2.0)
    widths, parts = (3, 2, 4), [drawn(2, 4), drawn(3, 2), None, None, drawn(1, 4), drawn(4, 1)]
    updates = SharedInput(widths, parts, scales, torch.float64)
    given = x.clone().requires_grad_()
    leaves = [None if part is None else part.clone().requires_grad_() for part in parts]
    columns = []
    for number, (width, scale) in enumerate(zip(widths, scales, strict=True)):
        down, up = leaves[2 * number : 2 * number + 2]
        columns.append(
            torch.zeros(5, width, dtype=torch.float64) if down is None else scale * (given @ down.t()) @ up.t()
        )
    expected = torch.cat(columns, 1)
    expected.backward(grad)
    output, of_x = torch.zeros(5, 9, dtype=torch.float64), torch.zeros(5, 4, dtype=torch.float64)
    low = updates.add_to(output, x)
    of_low = updates.back(grad, of_x)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(of_x, given.grad)
    for found, leaf in zip(updates.gradients(grad, x, low, of_low), leaves, strict=True):
        assert (found is None) == (leaf is None)
        if leaf is not None:
            torch.testing.assert_close(found, leaf.grad.float())


def test_two_passes_give_the_same_bits_and_without_gradient_too(tmp_path):
    model = adapted("qwen3", tmp_path, products=BF16)
    once, again = (found_by(model, alone=True) for _ in range(2))
    assert all(map(torch.equal, once, again))
    with torch.no_grad():
        assert torch.equal(hidden_at(model, batch(), batch().predict_index), once[0])


def test_a_graph_can_be_gone_through_twice(tmp_path):
    model = adapted("qwen3", tmp_path, products=BF16)
    total = response_logprobs(model, batch()).logprobs.sum()
    leaves = [p for p in model.parameters() if p.requires_grad]
    once = torch.autograd.grad(total, leaves, retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(total, leaves)))


def test_with_adapters_off_they_are_the_bits_of_the_model_without(tmp_path, monkeypatch):
    model = adapted("qwen3", tmp_path)
    before = hidden_states(load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path)).model, batch())
    with reference_mode(model):
        assert torch.equal(hidden_states(model, batch()), before)
        monkeypatch.setattr(fused_block, "fused", fail)
        with pytest.raises(InterruptedError):
            hidden_states(model, batch())


def test_a_second_trunk_on_the_same_weights_has_gradients_of_its_own(tmp_path):
    model = adapted("llama", tmp_path)
    beside = trunk_beside(model)
    with torch.no_grad():
        for name, weight in beside.named_parameters():
            if "lora_" in name:
                weight.mul_(2)
    found, expected = found_by(beside), found_by(plainly(beside))
    assert max(gap(a, b) for a, b in zip(found, expected, strict=True)) < 2e-5
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("why", ["two adapters", "dropout in training", "merged"])
def test_what_more_than_one_update_would_do_goes_the_plain_way(why, tmp_path, monkeypatch):
    model = adapted("llama", tmp_path)
    expected = hidden_states(model, batch())
    if why == "two adapters":
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        model.base_model.set_adapter(["default", "other"])
    elif why == "dropout in training":
        model.train()
    else:  # the weights have changed, and are multiplied by as any others are
        model.merge_adapter()
        assert gap(hidden_states(model, batch()), expected) < 2e-5
        return
    monkeypatch.setattr(fused_block, "fused", fail)
    assert hidden_states(model, batch()).isfinite().all()


def test_frozen_weights_get_no_product_and_the_lowest_block_none_for_its_input(tmp_path, monkeypatch):
    model = adapted("llama", tmp_path)
    products: list[tuple[int, ...]] = []
    own = block_pass.matmul

    def counted(left, right):
        products.append((*left.shape, right.shape[1]))
        return own(left, right)

    loss = hidden_states(model, batch()).sum()
    monkeypatch.setattr(block_pass, "matmul", counted)
    loss.backward()
    n_blocks = len(trunk_of(model).layers)
    # a block: of what was gated, of the normed, of what was attended, of the normed; the last of them not at the bottom
    assert len(products) == 4 * n_blocks - 1
    full = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path), for_training=True).model
    products.clear()
    hidden_states(full, batch()).sum().backward()
    assert len(products) == 12 * n_blocks


def test_a_step_with_adapters_learns_what_the_plain_way_learns(tmp_path):
    model = adapted("qwen3", tmp_path)
    losses = []
    for one in (model, plainly(model)):
        optimiser = torch.optim.Adam([p for p in one.parameters() if p.requires_grad], lr=1e-3)
        own = []
        for _ in range(4):
            optimiser.zero_grad()
            loss = -response_logprobs(one, batch()).logprobs.mean()
            loss.backward()
            optimiser.step()
            own.append(float(loss.detach()))
        losses.append(own)
    assert all(after < before for before, after in pairwise(losses[0]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
