"""What checking a model's files costs beside loading it: `python -m bench.checksum_cost [--directory D]`.

Writes a decoder of Qwen2's 0.5B shape with random weights, float32, and measures processor seconds of one thread, which other
programs on the same cores disturb less than the time that passes. Knows hashes and loading; knows nothing of what a model says.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from karat.lm.checksums import CHUNK_BYTES
from karat.lm.fresh import word_tokenizer
from karat.lm.load import load_lm

TIMES = 3


def model_in(directory: Path) -> Path:
    """The directory with a model in it, written where there is none yet."""
    if not (directory / "config.json").exists():
        config = Qwen2Config(
            vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
        Qwen2ForCausalLM(config).save_pretrained(directory)
        word_tokenizer([f"w{i}" for i in range(100)]).save_pretrained(directory)
    return directory


def chunks(file: Path, take: Callable[[memoryview], object]) -> None:
    """Give a file away in chunks, as `karat.lm.checksums` reads it."""
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as opened:
        while n := opened.readinto(chunk):
            take(chunk[:n])


def least(work: Callable[[], object]) -> float:
    """The fewest processor seconds of TIMES."""
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the model is kept; none = a temporary directory")
    given = parser.parse_args().directory
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = model_in(given or Path(scratch) / "model")
        file = model / "model.safetensors"
        chunks(file, len)  # into the page cache
        rows = {
            "load_lm": lambda: load_lm(model),
            "SHA-256": lambda: chunks(file, hashlib.sha256().update),
            "CRC-32": lambda: chunks(file, zlib.crc32),
        }
        print(f"{file.stat().st_size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}")
        for name, work in rows.items():
            print(f"{name:8} {least(work):.2f} s")


if __name__ == "__main__":
    main()
