"""The machine's own matrix rate as a peer: one turn = products of the size of the bench's layers for about a second.

    python -m bench.peers.matrix WORK.json

WORK.json: {n_rows, n_in, n_out, threads, dtype (float32 if absent), device (cpu if absent), …}: [rows × in]·[in × out],
on a processor through the faster of PyTorch's two libraries.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from bench.turns import Finished, Turns

SECONDS = 1.0
AT_ONCE = 4


def main() -> None:
    """Multiply, turn by turn."""
    turns = Turns()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    generator = torch.Generator().manual_seed(0)
    device, dtype = torch.device(work.get("device", "cpu")), getattr(torch, work.get("dtype", "float32"))
    left = torch.randn(work["n_rows"], work["n_in"], generator=generator).to(device, dtype)
    right = torch.randn(work["n_out"], work["n_in"], generator=generator).to(device, dtype)
    products = {"mkl" if device.type == "cpu" else device.type: lambda: left @ right.t()}
    if device.type == "cpu":
        products["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    for product in products.values():
        product()
    turns.begin(ready={"torch": torch.__version__})
    while True:
        found = {name: _rate(product) for name, product in products.items()}
        fastest = max(found, key=lambda name: found[name][0] / found[name][1])
        n_products, seconds = found[fastest]
        flops = 2.0 * work["n_rows"] * work["n_in"] * work["n_out"]
        turns.done(n_products * flops, library=fastest, own_seconds=seconds)
        turns.begin()


def _rate(product) -> tuple[int, float]:
    started, n = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS / 2 or n < AT_ONCE:
        for _ in range(AT_ONCE):
            made = product()
        if made.device.type != "cpu":
            float(made[0, 0])  # a device is given work without waiting for it
        n += AT_ONCE
    return n, seconds


if __name__ == "__main__":
    with contextlib.suppress(Finished):
        main()
