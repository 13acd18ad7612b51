"""The peak of a training step in a process of its own, for `tests/unit/test_pipeline_checkup.py`.

What other tests did in a process decides how much of a step fits into holes that they have left.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from karat.lm import fused_block, native
from karat.lm.fresh import DecoderShape, word_tokenizer, write_fresh_decoder
from karat.lm.fused_block import may_be_fused
from karat.lm.load import load_lm
from karat.lm.memory import LIBRARY_BYTES, TOKEN_BYTES, Work, size_of, training_bytes
from karat.sft.train import SFTConfig, train_on_pairs


def measure(place: str, products: torch.dtype | None, plain: bool) -> None:
    """Write `peak.json`: [the peak of a training step beyond what was there before it, what is estimated of it].

    Args: plain: without compiled passes.
    """
    torch.set_num_threads(1)
    if plain:
        native.library = fused_block.library = lambda _products: None
    (Path(place) / "peak.json").write_text(json.dumps(_measured_and_estimated(Path(place) / "model", products)))


def _measured_and_estimated(directory: Path, products: torch.dtype | None) -> tuple[int, int]:
    shape = DecoderShape(hidden=256, mlp=704, layers=4, heads=4, kv_heads=2, head_size=64, context=256)
    write_fresh_decoder(directory, word_tokenizer([f"w{i}" for i in range(4000)]), shape, seed=0)
    pairs = [([7 + row] * 32, [*range(100, 131), 1]) for row in range(32)]

    def train(n_pairs, budget):
        lm = load_lm(directory, for_training=True, products=products)
        # a second step: in the first, Adam's moments come only after the activations are gone
        config = SFTConfig(batch_size=n_pairs, token_budget=budget, epochs=2)
        train_on_pairs(lm, pairs[:n_pairs], config, seed=0)
        return lm

    train(1, 64)  # what libraries keep from their first use is not what is estimated
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what was freed goes back to the system: reused, it would be missing from the peak
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    lm = train(32, 2048)
    measured = _memory("VmHWM") - before
    n = sum(p.numel() for p in lm.model.parameters())
    compiled = may_be_fused(lm.model)
    size = replace(size_of(lm.model.config, n), narrow=products is not None, compiled=compiled)
    libraries = LIBRARY_BYTES + TOKEN_BYTES * size.vocabulary
    return measured, training_bytes(size, n_trained=n, work=Work(2016, n_keys=63)) - libraries


def _memory(key: str) -> int:
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
