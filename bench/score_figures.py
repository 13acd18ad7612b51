"""The arithmetic of the time-to-score study: from the runs of a cell to its settings, its row and its line in the docs.

A run is {seed, settings: {side: setting}, ours: {scores, seconds, cpu_seconds}, theirs: …}, one number an iteration. A score is the
mean of the last `window` iterations. Knows nothing about processes or files.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.score_cells import SIDES, TARGETS, Cell, Setting, own_name, run_name, setting_name

RECORDED = ("versions", "peak_mib", "machine", "threads")
N_FINALISTS = 2
Runs = Mapping[str, Mapping[str, Any]]


def smoothed(scores: Sequence[float], window: int) -> list[float]:
    """Means of the last `window` scores, from the first full window on.

    >>> smoothed([1, 3, 5], 2)
    [2.0, 4.0]
    """
    return [statistics.fmean(scores[i - window : i]) for i in range(window, len(scores) + 1)]


def iterations_to(scores: Sequence[float], target: float, window: int) -> int | None:
    """Iterations until the smoothed score is at least `target`; None where it never is."""
    reached = (n for n, value in enumerate(smoothed(scores, window), start=window) if value >= target)
    return next(reached, None)


def finalists(cell: Cell, runs: Runs, side: str) -> list[Setting] | None:
    """The settings that run in full on the first seed; None while the search is not done.

    The best of few iterations may collapse later, and a high learning rate before all. So of each rate its best setting
    is taken, and of those the best two, in the order of their rates. A setting is as good as the mean of its scores
    after the first update.
    """
    if len(cell.settings) == 1:
        return list(cell.settings)
    names = [run_name(dict.fromkeys(SIDES, setting), cell.search_seed) for setting in cell.settings]
    if any(name not in runs for name in names):
        return None
    best_of_rate: dict[float, tuple[float, Setting]] = {}
    for name, setting in zip(names, cell.settings, strict=True):
        merit, rate = statistics.fmean(runs[name][side]["scores"][1:]), setting["learning_rate"]
        if rate not in best_of_rate or merit > best_of_rate[rate][0]:
            best_of_rate[rate] = (merit, setting)
    chosen = sorted(best_of_rate.values(), key=lambda pair: pair[0])[-N_FINALISTS:]
    return sorted((setting for _, setting in chosen), key=lambda setting: setting["learning_rate"])


def best_of_whole(cell: Cell, runs: Runs, side: str) -> Setting | None:
    """The setting with the highest mean score over the second half of the peer's iterations, on the search seeds.

    Both sides are judged over the same iterations, though ours goes on. None while the search is not done.
    """
    names = [searched(cell, setting, side) for setting in cell.settings]
    if any(name not in runs for several in names for name in several):
        return None
    half = slice(cell.n_iterations // 2, cell.n_iterations)
    merits = [statistics.fmean(n for name in several for n in runs[name][side]["scores"][half]) for several in names]
    return cell.settings[merits.index(max(merits))]


def searched(cell: Cell, setting: Setting, side: str) -> list[str]:
    """The runs by which a setting of a side is judged: on the search seed, and ours on further ones."""
    own = [own_name(setting, seed) for seed in cell.more_search_seeds] if side == "ours" else []
    return [run_name(dict.fromkeys(SIDES, setting), cell.search_seed), *own]


def finals(cell: Cell, runs: Runs) -> list[dict[str, Setting]] | None:
    """The pairs of settings that meet in full on the first seed; None while the search is not done, or where it tells."""
    if cell.whole_search:
        return None
    found = {side: finalists(cell, runs, side) for side in SIDES}
    if found["ours"] is None or found["theirs"] is None:
        return None
    return [dict(zip(SIDES, pair, strict=True)) for pair in zip(found["ours"], found["theirs"], strict=True)]


def best(cell: Cell, runs: Runs) -> dict[str, Setting] | None:
    """Each side's finalist with the highest final score on the first seed; None while the finals are not done.

    Where every setting ran in full there are no finals: the search tells.
    """
    if cell.whole_search:
        found = {side: best_of_whole(cell, runs, side) for side in SIDES}
        return None if None in found.values() else found  # type: ignore[return-value]
    pairs = finals(cell, runs)
    names = [run_name(pair, cell.seeds[0]) for pair in pairs or []]
    if not names or any(name not in runs for name in names):
        return None
    done = [runs[name] for name in names]
    return {
        side: max(done, key=lambda run: smoothed(run[side]["scores"], cell.window)[-1])["settings"][side]
        for side in SIDES
    }


def row(cell: Cell, runs: Runs) -> dict[str, Any] | None:
    """The cell's figures over the seeds that are done; None before the first.

    The peer's time ends when it first reaches its own final score, ours when it first reaches the same score; samples
    are counted likewise. `ratio` is the median over seeds, None where ours did not get there on one of them;
    `ratios_cpu` are those of processor seconds, which remain meaningful on a busy machine.
    """
    settings = best(cell, runs)
    if settings is None:
        return None
    done = {seed: pair for seed in cell.seeds if (pair := _of_seed(runs, settings, seed)) is not None}
    if not done:
        return None
    targets = [smoothed(pair["theirs"]["scores"], cell.window)[-1] for pair in done.values()]
    counts = {
        side: [
            iterations_to(pair[side]["scores"], target, cell.window)
            for pair, target in zip(done.values(), targets, strict=True)
        ]
        for side in SIDES
    }
    seconds, cpu_seconds = (
        {
            side: [
                None if n is None else sum(pair[side][which][:n]) for pair, n in zip(done.values(), found, strict=True)
            ]
            for side, found in counts.items()
        }
        for which in ("seconds", "cpu_seconds")
    )
    samples = {side: [None if n is None else n * cell.n_sequences for n in found] for side, found in counts.items()}
    ends = {
        f"{which}_scores": {side: [smoothed(pair[side]["scores"], cell.window)[i] for pair in done.values()] for side in SIDES}
        for which, i in (("final", -1), ("first", 0))
    }  # fmt: skip
    n = len(done)
    return _verdict(cell, seconds, samples, ends, n) | {
        "ratios_cpu": [_ratio(cpu_seconds, i) for i in range(n)],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "samples": samples,
        **ends,
        "settings": settings,
        "seeds": list(done),
        "n_iterations": cell.n_iterations,
        **_circumstances(list(done.values())),
    }


def _of_seed(runs: Runs, settings: Mapping[str, Setting], seed: int) -> dict[str, Any] | None:
    """Both sides at their settings on a seed: one run, or on the first seed two, where each had another one beside it."""
    found = {}
    for side in SIDES:
        run = next(
            (r for r in runs.values() if side in r and r["seed"] == seed and r["settings"][side] == settings[side]),
            None,
        )
        if run is None:
            return None
        found[side] = run[side] | {name: run[name] for name in RECORDED}
    return found


def _verdict(
    cell: Cell, seconds: Mapping[str, list], samples: Mapping[str, list], ends: Mapping[str, Mapping[str, list]], n: int
) -> dict[str, Any]:
    """Ratios, and whether the target is met: on all seeds, and by a peer that got better at all."""
    ratios, fewer = ([_ratio(found, i) for i in range(n)] for found in (seconds, samples))
    reached = [ratio for ratio in ratios if ratio is not None]
    whole = n > 0 and len(reached) == n
    ratio = statistics.median(reached) if whole else None
    # a peer that did not get better sets no mark to reach
    learnt = all(b > a for a, b in zip(ends["first_scores"]["theirs"], ends["final_scores"]["theirs"], strict=True))
    complete = n == len(cell.seeds)
    return {
        "work": "time-to-score",
        "method": cell.method,
        "reward": cell.reward,
        "unit": "s to the peer's final score",
        **{side: statistics.median(seconds[side]) if whole else None for side in SIDES},
        "ratio": ratio,
        "target": TARGETS[cell.method],
        "met": complete and learnt and ratio is not None and ratio >= TARGETS[cell.method],
        "complete": complete,
        "peer_learnt": learnt,
        "ratios": ratios,
        "ratio_samples": statistics.median(fewer) if whole else None,
        "fewer_samples_on_every_seed": complete and learnt and whole and min(fewer) > 1,
        "spread": {"ratio": {"min": min(reached), "max": max(reached)} if reached else None},
        "note": "" if whole else f"the peer's final score was not reached in {n - len(reached)} runs",
    }


def _ratio(found: Mapping[str, list], i: int) -> float | None:
    ours, theirs = (found[side][i] for side in SIDES)
    return None if ours is None or theirs is None else theirs / ours


def _circumstances(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Memory, versions, threads and machines of these runs."""
    peaks = {side: max(pair[side]["peak_mib"][side] for pair in pairs) for side in SIDES}
    return {
        **{f"peak_mib_{side}": peak for side, peak in peaks.items()},
        "ratio_memory": peaks["theirs"] / peaks["ours"],
        "versions": pairs[0]["ours"]["versions"],
        "threads": sorted({pair[side]["threads"] for pair in pairs for side in SIDES}),
        "machine": [pair["ours"]["machine"] for pair in pairs],
        "n_repeats": len(pairs),
    }


