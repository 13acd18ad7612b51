"""Memory and time of fine-tuning on long texts, karat alone: the steps of the row `sft`, one line each.

    KARAT_DATA=… python -m bench.long_texts_study [--steps 10] [--dtype bfloat16]

The "medium" model of the benches on whole HH conversations of at most 1,024 tokens, about 4,096 tokens a step, one thread.
After each step: tokens learnt, loss, processor seconds, bytes that the C library counts as in use, the resident size and its
peak; at the end the peak less what was resident before the first step. For the code of another commit: run this file there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import torch
from bench.inputs import hh_texts
from bench.models import SEED, checkpoint
from bench.shapes_study import MIB, in_use
from bench.turns import memory_mib

from karat.lm.load import load_lm
from karat.sft.train import SFTConfig, train_on_pairs

STEP_TOKENS, LONGEST, N_PACKED = 4096, 1024, 14
"""Tokens of a step on average, of a text at most, and steps of the row whose texts are these."""


class Watch:
    """A reporter that prints one line a step."""

    def __init__(self) -> None:
        self._cpu = time.process_time()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called by the training loop."""
        spent = time.process_time() - self._cpu
        sizes = f"in use {in_use() / MIB:.0f}, resident {memory_mib('VmRSS'):.0f}, peak {memory_mib('VmHWM'):.0f}"
        told = f"{metrics['n_tokens']:.0f} tokens, loss {metrics['nll_per_token']:.6f}, {spent:.2f} s"
        print(f"step {step}: {told}; MiB {sizes}", flush=True)
        self._cpu = time.process_time()


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    products = torch.bfloat16 if given.dtype == "bfloat16" else None
    lm = load_lm(checkpoint("medium"), for_training=True, products=products)
    pairs = [(ids[:1], ids[1:]) for ids in hh_texts(N_PACKED * STEP_TOKENS, longest=LONGEST)]
    n_texts = len(pairs) // N_PACKED
    config = SFTConfig(
        epochs=given.steps * n_texts / len(pairs), batch_size=n_texts, learning_rate=1e-5, warmup_frac=0.0, weight_decay=0.0,
        token_budget=STEP_TOKENS,
    )  # fmt: skip
    before = memory_mib("VmRSS")
    train_on_pairs(lm, pairs, config, seed=SEED, reporters=[Watch()])
    print(
        f"peak less {before:.0f} MiB that were resident before the first step: {memory_mib('VmHWM') - before:.0f} MiB"
    )


if __name__ == "__main__":
    main()
