"""What becomes of memory when products are compiled for every number of rows: PPO with and without filler.

    KARAT_DATA=… python bench/shapes_study.py [--iterations 12] [--only float32]

oneDNN compiles a product for each of its shapes. PPO on the "small" model of the benches (64 prompts an iteration, of 256; 48
response tokens, 4 epochs of 4 steps, one thread), each way a process of its own: `filled` as karat computes
(`lm.shapes`), `as they come` with rows as many as there are tokens. After each iteration: products compiled in it and the
milliseconds that took (oneDNN's own figures), bytes that the C library counts as in use, and the resident size. Writes
bench/results/shapes_study.json and prints the table of docs/LOG.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "shapes_study.json"
N_PROMPTS, MIB = 64, 1 << 20
COMPILED = "onednn_verbose,v1,primitive,create:cache_miss"
WAYS = ("filled", "as they come")


class _Mallinfo2(ctypes.Structure):
    """glibc's counts of its own heap, bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def in_use() -> int:
    """Bytes of the heap that are in use, large blocks included."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo2
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd


def resident() -> int:
    """Bytes in memory now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


class Watch:
    """A reporter that prints one line an iteration, among oneDNN's own."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called by the training loop."""
        told = {"iteration": step, "in_use": in_use(), "resident": resident(), "seconds": _seconds(metrics)}
        print("told " + json.dumps(told), flush=True)


def _seconds(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("seconds/"))


def train(way: str, dtype: str, n_iterations: int) -> None:
    """One way, in this process."""
    import torch
    from bench.inputs import hh_prompts
    from bench.models import checkpoint
    from bench.ours.ppo import ppo_config
    from bench.ours.scores import products_of, score_of
    from bench.run import PPO_WORK

    from karat.lm import decoder, dense_attention, final_block, fused_decode, logprobs
    from karat.lm.load import load_lm
    from karat.policy.ppo import train_ppo

    torch.set_num_threads(1)
    if way != WAYS[0]:
        for module in (logprobs, final_block, fused_decode, decoder):
            module.even_rows = lambda n, *_: n
        dense_attention.even_number = lambda n, _: n
    work = PPO_WORK | {"n_prompts": N_PROMPTS, "n_samples": 1, "n_iterations": n_iterations, "dtype": dtype}
    lm = load_lm(checkpoint("small"), for_training=True, products=products_of(work))
    config = ppo_config(work)
    train_ppo(lm, hh_prompts(4 * N_PROMPTS)[0], score_of("model", "small"), config, seed=0, reporters=[Watch()])


def measured(way: str, dtype: str, n_iterations: int) -> list[dict[str, float]]:
    """What a process that trains that way said after each iteration, with the products that were compiled in it."""
    command = [sys.executable, __file__, "--child", way, dtype, str(n_iterations)]
    told = {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"}
    rows, compiled, spent = [], 0, 0.0
    with subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(COMPILED):
                compiled, spent = compiled + 1, spent + float(line.rsplit(",", 1)[1])
            elif line.startswith("told "):
                rows.append(json.loads(line[5:]) | {"compiled": compiled, "compile_ms": round(spent, 1)})
                compiled, spent = 0, 0.0
                print(f"{dtype}, {way}: {rows[-1]}", file=sys.stderr, flush=True)
    if child.returncode:
        raise SystemExit(f"shapes_study: {dtype}, {way}: ended with {child.returncode}")
    return rows


def table(found: list[dict]) -> str:
    """The table of docs/LOG.md: the first, the middle and the last iteration of each way."""
    lines = [
        "| products | rows | after iteration | products compiled in it | ms for that | MiB in use | MiB resident |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        rows = one["rows"]
        for row in (rows[0], rows[len(rows) // 2], rows[-1]):
            sizes = " | ".join(f"{row[name] / MIB:,.0f}" for name in ("in_use", "resident"))
            lines.append(
                f"| {one['dtype']} | {one['way']} | {row['iteration']} | {row['compiled']} | {row['compile_ms']:.0f} | {sizes} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--only", choices=("float32", "bfloat16"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train(given.child[0], given.child[1], int(given.child[2]))
        return
    from bench.rows import machine

    dtypes = [given.only] if given.only else ["float32", "bfloat16"]
    found = [
        {"way": way, "dtype": dtype, "rows": measured(way, dtype, given.iterations)} for dtype in dtypes for way in WAYS
    ]
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