def progress(cell: Cell, runs: Runs) -> str:
    """How much of the cell is done, in words."""
    done = sum(all(name in runs for name in searched(cell, setting, "ours")) for setting in cell.settings)
    if not runs:
        return "not run"
    if len(cell.settings) > 1 and done < len(cell.settings):
        return f"search: {done} of {len(cell.settings)} settings"
    found = row(cell, runs)
    if found is None:
        return "search done, seeds not" if cell.whole_search else "search done, finals not"
    return "done" if found["complete"] else f"{len(found['seeds'])} of {len(cell.seeds)} seeds"


def table(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]]) -> str:
    """What has been run and what has not, as Markdown.

    Args: found: runs by cell, {name: {runs: …}}.
    """
    lines = [
        "| method, reward | iterations × samples, settings tried | done | times faster: median (each seed; in processor seconds) | target "
        "| s, ours and TRL's | samples, ours and TRL's | TRL's score, first and final | best setting, ours; TRL's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        runs = found.get(cell.name, {}).get("runs", {})
        ours = f"{cell.n_iterations_of('ours', cell.n_iterations)} and " if cell.times_longer > 1 else ""
        size = f"{ours}{cell.n_iterations} × {cell.n_sequences}, {len(cell.settings)}"
        start = f"| {cell.name} | {size} | {progress(cell, runs)} |"
        one = row(cell, runs)
        lines.append(start + (_line(one) if one else f" | {TARGETS[cell.method]:g} | | | | |"))
    return "\n".join(lines)


def page(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, and on what the runs in it were made."""
    runs = [run for cell in cells for run in found.get(cell.name, {}).get("runs", {}).values()]
    if not runs:
        return table(cells, found)
    loads = [run["machine"]["load"] for run in runs]
    where = ", ".join(sorted({run["machine"]["processor"] for run in runs}))
    threads = ", ".join(map(str, sorted({run["threads"] for run in runs})))
    said = (
        f"{len(runs)} runs, most of both sides; threads a side: {threads}; {where}; other programs beside them: load "
        f"{min(loads):g} to {max(loads):g}. –: not reached."
    )
    return f"{table(cells, found)}\n\n{said}"


def _line(one: Mapping[str, Any]) -> str:
    """The figures of a row, from the ratio on."""
    ratio = "not reached" if one["ratio"] is None else f"{one['ratio']:.1f}"
    verdict = "" if not one["complete"] else ", met" if one["met"] else ", **missed**"
    starts, ends = (one[f"{which}_scores"]["theirs"] for which in ("first", "final"))
    learnt = ", ".join(f"{a:.1f} → {b:.1f}" for a, b in zip(starts, ends, strict=True))
    columns = [
        f"{ratio} ({_listed(one['ratios'], '.1f')}; {_listed(one['ratios_cpu'], '.1f')})",
        f"{one['target']:g}{verdict}",
        *(f"{_listed(one[what]['ours'], form)}; {_listed(one[what]['theirs'], form)}" for what, form in (("seconds", ".0f"), ("samples", "d"))),
        learnt + ("" if one["peer_learnt"] else " (did not learn)"),
        "; ".join(setting_name(one["settings"][side]) for side in SIDES),
    ]  # fmt: skip
    return " " + " | ".join(columns) + " |"


def _listed(values: Sequence[float | None], form: str) -> str:
    return ", ".join("–" if value is None else format(value, form) for value in values)
