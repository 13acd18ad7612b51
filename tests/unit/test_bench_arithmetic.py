"""The count of operations that efficiency is held against, beside PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from bench.arithmetic import OPS, TreeSize, head_flops, sampling_flops, trunk_flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from karat.lm.fresh import DecoderShape

SHAPE = DecoderShape(hidden=16, mlp=24, layers=2, heads=4, kv_heads=2, head_size=8, context=64)
N_WORDS = 11


@pytest.mark.parametrize("length", [1, 7])
def test_the_count_of_one_sequence_is_pytorchs(length: int) -> None:
    config = Qwen3Config(
        vocab_size=N_WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.zeros((1, length), dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Qwen3ForCausalLM(config)(ids, use_cache=False)
    tree = TreeSize(length - 2 if length > 2 else 0, (min(length, 2),) if length > 2 else (1,))
    hidden_from_view = length**2 - tree.n_seen  # the plain form computes the products that the mask throws away
    wasted = SHAPE.layers * 2 * OPS * SHAPE.heads * SHAPE.head_size * hidden_from_view
    expected = trunk_flops([tree], SHAPE) + head_flops(length, SHAPE, N_WORDS) + wasted
    angles = OPS * length * config.head_dim / 2  # some releases of transformers make the rotary angles by a product
    assert counter.get_total_flops() in (expected, expected + angles)


def test_a_prompt_counts_once_for_its_responses() -> None:
    together = TreeSize(5, (3, 2))
    assert together.n_tokens == 10
    # 15 pairs in the prompt; each response token sees 5 and its own beginning
    assert together.n_seen == 15 + (6 + 7 + 8) + (6 + 7)
    assert trunk_flops([TreeSize(5, (3,)), TreeSize(5, (2,))], SHAPE) > trunk_flops([together], SHAPE)


@pytest.mark.parametrize(("n_samples", "n_new"), [(1, 1), (3, 1), (2, 4)])
def test_sampling_reads_the_prompt_once_and_each_token_but_the_last(n_samples: int, n_new: int) -> None:
    n_prompt = 5
    expected = trunk_flops([TreeSize(n_prompt, ())], SHAPE) + head_flops(1, SHAPE, N_WORDS)
    for _ in range(n_samples):
        for place in range(n_new - 1):  # a step: one position through all layers, which sees what stands before it
            seen = n_prompt + place + 1
            alone = TreeSize(1, ())  # sees itself
            keys = SHAPE.layers * 2 * OPS * SHAPE.heads * SHAPE.head_size * (seen - 1)
            expected += trunk_flops([alone], SHAPE) + keys + head_flops(1, SHAPE, N_WORDS)
    assert sampling_flops(n_prompt, n_samples, n_new, SHAPE, N_WORDS) == expected
