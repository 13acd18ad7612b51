"""What a pass is said to keep for its gradient, against the tensors that it really saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from karat.lm import native
from karat.lm.dense_attention import plan_of
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.fused_block import may_be_fused
from karat.lm.load import load_lm
from karat.lm.logprobs import hidden_states
from karat.lm.memory import ModelSize, Work, activation_bytes, logit_bytes, rounded_bytes, size_of, training_bytes
from karat.lm.trees import Tree, TreeBatch, pack_trees

SHAPE = DecoderShape(hidden=64, mlp=176, layers=3, heads=4, kv_heads=2, head_size=16, context=256)
PROMPT, NEW, BRANCHES, TREES = 60, 40, 3, 12
NEAR = 0.08
"""Scales, indices and the last block's output are not counted."""


def trees() -> TreeBatch:
    """Prompts with their branches, in one row."""
    branches = tuple(tuple(range(90, 90 + NEW)) for _ in range(BRANCHES))
    return pack_trees(
        [Tree(tuple(range(10 + n, 10 + n + PROMPT)), branches) for n in range(TREES)], token_budget=10_000
    )[0]


def saved_bytes(lm) -> int:
    """Of all tensors that a pass over the trees saves, weights apart, each place in memory once."""
    own = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            seen[place] = tensor  # alive, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = hidden_states(lm.model, trees())
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("products", [None, torch.bfloat16])
@pytest.mark.parametrize("way", ["compiled", "plain"])
def test_a_pass_saves_what_is_counted(way, products, tmp_path, request):
    if way == "plain":
        request.getfixturevalue("plain_passes")
    elif native.library(torch.float32) is None:
        pytest.skip("no C compiler")
    write_fresh_decoder(tmp_path, word_tokenizer([f"w{i}" for i in range(300)]), SHAPE, seed=0)
    lm = load_lm(tmp_path, for_training=True, products=products)
    assert may_be_fused(lm.model) == (way == "compiled")
    n = sum(p.numel() for p in lm.model.parameters())
    size = replace(size_of(lm.model.config, n), narrow=products is not None, compiled=way == "compiled")
    n_tokens = TREES * (PROMPT + BRANCHES * NEW)
    groups = plan_of(trees().layout, SHAPE.heads, SHAPE.kv_heads, None, torch.float32).groups
    n_keys = round(sum(p * q * k for p, q, k in (group.shape for group in groups)) / n_tokens)
    counted = activation_bytes(size, n_tokens, n_keys=n_keys)
    outside = size.vocabulary * size.hidden * (2 if products is not None else 0)  # the output layer is not in this pass
    counted += rounded_bytes(size) - outside
    saved = saved_bytes(lm)
    assert abs(counted / saved - 1) < NEAR, (counted, saved)


def test_logits_are_counted_by_rows_up_to_a_limit_and_by_tiles_where_the_vocabulary_is_wide():
    small = ModelSize(10**6, 64, 176, 3, 64, 32, 500)
    assert logit_bytes(small, 100) == 3 * 100 * 500 * 4  # made, its gradient, kept
    assert logit_bytes(replace(small, vocabulary=8192), 4096) == (2 * (1 << 22) + (1 << 23)) * 4
    narrow = replace(small, narrow=True)
    assert logit_bytes(narrow, 100) == 100 * 500 * 2
    assert logit_bytes(replace(narrow, vocabulary=8192), 4096) == 3 * (1 << 23) * 2
    wide = replace(small, vocabulary=151_936)
    assert logit_bytes(wide, 4096) == 2 * 4096 * 512 * 4
    assert logit_bytes(replace(wide, tiled=False), 4096) > 10 * logit_bytes(wide, 4096)


def test_products_that_are_prepared_for_every_shape_count_in_each_station() -> None:
    plain = ModelSize(1000, 16, 32, 2, 16, 16, 100)
    first, second, third = (
        training_bytes(replace(plain, prepared=True), n_trained=1000, work=Work(10), n_before=n)
        - training_bytes(plain, n_trained=1000, work=Work(10), n_before=n)
        for n in range(3)
    )
    assert 0 < first < second
    assert third - second == second - first
