"""Rotary angles by the faster route: the values and gradients of the function it stands in for."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig, Qwen3Config
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from karat.lm import rotation
from karat.lm.kernels import use_fast_kernels
from karat.lm.rotation import fast_rotation

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def qwen() -> Qwen3Attention:
    return Qwen3Attention(Qwen3Config(**SIZES, attn_implementation="eager"), layer_idx=0)


def llama() -> LlamaAttention:
    return LlamaAttention(LlamaConfig(**SIZES, attn_implementation="eager"), layer_idx=0)


def attended(module: torch.nn.Module) -> list[torch.Tensor]:
    """Output and gradients for angles that differ between the halves of a head."""
    x, cos, sin = draws(2, 9, 64, seed=1).requires_grad_(), draws(2, 9, 16, seed=2), draws(2, 9, 16, seed=3)
    module.zero_grad()
    output = module(hidden_states=x, position_embeddings=(cos, sin), attention_mask=None)[0]
    (output * draws(2, 9, 64, seed=4)).sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("make", [qwen, llama])
@pytest.mark.parametrize("fewest", [0, 1 << 30])  # by either route
def test_attention_keeps_its_values_and_gradients(make, fewest, monkeypatch):
    monkeypatch.setattr(rotation, "FEWEST", fewest)
    plain = make()
    rerouted = copy.deepcopy(plain)
    use_fast_kernels(rerouted)
    assert "forward" in rerouted.__dict__
    moved = copy.deepcopy(rerouted)
    assert moved.forward.__self__ is moved  # a copy attends with its own weights
    for found, expected in zip(attended(moved), attended(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_library_keeps_its_own_function():
    before = modeling_qwen3.apply_rotary_pos_emb
    use_fast_kernels(qwen())
    assert modeling_qwen3.apply_rotary_pos_emb is before
    assert Qwen3Attention.forward.__globals__[rotation.ROTATES] is before


def test_gradients_are_finite_differences():
    x, cos, sin = (draws(*shape, seed=n).double() for n, shape in enumerate(((2, 3, 4, 6), (2, 1, 4, 6), (2, 1, 4, 6))))
    assert torch.autograd.gradcheck(lambda a: rotation._Rotation.apply(a, cos, sin), x.requires_grad_())


def test_a_rotation_of_part_of_a_head_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(rotation, "FEWEST", 0)
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=4, rotary_pct=0.25, attn_implementation="eager")
    neox = GPTNeoXAttention(config, layer_idx=0)
    neox.head_dim = 16  # as other kinds call it
    forward = fast_rotation(neox)
    assert forward is not None  # on whole heads it is the formula that is known
    x, cos, sin = draws(2, 9, 64, seed=1), draws(2, 9, 4, seed=2), draws(2, 9, 4, seed=3)
    found, expected = (own(neox, x, None, position_embeddings=(cos, sin))[0] for own in (forward, type(neox).forward))
    assert torch.equal(found, expected)


def test_another_formula_is_left_alone(monkeypatch):
    monkeypatch.setitem(Qwen3Attention.forward.__globals__, rotation.ROTATES, lambda q, k, *_: (k, q))
    rotation._rotating_faster.cache_clear()
    assert fast_rotation(qwen()) is None
    rotation._rotating_faster.cache_clear()
