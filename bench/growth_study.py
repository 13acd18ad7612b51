"""Whether anything grows faster than its arithmetic: passes and sampling over prompt, samples, vocabulary and model.

    python bench/growth_study.py [--quick] [--again prompt vocabulary] [--out bench/results/growth_study.json]
        [--plot docs/images/growth.svg]
    python bench/growth_study.py --ends [--threads 1] [--axes vocabulary samples]

Four axes go through one base point (8 prompts of 96 tokens × 4 samples of 48, "small"): prompts of 64 to 2,048 tokens, 1
to 16 samples, vocabularies of 8k to 152k, models of 5 to 146 million parameters. Each point times, with random tokens
and weights, what training is made of: `update` (log-probabilities of the responses and their gradient), `forward` (the
same without gradient) and `sample` (`lm.generate.sample`, no early end). The cost is seconds an operation; operations
are those of arithmetic.py. A point that is done is not run again unless `--again` names its axis.

`--ends` takes the two ends of each axis in turns and counts processor seconds, so that other programs on the same cores
disturb both alike; results/growth_ends.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from bench.arithmetic import TRAINING, TreeSize, head_flops, sampling_flops, trunk_flops
from bench.models import SHAPES, WIDE_VOCABULARY, wide_tokenizer
from bench.rows import machine
from bench.turns import ROOT, WORK

from karat.lm.fresh import DecoderShape, write_fresh_decoder
from karat.lm.generate import SamplingConfig, sample
from karat.lm.load import LoadedLM, load_lm
from karat.lm.logprobs import response_logprobs
from karat.lm.trees import Tree, TreeBatch, pack_trees

PARTS = ("update", "forward", "sample")
ALLOWED = 1.15
"""The largest point's seconds an operation over the smallest point's; what is above counts as growing faster."""
TOKEN_BUDGET = 4096
N_PROMPTS = 8
SMALL = replace(SHAPES["small"], context=4096)
MODELS = {
    "5M": SMALL,
    "17M": replace(SHAPES["medium"], hidden=448, mlp=1216, heads=7, kv_heads=1, layers=6, context=4096),
    "50M": DecoderShape(hidden=704, mlp=1920, layers=8, heads=11, kv_heads=1, head_size=64, context=4096),
    "146M": DecoderShape(hidden=1024, mlp=2816, layers=12, heads=16, kv_heads=4, head_size=64, context=4096),
}


@dataclass(frozen=True)
class Point:
    """One size of work."""

    axis: str
    """What is varied."""
    value: str
    """Its value there, as shown."""
    n_prompt: int = 96
    """Tokens of each prompt."""
    n_samples: int = 4
    """Responses of each prompt."""
    n_new: int = 48
    """Tokens of each response."""
    n_vocabulary: int = 8192
    """Tokens of the vocabulary."""
    shape: DecoderShape = SMALL
    """The model."""

    @property
    def key(self) -> str:
        """Names the point in the results."""
        return f"{self.axis}={self.value}"

    def operations(self, part: str) -> float:
        """What a part needs, counted."""
        if part == "sample":
            each = sampling_flops(self.n_prompt, self.n_samples, self.n_new, self.shape, self.n_vocabulary)
            return N_PROMPTS * each
        trees = [TreeSize(self.n_prompt, (self.n_new,) * self.n_samples)] * N_PROMPTS
        head = head_flops(N_PROMPTS * self.n_samples * self.n_new, self.shape, self.n_vocabulary)
        forward = trunk_flops(trees, self.shape) + head
        return forward * (TRAINING if part == "update" else 1)


def points(*, quick: bool) -> list[Point]:
    """All of them, axis by axis, ascending; the two ends of each axis with quick."""
    axes = [
        [Point("prompt", f"{n:,}", n_prompt=n) for n in (64, 128, 256, 512, 1024, 2048)],
        [Point("samples", str(n), n_samples=n) for n in (1, 2, 4, 8, 16)],
        [Point("vocabulary", f"{n:,}", n_vocabulary=n) for n in (8192, 32768, 65536, WIDE_VOCABULARY)],
        [Point("model", name, shape=shape) for name, shape in MODELS.items()],
    ]
    if quick:
        axes = [[axis[0], axis[1]] for axis in axes[:2]]
    return [point for axis in axes for point in axis]


@dataclass(frozen=True)
class Bench:
    """A point's model and inputs, and its parts as functions that do them once."""

    lm: LoadedLM
    """With random weights."""
    prompts: list[tuple[int, ...]]
    """Random tokens."""
    batches: list[TreeBatch]
    """Prompts with random responses, packed."""
    config: SamplingConfig
    """Without an early end."""
    n_samples: int
    """Responses of each prompt."""

    def update(self) -> None:
        """Gradients of the sum of log-probabilities."""
        self.lm.model.zero_grad(set_to_none=True)
        for batch in self.batches:
            response_logprobs(self.lm.model, batch).logprobs.sum().backward()

    def forward(self) -> None:
        """Log-probabilities."""
        with torch.no_grad():
            for batch in self.batches:
                response_logprobs(self.lm.model, batch)

    def sample(self) -> None:
        """Responses."""
        sample(self.lm, self.prompts, n_samples=self.n_samples, config=self.config, seed=0)


