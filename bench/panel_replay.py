"""What a panel would have kept of PPO without a KL penalty and of best-of-n, on language models: measured curves, replayed.

    python bench/panel_replay.py [--tables]

The runs are those of bench/gao_study.py (bench/results/gao_study.json): 18 rewards, 40 iterations each, gold and KL of 192
prompts after every one. Nothing is trained. The panel is simulated: its votes at a look are Bernoulli(σ(g)), g = the look's
mean gain of gold over the supervised policy. The file has that mean only, not each prompt's, so that votes differ less
between prompts than real ones. What a look measured is noisy itself; as in that study, gold is the mean of five looks,
and so is the g that votes are drawn from. The product's `Watcher` sees votes and KL alone. Thresholds are
those that bench/watcher_study.py chose on its tabular worlds; nothing is tuned here. Of best-of-n the panel votes on n = 2, 4 … 256
(samples of the same reward and the same study), and the curve runs over log2 n.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gao_study import RESULTS as CURVES
from bench.gao_study import running_mean
from bench.pages import put_between
from bench.watcher_study import PANEL_LOOKS
from bench.watcher_study import RESULTS as THRESHOLDS
from bench.watcher_worlds import KEPT_FRAC, N_LOOKS

from karat.policy.vote_curve import likeliest, vote_curve
from karat.policy.watcher import Watcher, WatchRules
from karat.stats import wilson

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "panel_replay.json"
DOCS = ROOT / "docs" / "watcher.md"
MARKS = ("<!-- panel_replay: begin -->", "<!-- panel_replay: end -->")
VOTES, N_PANELS, SMOOTHED = (96, 384), 20, 5
LITTLE = 0.2
"""Gains of gold below this are hardly more than what 192 prompts can tell."""
Row = dict[str, Any]


def best_of_n_gains() -> list[np.ndarray]:
    """Gold gained by best-of-n for n = 1, 2, 4 … of each reward; 0 for n = 1."""
    rows = json.loads(CURVES.read_text(encoding="utf-8"))["rows"]
    return [np.array(row["curves"]["best_of_n"])[:, 2] for row in rows]


def gains() -> list[np.ndarray]:
    """Gold over the supervised policy's at every look of each run, the mean of five neighbours; 0 at the start."""
    rows = json.loads(CURVES.read_text(encoding="utf-8"))["rows"]
    found = []
    for row in rows:
        gold = running_mean(np.array(row["curves"]["rl"])[:, 2], SMOOTHED)
        found.append(np.append(0.0, gold[1:]))
    return found


def rules_of(rule: str, threshold: float) -> WatchRules:
    """The watcher's rules: the curve of all votes, or the highest mean of the last five looks."""
    if rule == "curve":
        metric = WatchRules.panel_metric
        return WatchRules(best_metric=metric, of_top=KEPT_FRAC, run_steps=N_LOOKS, fallen_sure=threshold)
    return WatchRules(best_metric=WatchRules.panel_metric, best_looks=PANEL_LOOKS, panel_fall=threshold)


def watch(gain: np.ndarray, rules: WatchRules, n_votes: int, rng: np.random.Generator) -> tuple[int | None, int]:
    """The look at which the watcher stops, None = never, and that whose policy it keeps."""
    watcher = Watcher(rules)
    shares = rng.binomial(n_votes, expit(gain)) / n_votes
    for look, share in enumerate(shares):
        votes = {"validation/panel": float(share) if look else 0.5, "validation/panel_votes": float(n_votes)}
        if watcher.observe(look, votes, lambda _: None) is not None:
            return look, watcher.best_step or 0
    return None, watcher.best_step or 0


