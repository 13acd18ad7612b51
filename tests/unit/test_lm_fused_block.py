"""Decoder blocks as one operation: the numbers and gradients of the plain way, or the plain way."""

from __future__ import annotations

import copy
import shutil
import subprocess

import pytest
import torch
from torch import nn

import tiny_models
from karat.lm import fused_block, native
from karat.lm.adapters import add_lora
from karat.lm.fused_block import KNOWN, use_fused_blocks
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_at, hidden_states, response_logprobs, trunk_of
from karat.lm.narrow import use_narrow_products
from karat.lm.trees import Tree, TreeBatch, pack_trees

BF16 = torch.bfloat16
FUSED = ("llama", "qwen3")
needs_compiler = pytest.mark.skipif(native.library(torch.float32) is None, reason="no C compiler")


def batch() -> TreeBatch:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 250, (40,), generator=generator).tolist() for _ in range(3)]
    trees = [Tree(tuple(row[:9]), (tuple(row[9:16]), tuple(row[16:17]), tuple(row[17:30]))) for row in ids]
    return pack_trees([*trees, Tree(tuple(ids[0]), ((5,),))], token_budget=1000)[0]


def found_by(model: nn.Module, rows: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Hidden states that are read, and the gradients of a sum of them."""
    model.zero_grad()
    one = batch()
    hidden = (
        hidden_states(model, one).index_select(0, one.predict_index) if rows is None else hidden_at(model, one, rows)
    )
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in trunk_of(model).parameters())]


def plainly(model: nn.Module) -> nn.Module:
    """A copy of the model whose blocks go their own way."""
    other = copy.deepcopy(model)
    for block in trunk_of(other).layers:
        del block.forward
    return other


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


@needs_compiler
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", FUSED)
def test_numbers_and_gradients_are_those_of_the_plain_way(kind, alone, tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path), for_training=True).model
    assert all(getattr(block, KNOWN)[torch.float32] for block in trunk_of(model).layers)
    rows = batch().predict_index if alone else None
    for found, expected in zip(found_by(model, rows), found_by(plainly(model), rows), strict=True):
        assert gap(found, expected) < 2e-5


@needs_compiler
@pytest.mark.parametrize("kind", FUSED)
def test_in_bfloat16_they_are_as_near_to_float32_as_the_plain_way(kind, tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path), for_training=True, products=BF16).model
    assert all(getattr(block, KNOWN)[BF16] for block in trunk_of(model).layers)
    rows, plain = batch().predict_index, plainly(model)
    fused, own = found_by(model, rows), found_by(plain, rows)
    use_narrow_products(plain, None)
    exact = found_by(plain, rows)
    for one, other, truth in zip(fused, own, exact, strict=True):
        assert 0 < gap(one, truth) < 1.5 * gap(other, truth)


@needs_compiler
def test_two_passes_give_the_same_bits_and_without_gradient_too(tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True, products=BF16).model
    once, again = (found_by(model, batch().predict_index) for _ in range(2))
    assert all(map(torch.equal, once, again))
    with torch.no_grad():
        assert torch.equal(hidden_at(model, batch(), batch().predict_index), once[0])


@needs_compiler
def test_a_graph_can_be_gone_through_twice(tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True, products=BF16).model
    total = response_logprobs(model, batch()).logprobs.sum()
    leaves = list(model.parameters())
    once = torch.autograd.grad(total, leaves, retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(total, leaves)))


@needs_compiler
@pytest.mark.parametrize("kind", ["gpt2", "gemma", "gemma3"])
def test_other_blocks_keep_their_own_way(kind, tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint(kind, tmp_path)).model
    assert not any(hasattr(module, KNOWN) for module in model.modules())


@needs_compiler
def test_a_block_of_other_numbers_keeps_its_own_way(tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint("llama", tmp_path)).model
    for block in model.model.layers:
        del block.forward
    model.model.layers[0].mlp.act_fn = nn.GELU()
    assert use_fused_blocks(model) == len(model.model.layers) - 1
    assert "forward" not in vars(model.model.layers[0])


@needs_compiler
def test_what_watches_or_changes_a_part_is_not_passed_by(tmp_path):
    lm = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True)
    seen: list[int] = []
    hook = lm.model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
    hidden_states(lm.model, batch())
    assert seen == [1]
    hook.remove()
    expected = hidden_states(lm.model, batch())
    adapted = add_lora(lm.model, 2, 2.0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(weight)
    assert gap(hidden_states(adapted, batch()), expected) > 1e-3


@needs_compiler
@pytest.mark.parametrize("why", ["training", "checkpointing", "float64"])
def test_where_it_does_not_suit_the_plain_way_is_taken(why, tmp_path, monkeypatch):
    def fused(*_args, **_options):
        raise InterruptedError

    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True).model
    monkeypatch.setattr(fused_block, "fused", fused)
    with pytest.raises(InterruptedError):
        hidden_states(model, batch())
    if why == "training":
        model.train()
    elif why == "checkpointing":
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        assert any(getattr(block, "gradient_checkpointing", False) for block in model.model.layers)
    else:
        model.double()
    hidden_states(model, batch())


@needs_compiler
def test_a_number_that_is_none_is_handed_on(tmp_path):
    lm = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), for_training=True, products=BF16)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    found = response_logprobs(lm.model, batch()).logprobs
    assert found.isnan().all()
    found.sum().backward()
    assert lm.model.model.layers[0].self_attn.q_proj.weight.grad.isnan().any()


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing compiled before, in a cache of its own."""
    native.library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    yield tmp_path / "cache" / "karat"
    native.library.cache_clear()


@pytest.mark.parametrize("why", ["switch", "no compiler", "broken compiler", "slow compiler", "no cache"])
def test_without_a_library_everything_goes_its_plain_way(why, anew, monkeypatch, tmp_path):
    if why == "switch":
        monkeypatch.setenv(native.SWITCH, "0")
    elif why == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    elif why == "broken compiler":
        monkeypatch.setattr(subprocess, "run", lambda *_a, **_o: subprocess.CompletedProcess([], 1))
    elif why == "slow compiler":
        monkeypatch.setattr(native, "LONGEST", 1e-6)
    else:
        anew.parent.write_text("a file where the cache should be", encoding="utf-8")
    assert native.library(torch.float32) is None
    assert native.choose_of(BF16) is None
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path), products=BF16).model
    assert not any(hasattr(module, KNOWN) for module in model.modules())
    assert response_logprobs(model, batch()).logprobs.isfinite().all()


@needs_compiler
def test_it_is_compiled_once_for_each_dtype_and_kept(anew, monkeypatch):
    assert native.library(torch.float32) is not None
    assert native.library(BF16) is not None
    assert native.library(torch.float64) is None
    kept = sorted(path.name for path in anew.iterdir())
    assert len(kept) == 2
    assert all(name.startswith("native-") and name.endswith(".so") for name in kept)
    native.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # whoever compiles again fails
    assert native.library(torch.float32) is not None
