"""Sampling speed: karat's decode loop against `generate` of transformers, same weights, same prompts, in turn.

32 prompts of 24–96 random tokens, 4 samples each, up to 64 new tokens; the end token has a probability of about
1/40 a step on both sides. Prints one JSON object. Usage: python bench/sample.py --repeats 5 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from dataclasses import dataclass

N_PROMPTS, N_SAMPLES, MAX_NEW_TOKENS = 32, 4, 64
SHORTEST, LONGEST = 24, 96
VOCABULARY, EOS, PAD = 8192, 0, 1
EOS_PROBABILITY = 1 / 40
TARGET = 3.5


@dataclass(frozen=True)
class BenchLM:
    """The fields of karat.lm.load.LoadedLM that sampling reads."""

    model: object
    """The decoder."""
    eos_ids: tuple[int, ...] = (EOS,)
    """Its stop token."""
    context_length: int = 512
    """Its context."""


def build_model(seed: int):
    """The Qwen3-shaped "small" with random weights, its end token raised to the stated probability."""
    import math

    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=EOS,
            pad_token_id=PAD,
            bos_token_id=None,
        )
    ).eval()
    bias = torch.zeros(VOCABULARY)
    bias[EOS] = math.log(EOS_PROBABILITY / (1 - EOS_PROBABILITY) * VOCABULARY)
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def make_prompts(seed: int) -> list[list[int]]:
    """Random token ids, lengths uniform between the shortest and the longest."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCABULARY, size=rng.integers(SHORTEST, LONGEST + 1)).tolist() for _ in range(N_PROMPTS)]


def run_ours(model, prompts: list[list[int]], seed: int) -> tuple[int, float]:
    """Response tokens and seconds of karat's sampler."""
    from karat.lm.generate import SamplingConfig, sample

    begin = time.perf_counter()
    samples = sample(BenchLM(model), prompts, n_samples=N_SAMPLES, config=SamplingConfig(MAX_NEW_TOKENS), seed=seed)
    seconds = time.perf_counter() - begin
    return sum(len(one.response_tokens) for group in samples for one in group), seconds


def run_theirs(model, prompts: list[list[int]], seed: int) -> tuple[int, float]:
    """Response tokens, the end token included, and seconds of `generate` on the left-padded batch."""
    import torch

    longest = max(map(len, prompts))
    input_ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    torch.manual_seed(seed)
    begin = time.perf_counter()
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        num_return_sequences=N_SAMPLES,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    seconds = time.perf_counter() - begin
    n_tokens = 0
    for response in output[:, longest:].tolist():
        n_tokens += response.index(EOS) + 1 if EOS in response else len(response)
    return n_tokens, seconds


def main() -> None:
    """Measure in turn and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="paired measurements")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and draws")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--only", choices=["ours", "theirs"], help="one side only: for profiling and peak memory")
    options = parser.parse_args()

    import torch
    import transformers

    torch.set_num_threads(options.threads)
    from karat.lm.kernels import use_fast_kernels

    prompts = make_prompts(options.seed)
    models = {name: build_model(options.seed) for name in ("ours", "theirs")}
    use_fast_kernels(models["ours"])  # as load_lm does
    sides = {"ours": run_ours, "theirs": run_theirs}
    if options.only:
        sides = {options.only: sides[options.only]}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            n_tokens, seconds = sides[name](models[name], prompts, options.seed + repeat)
            if repeat:  # the first is to warm up
                rates[name].append(n_tokens / seconds)
    row = {
        "work": "sample",
        "unit": "tokens/s",
        **{name: round(statistics.median(values), 1) for name, values in rates.items()},
        "target": TARGET,
        "repeats": options.repeats,
        "threads": options.threads,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if len(rates) == 2:
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True)]
        row |= {"ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
