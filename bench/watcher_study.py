"""How often the watcher's alarms are right: tabular worlds in which gold is known exactly.

    python bench/watcher_study.py --quick | --full

The worlds are those of bench/watcher_worlds.py. The product's `Watcher` sees the figures of samples, as it would in a
run; gold is computed over all responses and seen by nobody but the oracles. Thresholds are chosen on the worlds of TUNING
and applied to those of TEST, once. What a world gave is kept in bench/work, so that an interrupted study continues.
`--full` writes bench/results/watcher_study.json and the tables of docs/watcher.md; `--quick` 6 and 12 worlds, to
bench/work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pages import put_between
from bench.watcher_worlds import KEPT_FRAC, MANY_VOTES, N_LOOKS, WORK, Course, path_of

from karat.policy.watcher import Watcher, WatchRules
from karat.stats import wilson

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "watcher_study.json"
DOCS = ROOT / "docs" / "watcher.md"
MARKS = ("<!-- watcher_study: begin -->", "<!-- watcher_study: end -->")
TUNING, TEST = range(1000, 1020), range(3000, 3100)
MOST_FALSE, PANEL_LOOKS = 0.10, 5
ORACLE = "gold itself, up to now (an oracle)"
SURE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
GRIDS: dict[str, tuple[float, ...]] = {
    "kl_budget": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 5.5),
    "disagreement": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999),
    "length": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "entropy": (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    "diversity": (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2),
    "peak of the lower bound": (6, 9, 12, 16, 20),
    "patience on the lower bound": (1, 2, 3, 4, 6),
    "peak of gold (an oracle)": (6, 9, 12, 16, 20),
    "panel like the raters, 96 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "careful panel, 96 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "careful panel, 384 votes": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "curve of a panel like the raters, 96 votes": SURE,
    "curve of a careful panel, 96 votes": SURE,
    "curve of a careful panel, all looks on disk, 96 votes": SURE,
    "curve of a careful panel, 384 votes": SURE,
    f"curve of a careful panel, {MANY_VOTES} votes": SURE,
    ORACLE: (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.89, 0.88, 0.87, 0.86),
}
"""Thresholds that are tried for each rule, from those that alarm soon to those that alarm late or the other way round."""


def rules_of(rule: str, threshold: float, path: Course) -> WatchRules:
    """The watcher's rules with only this one on."""
    off: dict[str, Any] = {"reference_lengths": tuple(path.usual_lengths)}
    if rule == "kl_budget":
        return WatchRules(kl_budget=threshold, **off)
    if rule == "disagreement":
        usual = tuple(path.usual_disagreement)
        return WatchRules(validation_disagreement=usual, disagreement_quantile=threshold, **off)
    if rule == "length":
        return WatchRules(length_limit_sd=threshold, **off)
    if rule == "entropy":
        return WatchRules(entropy_floor=threshold, **off)
    if rule == "diversity":
        return WatchRules(diversity_floor=threshold, **off)
    if rule == "patience on the lower bound":
        return WatchRules(patience=int(threshold), **off)
    if "panel" in rule:
        n_votes = rule.rpartition(", ")[2].removesuffix(" votes")
        metric = f"panel/{'raters' if 'raters' in rule else 'careful'}_{n_votes}"
        votes: dict[str, Any] = {"panel_metric": metric, "panel_count": f"panel/votes_{n_votes}"}
        if "curve" in rule:
            if "all looks" in rule:
                votes["candidates"] = None
            return WatchRules(
                best_metric=metric, of_top=KEPT_FRAC, run_steps=N_LOOKS, fallen_sure=threshold, **votes, **off
            )
        votes["panel_fall"] = threshold
        return WatchRules(best_metric=metric, best_looks=PANEL_LOOKS, **votes, **off)
    metric = "validation/gold" if "gold" in rule else "validation/lower_bound"
    return WatchRules(peak_metric=metric, peak_looks=int(threshold), **off)


