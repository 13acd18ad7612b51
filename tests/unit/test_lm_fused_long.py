"""Compiled blocks on rows of long texts: the numbers and gradients of the plain way, whatever lies in a row."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig

import tiny_models
from karat.lm import block_pass, native
from karat.lm.adapters import add_lora
from karat.lm.attention import NAME as TREE_ATTENTION
from karat.lm.fused_block import use_fused_blocks
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states, trunk_of
from karat.lm.narrow import use_narrow_products
from karat.lm.trees import Tree, TreeBatch, pack_trees

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of positions of the rows that went through the compiled pass, those of trials at loading among them."""
    lengths: list[int] = []
    own = block_pass.attend
    monkeypatch.setattr(block_pass, "attend", lambda *given: lengths.append(len(given[1])) or own(*given))
    return lengths


def batch(seed: int) -> TreeBatch:
    """One long text, a prompt with so many branches that the last are far from it, and others of random lengths."""
    rng = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 250) for _ in range(n))

    many = tuple(ids(rng.randrange(60, 120)) for _ in range(6))
    trees = [Tree(ids(1), (ids(rng.randrange(161, 420)),)), Tree(ids(rng.randrange(1, 220)), many)]
    for n_branches in [rng.randrange(1, 6) for _ in range(rng.randrange(1, 3))]:
        branches = tuple(ids(rng.randrange(1, 90)) for _ in range(n_branches))
        trees = [*trees, Tree(ids(rng.randrange(1, 220)), branches)]
    rng.shuffle(trees)
    return pack_trees(trees, token_budget=10_000)[0]


def plainly(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for block in trunk_of(other).layers:
        vars(block).pop("forward", None)
    return other


def found_by(model: nn.Module, one: TreeBatch, read: str) -> list[torch.Tensor]:
    """Hidden states that are read, and the gradients of a random sum of them."""
    model.zero_grad()
    rows = None if read == "all" else getattr(one, read)
    hidden = hidden_states(model, one) if rows is None else hidden_at(model, one, rows)
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-20))


@pytest.mark.parametrize("read", ["all", "predict_index", "last_index"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_numbers_and_gradients_are_those_of_the_plain_way(kind, read, tmp_path, compiled):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path), for_training=True).model
    plain = plainly(model)
    for seed in range(4):
        one = batch(seed)
        for found, expected in zip(found_by(model, one, read), found_by(plain, one, read), strict=True):
            assert gap(found, expected) < 2e-5
    assert sum(n > 160 for n in compiled) == 4 * len(trunk_of(model).layers)


@pytest.mark.parametrize("window", [3, 100, 260])
def test_a_window_is_kept(window, compiled):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 250, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
    }  # fmt: skip
    config = MistralConfig(sliding_window=window, attn_implementation=TREE_ATTENTION, **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=TREE_ATTENTION).eval()
    assert use_fused_blocks(model) == 2
    plain, one = plainly(model), batch(5)
    for found, expected in zip(found_by(model, one, "all"), found_by(plain, one, "all"), strict=True):
        assert gap(found, expected) < 2e-5
    assert sum(n > 160 for n in compiled) == 2


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_bfloat16_they_are_about_as_near_to_float32_as_the_plain_way(kind, tmp_path, compiled):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path), for_training=True, products=BF16).model
    plain, one = plainly(model), batch(1)
    fused, own = found_by(model, one, "predict_index"), found_by(plain, one, "predict_index")
    use_narrow_products(plain, None)
    exact = found_by(plain, one, "predict_index")
    assert max(compiled) > 160
    for number, truth in enumerate(exact):  # the plain way has float32 in its attention
        assert 0 < gap(fused[number], truth) < max(2 * gap(own[number], truth), 2e-2)


@pytest.mark.parametrize("products", [None, BF16])
def test_two_passes_give_the_same_bits_and_a_graph_can_be_gone_through_twice(products, tmp_path, compiled):
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True, products=products).model
    one = batch(2)
    once, again = (found_by(model, one, "predict_index") for _ in range(2))
    assert all(map(torch.equal, once, again))
    leaves = list(trunk_of(model).parameters())
    total = hidden_states(model, one).square().sum()
    twice = [torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2)]
    assert all(map(torch.equal, *twice))
    assert max(compiled) > 160


def test_adapters_learn_what_they_learn_the_plain_way(tmp_path, compiled):
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True).model
    torch.manual_seed(3)
    model = add_lora(model, 4, 8.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    one, plain = batch(3), plainly(model)
    for found, expected in zip(
        found_by(model, one, "predict_index"), found_by(plain, one, "predict_index"), strict=True
    ):
        assert gap(found, expected) < 2e-5
    assert max(compiled) > 160
