"""Up to how many kept keys is the sampler's compiled attention faster than PyTorch's products?

    OMP_NUM_THREADS=1 python -m bench.kept_keys_study [--dtype bfloat16]

The constants of `karat.lm.fused_decode` say which steps are attended by a compiled pass; prompts always are. Each line here draws
the same tokens from "small" with the pass allowed and forbidden, in turns: first steps of many rows that share a prompt, then
prompts that are read and answered by one token. Milliseconds are this thread's processor time, the least of `--turns` after
one to warm up, so that other programs on the same cores disturb little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from bench.models import VOCABULARY, checkpoint

from karat.lm import fused_block
from karat.lm.cache import DecodeStep, PrefillLayout
from karat.lm.freed_memory import freed_memory_kept
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import LoadedLM, load_lm

SHARED = (
    (8, 8, 96),
    (4, 16, 96),
    (4, 16, 200),
    (2, 64, 128),
    (2, 32, 500),
    (1, 32, 1000),
    (2, 64, 1000),
    (1, 64, 1800),
)
"""Prompts, samples of each, tokens of a prompt."""
READ = ((1, 400), (1, 512), (1, 800), (1, 1000), (1, 1500), (4, 1500))
"""Prompts, tokens of each."""


def drawn(lm: LoadedLM, prompts: Sequence[Sequence[int]], n_samples: int, n_new: int, *, seed: int) -> float:
    """Processor seconds of one call."""
    started = time.thread_time()
    sample(lm, prompts, n_samples=n_samples, config=SamplingConfig(n_new), seed=seed)
    return time.thread_time() - started


@contextmanager
def forbidden(kind: type) -> Iterator[None]:
    """Within the block no pass takes this kind of forward pass."""
    before = fused_block.decodes
    fused_block.decodes = lambda x, cache, products: not isinstance(cache.now, kind) and before(x, cache, products)
    try:
        yield
    finally:
        fused_block.decodes = before


def compare(lm: LoadedLM, kind: type, shape: tuple[int, int, int], n_new: int, n_turns: int) -> dict[str, float]:
    """Milliseconds with and without the pass for steps, or for prompts."""
    n_prompts, n_samples, n_tokens = shape
    generator = torch.Generator().manual_seed(n_tokens)
    prompts = torch.randint(5, VOCABULARY, (n_prompts, n_tokens), generator=generator).tolist()
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(n_turns + 1):
        for allowed, seconds in spent.items():
            with nullcontext() if allowed else forbidden(kind):
                seconds.append(drawn(lm, prompts, n_samples, n_new, seed=turn))
    compiled, plain = (1e3 * min(seconds[1:]) for seconds in spent.values())
    return {"compiled_ms": round(compiled, 1), "plain_ms": round(plain, 1), "ratio": round(plain / compiled, 2)}


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    products = torch.bfloat16 if given.dtype == "bfloat16" else None
    lm = load_lm(checkpoint("small"), for_training=True, products=products)
    with freed_memory_kept():
        for shape in SHARED:
            found = compare(lm, DecodeStep, shape, 24, given.turns)
            print(json.dumps({"dtype": given.dtype, "prompts_samples_tokens": shape, **found}), flush=True)
        for n_prompts, n_tokens in READ:
            found = compare(lm, PrefillLayout, (n_prompts, 1, n_tokens), 1, given.turns)
            print(json.dumps({"dtype": given.dtype, "prompts_tokens": (n_prompts, n_tokens), **found}), flush=True)


if __name__ == "__main__":
    main()