def bench_of(point: Point) -> Bench:
    """A point made ready; its checkpoint is written on first use."""
    shape = point.shape
    name = f"growth-{shape.hidden}x{shape.layers}-{point.n_vocabulary}"
    directory = WORK / name
    if not (directory / "config.json").exists():
        write_fresh_decoder(directory, wide_tokenizer(point.n_vocabulary), shape, seed=0)
    lm = load_lm(directory, for_training=True)
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, point.n_vocabulary, (n,), generator=generator).tolist())

    prompts = [tokens(point.n_prompt) for _ in range(N_PROMPTS)]
    trees = [Tree(prompt, tuple(tokens(point.n_new) for _ in range(point.n_samples))) for prompt in prompts]
    config = SamplingConfig(max_new_tokens=point.n_new, min_new_tokens=point.n_new)
    return Bench(lm, prompts, pack_trees(trees, token_budget=TOKEN_BUDGET), config, point.n_samples)


def measured(point: Point, *, n_repeats: int) -> dict[str, Any]:
    """Seconds of each part, the median of some repeats after one warm-up, and its operations."""
    bench = bench_of(point)
    found: dict[str, Any] = {"axis": point.axis, "value": point.value}
    for part in PARTS:
        run: Callable[[], None] = getattr(bench, part)
        run()
        seconds = []
        for _ in range(n_repeats):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        found[part] = {
            "seconds": statistics.median(seconds), "fastest": min(seconds), "operations": point.operations(part)
        }  # fmt: skip
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each axis and part: seconds an operation at the last point over the first, and the slope of logarithms.

    A slope of 1 = seconds grow as operations do; below 1, more slowly.
    """
    lines = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis]
        for part in PARTS:
            x = [math.log(row[part]["operations"]) for row in own]
            y = [math.log(row[part]["seconds"]) for row in own]
            slope = statistics.linear_regression(x, y).slope if len(own) > 1 else math.nan
            cost = math.exp((y[-1] - x[-1]) - (y[0] - x[0]))
            lines.append(
                {
                    "axis": axis, "part": part, "from": own[0]["value"], "to": own[-1]["value"],
                    "operations_ratio": round(math.exp(x[-1] - x[0]), 2), "cost_ratio": round(cost, 3),
                    "slope": round(slope, 3), "met": cost <= ALLOWED,
                }
            )  # fmt: skip
    return lines


def study(*, out: Path, plot: Path | None, quick: bool, again: Sequence[str] = ()) -> dict[str, Any]:
    """Measure what is missing and the axes named in `again`; the table of what there is."""
    out = out.with_suffix(".quick.json") if quick else out
    kept: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    kept = [row for row in kept if row["axis"] not in again]
    known = {f"{row['axis']}={row['value']}" for row in kept}
    wanted = points(quick=quick)
    order = {point.key: place for place, point in enumerate(wanted)}
    for number, point in enumerate(wanted, 1):
        if point.key in known:
            continue
        started = time.perf_counter()
        kept.append(measured(point, n_repeats=2 if quick else 7))
        kept.sort(key=lambda row: order[f"{row['axis']}={row['value']}"])
        done = {"rows": kept, "summary": summary(kept), "machine": machine(), "threads": torch.get_num_threads()}
        out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        spent = time.perf_counter() - started
        print(f"growth {number}/{len(wanted)}: {point.key}, {spent:.0f} s", file=sys.stderr, flush=True)
    if plot is not None and not quick:
        plot.write_text(picture(kept), encoding="utf-8")
    lines = summary(kept)
    return {"summary": lines, "worst": max(line["cost_ratio"] for line in lines), "met": all(x["met"] for x in lines)}


def ends(axes: Sequence[str], *, n_turns: int, out: Path) -> list[dict[str, Any]]:
    """Seconds an operation at the last point of each axis over the first, the median of some turns and their range."""
    known: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    for axis in axes:
        own = [point for point in points(quick=False) if point.axis == axis]
        pair = (own[0], own[-1])
        benches = [bench_of(point) for point in pair]
        rows = []
        for part in PARTS:
            costs: tuple[list[float], list[float]] = ([], [])
            for turn in range(n_turns + 1):
                for bench, point, found in zip(benches, pair, costs, strict=True):
                    started = time.process_time()
                    getattr(bench, part)()
                    spent = (time.process_time() - started) / point.operations(part)
                    if turn:  # the first is for warming up
                        found.append(spent)
            ratios = sorted(last / first for first, last in zip(*costs, strict=True))
            rows.append(
                {
                    "axis": axis, "part": part, "from": pair[0].value, "to": pair[1].value, "n_turns": n_turns,
                    "operations_ratio": round(pair[1].operations(part) / pair[0].operations(part), 2),
                    "cost_ratio": round(statistics.median(ratios), 3),
                    "range": [round(ratios[0], 3), round(ratios[-1], 3)],
                    "gflops": [round(1e-9 / statistics.median(found), 1) for found in costs],
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        known = [row for row in known if row["axis"] != axis] + rows
        done = {"rows": known, "machine": machine(), "threads": torch.get_num_threads()}
        out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return known


def growth_row(*, quick: bool, threads: int) -> dict[str, Any]:
    """The study as a row of the long benches."""
    torch.set_num_threads(threads)
    found = study(out=RESULTS, plot=PLOT, quick=quick)
    return {"work": "growth", "unit": "seconds an operation, last point ÷ first"} | found | {"machine": machine()}


RESULTS = ROOT / "bench" / "results" / "growth_study.json"
ENDS = ROOT / "bench" / "results" / "growth_ends.json"
PLOT = ROOT / "docs" / "images" / "growth.svg"
COLOURS = {"update": "#1f6feb", "forward": "#8250df", "sample": "#bf5700"}
PANEL, MARGIN, GAP = (230, 190), 46, 26


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds an operation beside the first point's, over operations, one panel an axis, both logarithmic: flat = 1."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    width = MARGIN + len(axes) * (PANEL[0] + GAP)
    height = PANEL[1] + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
    ]
    lines.append(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
    for number, axis in enumerate(axes):
        left = MARGIN + number * (PANEL[0] + GAP)
        lines += _panel([row for row in rows if row["axis"] == axis], axis, left)
    for number, part in enumerate(PARTS):
        lines.append(f'<text x="{MARGIN + 70 * number}" y="{height - 8}" fill="{COLOURS[part]}">● {part}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(rows: Sequence[Mapping[str, Any]], axis: str, left: float) -> list[str]:
    top, low, high = MARGIN, 0.25, 4.0

    def across(place: int) -> float:
        return left + PANEL[0] * (place + 0.5) / len(rows)

    def down(ratio: float) -> float:
        share = (math.log(min(max(ratio, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
        return top + PANEL[1] * (1 - share)

    lines = [
        f'<rect x="{left}" y="{top}" width="{PANEL[0]}" height="{PANEL[1]}" fill="none" stroke="#999999"/>',
        f'<text x="{left}" y="{top - 8}" fill="#222222">{axis}: seconds an operation, first point = 1</text>',
    ]
    for tick in (0.25, 0.5, 1.0, 2.0, 4.0):
        dash = "" if tick == 1.0 else ' stroke-dasharray="2 4"'
        lines.append(f'<path d="M{left} {down(tick):.1f}h{PANEL[0]}" stroke="#bbbbbb"{dash}/>')
        lines.append(f'<text x="{left - 4}" y="{down(tick) + 4:.1f}" text-anchor="end" fill="#555555">{tick:g}</text>')
    for place, row in enumerate(rows):
        lines.append(
            f'<text x="{across(place):.1f}" y="{top + PANEL[1] + 14}" text-anchor="middle" fill="#555555">'
            f"{row['value']}</text>"
        )
    for part in PARTS:
        cost = [row[part]["seconds"] / row[part]["operations"] for row in rows]
        places = [(across(i), down(one / cost[0])) for i, one in enumerate(cost)]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
        lines.append(f'<path d="{path}" fill="none" stroke="{COLOURS[part]}" stroke-width="1.8"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[part]}"/>' for x, y in places]
    return lines


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short axes: does it run?")
    parser.add_argument("--again", nargs="+", default=[], help="axes to measure anew")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("KARAT_BENCH_THREADS", "2")))
    parser.add_argument("--ends", action="store_true", help="the ends of each axis in turns, in processor seconds")
    parser.add_argument("--axes", nargs="+", default=["prompt", "samples", "vocabulary", "model"], help="with --ends")
    parser.add_argument("--turns", type=int, default=5, help="with --ends")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.ends:
        print(json.dumps(ends(options.axes, n_turns=options.turns, out=ENDS), ensure_ascii=False))
        return
    found = study(out=options.out, plot=options.plot, quick=options.quick, again=options.again)
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