def alarm_of(path: Course, rule: str, threshold: float) -> tuple[int | None, int]:
    """The look at which the rule stops the run, None = never; and the look whose policy the watcher keeps."""
    if rule == ORACLE:
        gain = np.array(path.gold) - path.gold[0]
        below = np.flatnonzero(gain < threshold * np.maximum.accumulate(gain))
        seen = gain[: below[0] + 1] if below.size else gain
        return (int(below[0]) if below.size else None), int(seen.argmax())
    watcher = Watcher(rules_of(rule, threshold, path))
    stop = None
    for look, figures in enumerate(path.looks):
        if watcher.observe(look, figures, lambda _: None) is not None:
            stop = look
            break
    return stop, watcher.best_step or 0


def judge(paths: Sequence[Course], rule: str, threshold: float) -> dict[str, int]:
    """Counts over some worlds."""
    counts = {"worlds": len(paths), "falling": 0, "detected": 0, "false": 0, "kept": 0, "best": 0, "early": 0}
    for path in paths:
        look, best = alarm_of(path, rule, threshold)
        counts["kept"] += path.gain(len(path.gold) - 1 if look is None else look) >= KEPT_FRAC
        counts["best"] += path.gain(best) >= KEPT_FRAC
        if path.falls:
            top = int(np.argmax(path.gold))
            lost = next(i for i in range(top, len(path.gold)) if path.gain(i) < KEPT_FRAC)
            counts["falling"] += 1
            counts["detected"] += look is not None and look <= lost
            counts["early"] += look is not None and look < top and path.gain(look) < KEPT_FRAC
        else:
            counts["false"] += look is not None
    return counts


def choose(paths: Sequence[Course], rule: str) -> tuple[float, dict[str, int]]:
    """The threshold that keeps most worlds at KEPT_FRAC of their peak gain, among those with few enough false alarms."""
    tried = [(threshold, judge(paths, rule, threshold)) for threshold in GRIDS[rule]]

    def worth(entry: tuple[float, dict[str, int]]) -> tuple[bool, int, int]:
        counts = entry[1]
        sound = max(counts["worlds"] - counts["falling"], 1)
        return counts["false"] <= MOST_FALSE * sound, counts["kept"], -counts["false"]

    return max(tried, key=worth)


def study(tuning: Sequence[int], test: Sequence[int]) -> dict[str, Any]:
    """Thresholds on the one, rates on the other."""
    first, second = [path_of(seed) for seed in tuning], [path_of(seed) for seed in test]
    falling = sum(path.falls for path in second)
    rows: dict[str, Any] = {}
    for rule in GRIDS:
        threshold, on_tuning = choose(first, rule)
        rows[rule] = {"threshold": threshold, "tuning": on_tuning, "test": judge(second, rule, threshold)}
    never = sum(path.gain(len(path.gold) - 1) >= KEPT_FRAC for path in second)
    return {"n_tuning": len(first), "n_test": len(second), "n_falling": falling, "never_stopping_keeps": never,
            "rules": rows}  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The rates with 95 % Wilson intervals, as Markdown."""

    def rate(successes: int, n: int) -> str:
        share = wilson(successes, n)
        return "–" if share.value is None else f"{share.value:.2f} ({share.low:.2f} … {share.high:.2f})"

    n, falling = found["n_test"], found["n_falling"]
    lines = [
        f"{n} worlds, in {falling} of which gold ends below {KEPT_FRAC} of its highest gain; thresholds from "
        f"{found['n_tuning']} others. Never stopping keeps gold in {rate(found['never_stopping_keeps'], n)}.",
        "",
        "| rule | threshold | detection in time | premature | false alarms | gold kept at the stop | by the policy kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule, row in found["rules"].items():
        counts = row["test"]
        lines.append(
            f"| {rule} | {row['threshold']:g} | {rate(counts['detected'], falling)} | {rate(counts['early'], falling)} | "
            f"{rate(counts['false'], n - falling)} | {rate(counts['kept'], n)} | {rate(counts['best'], n)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.quick == options.full:
        parser.error("found both or neither of --quick and --full; expected one of them")
    found = study(TUNING[:6], TEST[:12]) if options.quick else study(TUNING, TEST)
    print(table(found))
    target = WORK / "quick.json" if options.quick else RESULTS
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    if options.full:
        put_between(DOCS, MARKS, table(found))


if __name__ == "__main__":
    main()
