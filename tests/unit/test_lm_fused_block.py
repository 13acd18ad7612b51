"""Decoder blocks as one operation: the numbers and gradients of the plain way, or the plain way."""

from __future__ import annotations

import copy
import shutil
import subprocess

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5Config,
    GemmaConfig,
    Glm4MoeConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
)

import tiny_models
from karat.lm import fused_block, native
from karat.lm.adapters import add_lora
from karat.lm.attention import NAME as TREE_ATTENTION
from karat.lm.cache import decoded_logits
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
        vars(block).pop("forward", None)
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


SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def looked_at(config: PreTrainedConfig, products: torch.dtype | None) -> nn.Module:
    """A model of small random weights without gradients, as one is loaded to sample from."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=TREE_ATTENTION).eval().requires_grad_(False)
    use_narrow_products(model, products)
    use_fused_blocks(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config._attn_implementation == TREE_ATTENTION
    return model


@needs_compiler
@pytest.mark.parametrize("products", [None, BF16])
@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(residual_multiplier=0.22, **SHAPE),
        GemmaConfig(**SHAPE),
        LlamaConfig(hidden_act="gelu", **SHAPE),
        Ernie4_5Config(use_bias=False, **SHAPE),
    ],
    ids=lambda config: config.model_type,
)
def test_blocks_of_other_numbers_are_told_apart_though_their_weights_are_small(config, products):
    assert not any(hasattr(module, KNOWN) for module in looked_at(config, products).modules())


@needs_compiler
@pytest.mark.parametrize("window", [None, 3, 12])
def test_a_window_that_only_the_configuration_knows_is_kept(window):
    model = looked_at(MistralConfig(sliding_window=window, **SHAPE), None)
    assert all(getattr(block, KNOWN)[torch.float32] for block in model.model.layers)
    prompt, response = list(range(5, 25)), list(range(30, 36))
    own = decoded_logits(plainly(model), prompt, response, None)
    assert gap(decoded_logits(model, prompt, response, None), own) < 1e-5
    model = looked_at(LlamaConfig(**SHAPE), None)
    model.config.sliding_window = 3  # which Llama's attention does not read
    use_fused_blocks(model)
    own = decoded_logits(plainly(model), prompt, response, None)
    assert gap(decoded_logits(model, prompt, response, None), own) < 1e-5


@needs_compiler
def test_heads_that_are_turned_in_part_go_the_plain_way():
    model = looked_at(Glm4MoeConfig(partial_rotary_factor=0.5, first_k_dense_replace=2, **SHAPE), None)
    found = (decoded_logits(one, [5, 6, 7, 8], [9, 10], None) for one in (model, plainly(model)))
    assert torch.equal(*found)


@needs_compiler
@pytest.mark.parametrize("of", ["self_attn", "mlp.up_proj", "self_attn.q_norm", "mlp"])
def test_a_part_that_was_given_another_forward_function_is_not_passed_by(of, tmp_path):
    model = load_lm(tiny_models.tiny_checkpoint("qwen3", tmp_path)).model
    part, seen = copy.deepcopy(model).model.layers[0].get_submodule(of), []
    model.model.layers[0].set_submodule(of, part)
    decoded_logits(model, [5, 6, 7], [8, 9], None)
    own = part.forward

    def watched(*given, **options):
        seen.append(1)
        return own(*given, **options)

    part.forward = watched
    decoded_logits(model, [5, 6, 7], [8, 9], None)
    hidden_states(model, batch())
    assert len(seen) == 3


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
