"""What it costs to hand a rater her next task, by how many open tasks she has answered before.

    python bench/handout_study.py [--url postgresql://…] [--answered 0 100 1000 10000] [--cycles 40]

A queue of tasks that want three answers each; one rater has answered the first of them, nobody else any, so that all that
she has answered are still open. Then she goes on: next item (`sitting.sit_down`, what the page /work reads), submit
(`answering.submit_work`). Costs are processor time, of this process and of the database's, so that a busy machine changes
little; on SQLite also the steps of its virtual machine, which no machine changes. Standard output has one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.rows import machine

from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer
from karat.feedback.work.answering import Given, submit_work
from karat.feedback.work.sitting import sit_down
from karat.records import Annotator, Response, Task, user_prompt

AHEAD = 300
"""Tasks behind those that she has answered: more than are counted as left."""
STEPS = 50
"""Steps of SQLite's virtual machine between two looks."""
NOW = 1_800_000_000.0
LEVEL = {"level": 1, "n_levels": 3}


def fill(store: Store, n_answered: int) -> None:
    """The queue, and the rater's answers to its first tasks."""
    prompts = [user_prompt(f"question {i}") for i in range(n_answered + AHEAD)]
    pairs = [[Response(prompt.id, text, "made") for text in ("yes", "no")] for prompt in prompts]
    tasks = [Task(pair[0].prompt_id, (pair[0].id, pair[1].id), overlap=3) for pair in pairs]
    given = [
        answer(
            task, LEVEL, annotator="rater", shown_order=(0, 1), created_at="2026-01-01T00:00:00Z", submission=str(i),
            active_s=10.0,
        )
        for i, task in enumerate(tasks[:n_answered])
    ]  # fmt: skip
    store.ingest(
        prompts=prompts, responses=[one for pair in pairs for one in pair], annotators=[Annotator("rater")],
        new_tasks=tasks, judgements=given,
    )  # fmt: skip


class Meter:
    """Counts what the database does for one store that one thread uses."""

    def __init__(self, store: Store) -> None:
        self.steps = 0
        self._backend: int | None = None
        with store.connection() as connection:
            if store.dialect == "sqlite":
                connection.connection.driver_connection.set_progress_handler(self._count, STEPS)
            else:
                self._backend = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
                connection.execute(sa.text("ANALYZE"))

    def _count(self) -> int:
        self.steps += STEPS
        return 0

    def seconds(self) -> float:
        """Processor seconds of this process, and of the database's where it has its own."""
        own = time.process_time()
        if self._backend is None:
            return own
        return own + int(Path(f"/proc/{self._backend}/schedstat").read_text().split()[0]) / 1e9

    def cost(self, action: Callable[[], Any]) -> tuple[Any, float, int]:
        """What an action returns, its milliseconds and its steps."""
        steps, started = self.steps, self.seconds()
        found = action()
        return found, (self.seconds() - started) * 1e3, self.steps - steps


def measure(address: str, n_answered: int, n_cycles: int) -> dict[str, Any]:
    """Median costs of the next item and of the answer."""
    with open_store(address) as store:
        fill(store, n_answered)
        meter = Meter(store)
        costs: dict[str, list[tuple[float, int]]] = {"next": [], "submit": []}
        for i in range(n_cycles + 3):
            now = NOW + 60.0 * i
            sitting, *next_cost = meter.cost(lambda now=now: sit_down(store, "rater", now=now))
            given = Given(LEVEL, key=str(i), active_s=10.0)
            _, *submit_cost = meter.cost(
                lambda sitting=sitting, given=given, now=now: submit_work(store, sitting.work, given, now=now + 10.0)
            )
            if i >= 3:  # statements are compiled and keys are made in the first
                costs["next"].append(tuple(next_cost))
                costs["submit"].append(tuple(submit_cost))
    row: dict[str, Any] = {"answered": n_answered}
    for kind, found in costs.items():
        ms, steps = np.array(found).T
        row |= {f"{kind}_cpu_ms": round(float(np.median(ms)), 2), f"{kind}_steps": int(np.median(steps)) or None}
    return row


def main() -> None:
    """Measure at every size and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an empty PostgreSQL database for each size is made beside it; default SQLite")
    parser.add_argument("--answered", type=int, nargs="+", default=[0, 100, 1000, 10000])
    parser.add_argument("--cycles", type=int, default=40)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for n_answered in asked.answered:
            address = f"{place}/{n_answered}.db" if asked.url is None else new_database(asked.url, n_answered)
            rows.append(measure(address, n_answered, asked.cycles))
            print(f"handout: {rows[-1]}", file=sys.stderr, flush=True)
    dialect = "sqlite" if asked.url is None else "postgresql"
    print(
        json.dumps({"work": "handout", "database": dialect, "cycles": asked.cycles, "rows": rows, "machine": machine()})
    )


def new_database(address: str, number: int) -> str:
    """The address of a new empty database on the server of another."""
    url = sa.make_url(address).set(drivername="postgresql+psycopg")
    name = f"handout_{number}_{time.time_ns()}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


if __name__ == "__main__":
    main()
