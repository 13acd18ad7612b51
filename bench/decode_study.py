"""Ways to draw the same tokens: processor seconds of the plain sampler, of steps of static shapes, and of those compiled.

    python -m bench.decode_study [--size small] [--turns 12] [--quick]

32 prompts × 4 samples of at most 64 tokens, natural endings (the work of the row `sample`), one process, the ways taking
turns. What compiling costs is the first call less a later one. On standard output one JSON object; on a CUDA device
`--device cuda` adds the graph, and the clock counts there, not the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import torch
from bench.endings import raise_end_token
from bench.inputs import hh_prompts
from bench.models import checkpoint
from bench.rows import machine

from karat.devices import on_device
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import LoadedLM, load_lm
from karat.lm.step_runs import REFUSED
from karat.lm.ways import decode_problem, in_ways
from karat.stats import mean_estimate


def main() -> None:
    """Time, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="two turns without the compiler: does it run?")
    options = parser.parse_args()
    threads = int(os.environ.get("KARAT_BENCH_THREADS", "1"))
    torch.set_num_threads(threads)
    with on_device(options.device) as device:
        lm = load_lm(checkpoint(options.size))
        raise_end_token(lm.model, lm.eos_ids[0])
        prompts = hh_prompts(4 if options.quick else 32)[1]
        ways = ["plain", "steps", *(way for way in ("compiled", "graph") if decode_problem(way, device) is None)]
        if options.quick:
            ways = [way for way in ways if way != "compiled"]
        found = _measure(lm, prompts, ways, n_turns=2 if options.quick else options.turns)
    about = {"work": "decode", "size": options.size, "device": str(device), "threads": threads, "machine": machine()}
    print(json.dumps(about | found | {"refused": getattr(lm.model, REFUSED, None)}))


def _measure(lm: LoadedLM, prompts: list[list[int]], ways: list[str], *, n_turns: int) -> dict:
    """Seconds of each way and of each over the plain one, by turns; the first turn of each is its warm-up."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    drawn: dict[int, list] = {}
    n_other = n_tokens = 0
    for turn in range(n_turns + 1):
        for way in ways if turn % 2 else ways[::-1]:
            begun = time.perf_counter(), time.process_time()
            with in_ways(way):
                groups = sample(lm, prompts, n_samples=4, config=SamplingConfig(64), seed=turn)
            times[way].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
            tokens = [one.response_tokens for group in groups for one in group]
            n_other += sum(a != b for a, b in zip(tokens, drawn.setdefault(turn, tokens), strict=True))
            n_tokens += sum(map(len, tokens)) * (way == "plain")
            print(f"{way}: {times[way][-1][0]:.2f} s, processor {times[way][-1][1]:.2f} s", file=sys.stderr, flush=True)
    clock = 0 if lm.model.device.type != "cpu" else 1
    rows = {}
    for way in ways:
        later = [one[clock] for one in times[way][1:]]
        ratio = mean_estimate([plain[clock] / own for plain, own in zip(times["plain"][1:], later, strict=True)])
        rows[way] = {
            "seconds": sum(later) / len(later), "first": times[way][0][clock], "times_as_fast": ratio.value,
            "low": ratio.low, "high": ratio.high,
        }  # fmt: skip
    per_turn = round(n_tokens / (n_turns + 1))
    return {"counted": ("clock", "processor")[clock], "n_turns": n_turns, "ways": rows, "tokens_a_turn": per_turn,
            "responses_that_differ": n_other}  # fmt: skip


if __name__ == "__main__":
    main()
