"""How long a Bayesian last layer takes for 100,000 comparisons: processor and wall seconds of `fit_last_layer`.

    python bench/last_layer_study.py [--quick] [--repeats 3] [--out bench/results/last_layer_study.json]

Features are normal and comparisons are drawn from a planted head by a logistic link without ties: fresh pairs (200,000
texts), and pairs among 20,000 texts, with the widths of a small and of a medium encoder. Beside the seconds stands the
correlation of the mean found with the planted head: a posterior that is fast and wrong would show.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file, not as `python -m bench.last_layer_study`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from karat.reward.last_layer import Observations, fit_last_layer, ordinal_derivatives
from karat.seeding import numpy_generator

CELLS = (("fresh pairs", 384, None), ("fresh pairs", 768, None), ("20,000 texts", 384, 20_000))
N_COMPARISONS = 100_000
TARGET_S = 10.0


def timed(width: int, n_texts: int | None, n: int, seed: int) -> dict[str, float]:
    """One fit: its seconds, and how near its mean comes to the planted head."""
    rng = numpy_generator(seed, "last layer", str(width), str(n_texts))
    texts = 2 * n if n_texts is None else min(n_texts, 2 * n)
    phi = rng.standard_normal((texts, width))
    head = 2 * rng.standard_normal(width) / width**0.5
    a, b = np.arange(n), np.arange(n) + n
    if n_texts is not None:
        a = rng.integers(0, texts, n)
        b = (a + rng.integers(1, texts, n)) % texts
    utility = phi @ head
    level = (rng.random(n) < 1 / (1 + np.exp(utility[b] - utility[a]))).astype(int)
    cut = np.zeros(1)

    def derivatives(eta: np.ndarray, rows: np.ndarray):
        return ordinal_derivatives(eta, level[rows], np.zeros(len(rows)), cut)

    answers = Observations(a, b, np.ones(n), np.zeros(n), derivatives)
    cpu, wall = time.process_time(), time.perf_counter()
    found = fit_last_layer(phi, [answers])
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "correlation": float(np.corrcoef(found.mean, head)[0, 1]),
    }


def study(*, quick: bool, repeats: int) -> dict:
    """Every cell, `repeats` fresh draws each: median, least and most."""
    n = 2_000 if quick else N_COMPARISONS
    rows = []
    for name, width, n_texts in CELLS:
        runs = [timed(48 if quick else width, n_texts, n, seed) for seed in range(1 if quick else repeats)]
        row = {"pairs": name, "width": 48 if quick else width, "n_comparisons": n, "n_fits": len(runs)}
        for figure in ("cpu_s", "wall_s", "correlation"):
            values = [run[figure] for run in runs]
            row[figure] = [round(float(x), 3) for x in (np.median(values), min(values), max(values))]
        rows.append(row | {"within_target": row["cpu_s"][0] < TARGET_S})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine = {"machine": platform.machine(), "system": platform.system(), "cores": len(os.sched_getaffinity(0))}
    return {"figures": "median, least, most", "target_cpu_s": TARGET_S, "machine": machine, "cells": rows}


def main() -> None:
    """Run the study and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one fit: does it run?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    text = json.dumps(study(quick=options.quick, repeats=options.repeats), indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