def replay() -> dict[str, Any]:
    """Every rule on every run, with N_PANELS panels each."""
    thresholds = json.loads(THRESHOLDS.read_text(encoding="utf-8"))["rules"]
    curves = gains()
    tops = [float(gain.max()) for gain in curves]
    rows: list[Row] = [
        {"rule": "never stop, keep the last", "n_votes": 0, "kept": [float(gain[-1]) for gain in curves]},
        {"rule": "never begin, keep the supervised policy", "n_votes": 0, "kept": [0.0 for _ in curves]},
        {"rule": "an oracle that knows gold", "n_votes": 0, "kept": tops},
    ]
    for rule, name in (("mean", "highest mean of five looks"), ("curve", "curve of all votes")):
        for n_votes in VOTES:
            known = f"{'curve of a ' if rule == 'curve' else ''}careful panel, {n_votes} votes"
            rules = rules_of(rule, thresholds[known]["threshold"])
            ends = [
                watch(gain, rules, n_votes, np.random.default_rng([run, panel, n_votes]))
                for run, gain in enumerate(curves)
                for panel in range(N_PANELS)
            ]
            of_run = [curves[i // N_PANELS] for i in range(len(ends))]
            rows.append({
                "rule": name, "n_votes": n_votes, "threshold": thresholds[known]["threshold"],
                "kept": [float(gain[best]) for gain, (_, best) in zip(of_run, ends, strict=True)],
                "at_stop": [float(gain[-1 if s is None else s]) for gain, (s, _) in zip(of_run, ends, strict=True)],
                "stopped_at": [stop for stop, _ in ends],
            })  # fmt: skip
    return {"n_runs": len(curves), "n_panels": N_PANELS, "tops": tops, "rows": rows, "best_of_n": replay_best_of_n()}


def replay_best_of_n() -> dict[str, Any]:
    """Which n a panel chooses."""
    curves = best_of_n_gains()
    tops = [float(gain.max()) for gain in curves]
    rows: list[Row] = [
        {"rule": f"n = {2**look}", "n_votes": 0, "kept": [float(gain[look]) for gain in curves]} for look in (4, 8)
    ]
    rows.append({"rule": "an oracle that knows gold", "n_votes": 0, "kept": tops})
    chosen: dict[tuple[str, int], list[float]] = {}
    for n_votes in VOTES:
        for run, gain in enumerate(curves):
            for panel in range(N_PANELS):
                shares = np.random.default_rng([run, panel, n_votes, 1]).binomial(n_votes, expit(gain[1:])) / n_votes
                counts = np.full(len(shares), n_votes)
                curve = vote_curve(
                    range(1, len(gain)), shares, counts, run_steps=len(gain) - 1, rng=np.random.default_rng(0)
                )
                by_curve = likeliest(curve.near_top(KEPT_FRAC), range(len(gain)))
                by_share = int(np.append(0.5, shares).argmax())
                for rule, look in (("highest share", by_share), ("curve of all votes", by_curve)):
                    chosen.setdefault((rule, n_votes), []).append(float(gain[look]))
    rows += [{"rule": rule, "n_votes": n, "kept": kept} for (rule, n), kept in sorted(chosen.items(), reverse=True)]
    return {"tops": tops, "rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """Shares of runs, as Markdown."""
    tops = np.array(found["tops"])
    large = tops >= LITTLE
    lines = [
        f"Replayed: {found['n_runs']} runs, of which gold gained at least {LITTLE} in {int(large.sum())}; {found['n_panels']} simulated "
        "panels for each; in brackets 95 % Wilson intervals over runs.", "",
        f"| what is kept | threshold | at least {KEPT_FRAC} of the top's gain | the same where gold gained ≥ {LITTLE} | "
        "gold lost to the top, mean | looks before the stop, median | gold at the stop, mean |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        kept = np.array(row["kept"]).reshape(len(tops), -1)
        good = (kept >= KEPT_FRAC * tops[:, None]).mean(1)
        name = f"{row['rule']}, {row['n_votes']} votes a look" if row["n_votes"] else row["rule"]
        stops = [40 if stop is None else stop for stop in row.get("stopped_at", ())]
        end = f"{np.mean(row['at_stop']):.2f}" if stops else "–"
        lines.append(
            f"| {name} | {row.get('threshold', '–')} | {_rate(good)} | {_rate(good[large])} | "
            f"{float((tops[:, None] - kept).mean()):.2f} | {f'{np.median(stops):g}' if stops else '–'} | "
            f"{end} |"
        )
    tops = np.array(found["best_of_n"]["tops"])
    lines += [
        "",
        f"| best of n: what is chosen | at least {KEPT_FRAC} of the top's gain | gold lost to the top, mean |",
        "|---|---|---|",
    ]
    for row in found["best_of_n"]["rows"]:
        kept = np.array(row["kept"]).reshape(len(tops), -1)
        good = (kept >= KEPT_FRAC * tops[:, None]).mean(1)
        name = f"{row['rule']}, {row['n_votes']} votes an n" if row["n_votes"] else row["rule"]
        lines.append(f"| {name} | {_rate(good)} | {float((tops[:, None] - kept).mean()):.2f} |")
    return "\n".join(lines)


def _rate(share_of_panels: np.ndarray) -> str:
    """The mean over runs; the interval is that of so many runs, of which a run counts by its share of panels."""
    n = len(share_of_panels)
    share = wilson(round(float(share_of_panels.sum())), n)
    return f"{float(share_of_panels.mean()):.2f} ({share.low:.2f} … {share.high:.2f})"


def main() -> None:
    """Replay, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only put what was replayed into docs/watcher.md")
    options = parser.parse_args()
    if not options.tables:
        RESULTS.write_text(json.dumps(replay()) + "\n", encoding="utf-8")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(table(found))
    put_between(DOCS, MARKS, table(found))


if __name__ == "__main__":
    main()
