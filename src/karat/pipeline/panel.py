"""The watcher's panel: fresh votes on what the policy writes now, beside what the fine-tuned policy writes.

A score that is optimised stops being evidence of what it scores. These votes train nothing: they say which policy is
kept, and when it was better before. They are judgements like any other, in the run's store, and the optimiser's stage
ends with a snapshot of them. Knows texts, tasks and the store; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karat.config import plain
from karat.errors import ConfigError
from karat.feedback.snapshot import current_judgements, snapshot_place, work_records, write_snapshot
from karat.feedback.store import Store, open_store
from karat.identity import content_id
from karat.ledger.lineage import ASKED
from karat.lm import parallel
from karat.pipeline.data import read_rows, write_rows
from karat.pipeline.people import as_a_page_asks
from karat.pipeline.settings import RunConfig
from karat.pipeline.sources import Source
from karat.pipeline.stages import Output, Workplace
from karat.records import Judgement, Prompt, Response, Task
from karat.seeding import numpy_generator

REFERENCE = "sft"


@dataclass(frozen=True)
class Pair:
    """One comparison of a look."""

    prompt: Prompt
    """Both answer it."""
    ours: str
    """What the policy wrote."""
    theirs: str
    """What its reference wrote."""
    ours_first: bool
    """True = the policy's is response a; by a fair coin."""

    @property
    def same(self) -> bool:
        """True = there is nothing to ask: half a vote."""
        return self.ours == self.theirs

    def task(self, batch: str, propensity: float) -> Task:
        """The question; which of both is shown first is drawn again when it is shown."""
        ids = (Response(self.prompt.id, text, "").id for text in (self.ours, self.theirs))
        first, second = ids if self.ours_first else reversed(tuple(ids))
        return Task(self.prompt.id, (first, second), strategy="panel", propensity=propensity, batch=batch)


class Panel:
    """Asks a run's people about each look, and remembers what they said; a look that is repeated asks nothing twice."""

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        place: Workplace,
        prompts: Sequence[Prompt],
        reference: Sequence[Sequence[str]],
        *,
        seed: int,
    ) -> None:
        """reference: responses of the fine-tuned policy, as many for each prompt as a look draws.

        Raises: ConfigError where the run has nobody to ask.
        """
        if config.watch.panel is None or source.panel is None:
            raise ConfigError("watch.panel: found nobody to ask in this run; expected a sandbox, or a run of `people`")
        self.settings, self.config, self.place, self.seed = config.watch.panel, config, place, seed
        self.answered = source.panel
        self.prompts, self.reference = tuple(prompts), tuple(map(tuple, reference))
        self.path = place.beside(place.directory / "metrics" / f"panel{place.suffix}.jsonl")

    def __call__(self, step: int, texts: Sequence[Sequence[str]]) -> dict[str, float]:
        """Share of the votes for the policy, ties and equal texts as halves, and how many votes that is.

        Args:
            step: finished steps of the optimiser.    texts: its responses, prompts in the panel's order.
        """
        return parallel.from_main(lambda: self._ask(step, texts))

    def pairs(self, step: int, texts: Sequence[Sequence[str]]) -> list[Pair]:
        """The comparisons of a look: drawn uniformly, without replacement, from all of a prompt's pairs by sample number."""
        rng = numpy_generator(self.seed, "panel", step)
        slots = [(row, i) for row, group in enumerate(texts) for i in range(len(group))]
        drawn = rng.choice(len(slots), size=min(self.settings.n_votes, len(slots)), replace=False)
        coins = rng.random(len(drawn)) < 0.5
        return [
            Pair(self.prompts[row], texts[row][i], self.reference[row][i], bool(coin))
            for (row, i), coin in zip((slots[j] for j in drawn), coins, strict=True)
        ]

    def _ask(self, step: int, texts: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = self.pairs(step, texts)
        propensity = len(pairs) / sum(map(len, texts))
        # who is asked and what, not by which weights it was written: those differ in the last bit from machine to machine
        whom = [
            plain(self.settings.raters),
            None if self.config.sandbox is None else plain(self.config.sandbox),
            self.seed,
        ]
        texts_shown = [[p.prompt.id, p.ours, p.theirs] for p in pairs]
        batch = content_id("batch", ["panel", self.place.suffix, whom, step, texts_shown])
        asked = [pair for pair in pairs if not pair.same]
        with open_store(self.place.directory / "karat.db") as store:
            tasks = self._queue(store, [pair.task(batch, propensity) for pair in asked], asked, step)
            if tasks:
                self.answered(store, self.place, batch)
            records, _ = current_judgements(work_records(store, batch=batch))
        said = {record.judgement.task_id: preferred(record.judgement) for record in records}
        shares = [0.5] * (len(pairs) - len(asked))
        for pair, task in zip(asked, tasks, strict=True):
            vote = said.get(task.id)
            shares += [] if vote is None else [vote if pair.ours_first else 1 - vote]
        found = {"validation/panel": float(np.mean(shares))} if shares else {}
        found["validation/panel_votes"] = float(len(shares))
        self._remember({"step": step, "batch": batch, "judgements": [record.id for record in records], **found})
        return found

    def _queue(self, store: Store, tasks: list[Task], pairs: Sequence[Pair], step: int) -> list[Task]:
        """Put the questions into the store; returns the task of each pair."""
        if self.config.people is not None:
            tasks = as_a_page_asks(store, tasks, self.config.collect.principle)
        store.add_prompts({pair.prompt.id: pair.prompt for pair in pairs}.values())
        writer = f"{self.config.algorithm}{self.place.suffix} step {step}"
        sides = [
            (pair.prompt.id, text, who)
            for pair in pairs
            for text, who in ((pair.ours, writer), (pair.theirs, REFERENCE))
        ]
        store.add_responses([Response(*side) for side in sides])
        store.add_tasks(list({task.id: task for task in tasks}.values()))
        return tasks

    def _remember(self, row: Mapping[str, Any]) -> None:
        """Keep what a look came to; a look that a kill undid is replaced when it is done again."""
        kept = [one for one in self.rows() if one["step"] < row["step"]]
        write_rows(self.path, [*kept, row])

    def rows(self) -> list[dict[str, Any]]:
        """What every look so far came to."""
        return list(read_rows(self.path)) if self.path.exists() else []

    def outputs(self) -> list[Output]:
        """The looks, and a snapshot of the votes behind them."""
        rows = self.rows()
        ids = {one for row in rows for one in row["judgements"]}
        found = [Output("panel", self.path)] if rows else []
        if ids:
            with open_store(self.place.directory / "karat.db") as store:
                path = snapshot_place(store, self.place.directory / "snapshots" / f"panel{self.place.suffix}", only=ids)
                write_snapshot(store, path, only=ids)
            found.append(Output("panel_votes", path, ASKED))
        return found


def preferred(judgement: Judgement) -> float | None:
    """1 = a was preferred, ½ = neither, 0 = b; None = no answer was given.

    However strongly: a share of votes is wanted, and strength means something else to each person.
    """
    level = judgement.value.get("level")
    if level is None:
        return None
    return float((np.sign(2 * level - (judgement.value["n_levels"] - 1)) + 1) / 2)
