"""Own options, the fifth design of the time-to-score study: its cells and choices; its rules are in docs/benchmarks.md.

The arithmetic of a race is that of own_batch. Knows nothing about processes or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.own_batch import OwnBatch, Runs, full_name, published, search_name, seconds_to, window_of
from bench.score_cells import SIDES, Setting, run_name

NO_CLIP = 1e6
"""A norm that no gradient here has."""
PEERS_OPTIONS: tuple[Setting, ...] = (
    {"n_samples": 8},
    {"max_grad_norm": NO_CLIP},
    {"n_samples": 8, "max_grad_norm": NO_CLIP},
    {"peer_dtype": "bfloat16"},
)
"""What the peer tries, each at the learning rate and steps of its published setting."""


def ours(learning_rate: float, n_minibatches: int = 1, **options: Any) -> tuple[tuple[str, Any], ...]:
    """A setting of ours, as a constant."""
    return tuple({"learning_rate": learning_rate, "n_minibatches": n_minibatches, **options}.items())


@dataclass(frozen=True)
class OwnOptions(OwnBatch):
    """A method on a reward where each side also chooses its precision and its clipping of gradients, ours a limit on steps."""

    chosen: tuple[tuple[str, Any], ...] = ()
    """Our setting, found on seeds from 200 on before the first race (docs/LOG.md)."""
    beside: tuple[tuple[str, Any], ...] = ()
    """Another setting of ours, which races too on fresh seeds and has a row of its own."""
    fresh: bool = False
    """Whether no design saw these seeds before: the peer's score is made in the race, in ten iterations of its published setting."""

    @property
    def name(self) -> str:
        """Of the cell in the results."""
        return f"{super().name}, fresh seeds" if self.fresh else super().name

    @property
    def shape(self) -> dict[str, Any]:
        """What all runs of the cell have in common, as it is kept beside them."""
        return (
            self.published.shape
            | {
                "our_iterations": self.n_iterations,
                "ours": dict(self.chosen),
            }
            | ({"beside": dict(self.beside)} if self.beside else {})
        )

    @property
    def earlier(self) -> str:
        """The cell of own batch whose runs of the peer are taken over."""
        return f"{self.method}, {self.reward}"


def peers_settings(place: Mapping[str, Any]) -> list[Setting]:
    """What the peer tries that it did not before."""
    return [place["best"]["theirs"] | option for option in PEERS_OPTIONS]


def peers_search(
    cell: OwnOptions, runs: Runs, earlier: Runs, place: Mapping[str, Any]
) -> list[tuple[Setting, Mapping[str, Any]]]:
    """All runs by which the peer chooses beside its published setting: those of three designs.

    Args: runs, earlier: of this design and of own batch.    place: of the published cell in the results.
    """
    seed, known = cell.published.search_seed, {**earlier, **runs}
    plain = [(s, place["runs"][run_name(dict.fromkeys(SIDES, s), seed)]) for s in cell.published.settings]
    there = [
        (setting, known[name])
        for setting in [*(s for s in cell.settings if "n_samples" in s), *peers_settings(place)]
        if (name := search_name("theirs", setting, seed)) in known
    ]
    return [(setting, run["theirs"]) for setting, run in (*plain, *there) if setting != place["best"]["theirs"]]


def peers_choice(cell: OwnOptions, runs: Runs, earlier: Runs, place: Mapping[str, Any]) -> Setting | None:
    """Beside its published setting, the one with which the peer has that one's final score in the fewest processor seconds."""
    goal = published(cell, place, cell.published.search_seed)
    times = [
        (seconds_to(run, goal.mark, window_of(cell, "theirs", setting)), setting)
        for setting, run in peers_search(cell, runs, earlier, place)
    ]
    time, setting = min(times, key=lambda pair: pair[0])
    return None if math.isinf(time) else setting


def about_search(cell: OwnOptions, runs: Runs, earlier: Runs, place: Mapping[str, Any]) -> dict[str, Any]:
    """Of the peer's search: settings tried, those that had the score, and processor seconds."""
    mark = published(cell, place, cell.published.search_seed).mark
    found = peers_search(cell, runs, earlier, place)
    return {
        "tried": len(found) + 1,
        "reached": 1 + sum(math.isfinite(seconds_to(run, mark, window_of(cell, "theirs", s))) for s, run in found),
        "cpu_seconds": sum(sum(run["cpu_seconds"]) for _, run in found),
        "new": {
            full_name(setting): {
                "cpu_seconds_an_iteration": sum(run["cpu_seconds"]) / len(run["cpu_seconds"]),
                "scores": list(run["scores"]),
            }
            for setting, run in found
            if search_name("theirs", setting, cell.published.search_seed) in runs
        },
    }


def of_beside(runs: Runs) -> dict[str, Mapping[str, Any]]:
    """The same races with our other setting in the place of the chosen one; without those in which it did not run."""
    return {
        name: {**run, "ours": run["beside"], "settings": {**run["settings"], "ours": run["settings"]["beside"]}}
        for name, run in runs.items()
        if "beside" in run
    }


CHOSEN = {
    ("rloo", "length"): ours(3e-3, n_samples=16, dtype="bfloat16"),
    ("rloo", "word"): ours(3e-3, n_samples=8, dtype="bfloat16", max_grad_norm=NO_CLIP),
}
SHORT_STEPS = ("max_step_kl", 1.0)
"""Beside the setting for `word` on fresh seeds, because that had collapsed on seed 1."""
CELLS = (
    *(OwnOptions(*pair, seeds=(0, 1, 2), chosen=setting) for pair, setting in CHOSEN.items()),
    *(
        OwnOptions(
            *pair, seeds=(3, 4, 5), fresh=True, chosen=setting,
            beside=(*setting, SHORT_STEPS) if pair[1] == "word" else (),
        )
        for pair, setting in CHOSEN.items()
    ),
)  # fmt: skip
"""In the order in which they are run."""
