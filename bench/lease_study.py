"""Leases under many hands: is any task ever held by too many raters, and is any rater or task left without?

    python bench/lease_study.py [--url postgresql://…] [--clients 64] [--items 1000] [--overlap 3] [--workers 3] [--quick]

Raters are threads of several worker processes, as behind a server with as many workers; each process opens the store
for itself. Raters lose their connection at random: they come back to the same lease, or stay away until it has run
out, or answer then all the same, or send an answer twice. A watcher counts, every few milliseconds and in one
transaction, answers in time and live leases of every task. Standard output has one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

if __package__ in (None, ""):  # started as a file, not as `python -m bench`
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.rows import machine

from karat.feedback.documents import ProjectSettings, put_settings
from karat.feedback.schema import assignments, judgements, tasks
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer
from karat.feedback.work import assignment
from karat.records import Annotator, Response, Task, user_prompt

LEASE_S = 0.75
"""Short beside the study: a rater who stays away for a lease or two must not thereby miss most of it."""
RECONNECT, STAY_AWAY, LATE, TWICE = 0.05, 0.03, 0.03, 0.05
"""Chances, at each task, of the four ways to lose a connection."""


def fill(store: Store, n_items: int, overlap: int, n_clients: int) -> None:
    """One comparison for each of n_items prompts, and as many raters as clients."""
    prompts = [user_prompt(f"question {i}") for i in range(n_items)]
    responses = [[Response(prompt.id, text, "made") for text in ("yes", "no")] for prompt in prompts]
    store.add_prompts(prompts)
    store.add_responses([each for pair in responses for each in pair])
    store.add_tasks([Task(pair[0].prompt_id, (pair[0].id, pair[1].id), overlap=overlap) for pair in responses])
    store.add_annotators([Annotator(f"rater {i}", "simulated") for i in range(n_clients)])
    put_settings(store, ProjectSettings(lease_minutes=LEASE_S / 60, gold_rate=0.0, repeat_rate=0.0), now=0.0)


class Client:
    """One rater with a bad connection."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.who = store, f"rater {number}"
        self.random = random.Random(number)
        self.next_s: list[float] = []
        self.submit_s: list[float] = []
        self.n_lost = 0

    def work(self) -> None:
        """Ask and answer until there has been nothing for longer than a lease can hide something."""
        empty_since: float | None = None
        while empty_since is None or time.monotonic() - empty_since < 2.5 * LEASE_S:
            started = time.perf_counter()
            offer = assignment.next_work(self.store, self.who, now=time.time())
            self.next_s.append(time.perf_counter() - started)
            if offer.lease is None:
                empty_since = empty_since or time.monotonic()
                time.sleep(0.2)
                continue
            empty_since = None
            self.answer(offer)

    def answer(self, offer: assignment.Offer) -> None:
        """Answer what was offered, unless the connection is lost."""
        lost = self.random.random()
        if lost < RECONNECT + STAY_AWAY + LATE:
            self.n_lost += 1
        if lost < RECONNECT:
            return
        if lost < RECONNECT + STAY_AWAY:
            time.sleep(LEASE_S * (1 + self.random.random()))
            return
        if lost < RECONNECT + STAY_AWAY + LATE:
            time.sleep(LEASE_S * 1.2)
        lease = offer.lease
        assert lease is not None
        given = answer(
            lease.task, {"level": self.random.randrange(7), "n_levels": 7}, annotator=self.who, origin="simulated",
            shown_order=offer.shown_order, created_at="2026-01-01T00:00:00Z", submission=lease.id,
        )  # fmt: skip
        for _ in range(2 if self.random.random() < TWICE else 1):
            started = time.perf_counter()
            self.store.submit(given, now=time.time())
            self.submit_s.append(time.perf_counter() - started)


def worker(address: str, numbers: list[int], queue: Any) -> None:
    """One worker process with its share of the raters."""
    with open_store(address) as store:
        clients = [Client(store, number) for number in numbers]
        threads = [threading.Thread(target=client.work) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        queue.put(
            {
                "next_s": [each for client in clients for each in client.next_s],
                "submit_s": [each for client in clients for each in client.submit_s],
                "n_lost": sum(client.n_lost for client in clients),
            }
        )


def most_held(store: Store, overlap: int) -> tuple[int, int]:
    """The largest number of answers in time and live leases on one task now, and tasks above the overlap."""
    live = (
        sa.select(assignments.c.task_id, sa.func.count().label("n"))
        .where(assignments.c.state == "leased", assignments.c.expires_at > time.time())
        .group_by(assignments.c.task_id)
    )
    given = (
        sa.select(judgements.c.task_id, sa.func.count().label("n"))
        .where(sa.not_(judgements.c.late))
        .group_by(judgements.c.task_id)
    )
    held: Counter[str] = Counter()
    with store.connection(steady=True) as connection:
        for question in (live, given):
            for task_id, n in connection.execute(question):
                held[task_id] += n
    return max(held.values(), default=0), sum(n > overlap for n in held.values())


def study(address: str, *, n_clients: int, n_items: int, overlap: int, n_workers: int) -> dict[str, Any]:
    """Let everybody work until nothing is left, and say what was found."""
    store = open_store(address)
    fill(store, n_items, overlap, n_clients)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    shares = [list(range(i, n_clients, n_workers)) for i in range(n_workers)]
    started = time.monotonic()
    processes = [context.Process(target=worker, args=(address, share, queue)) for share in shares]
    for process in processes:
        process.start()
    found: list[dict[str, Any]] = []
    looks = [most_held(store, overlap)]
    while len(found) < n_workers:
        began = time.monotonic()
        looks.append(most_held(store, overlap))
        time.sleep(max(0.05, 4 * (time.monotonic() - began)))  # the watcher must not be the load
        while not queue.empty():
            found.append(queue.get())
        if any(process.exitcode not in (None, 0) for process in processes):
            raise SystemExit("a worker process failed; see above")
    seconds = time.monotonic() - started
    for process in processes:
        process.join()
    records = store.records()
    by_task = Counter(each.judgement.task_id for each in records)
    by_rater = Counter(each.judgement.annotator for each in records)
    with store.connection() as connection:
        states = Counter(connection.execute(sa.select(tasks.c.state)).scalars())
    next_s, submit_s = ([each for part in found for each in part[name]] for name in ("next_s", "submit_s"))
    return {
        "database": store.dialect,
        "clients": n_clients,
        "workers": n_workers,
        "items": n_items,
        "overlap": overlap,
        "seconds": round(seconds, 1),
        "answers": len(records),
        "late": sum(each.late for each in records),
        "lost_connections": sum(part["n_lost"] for part in found),
        "looks": len(looks),
        "most_held": max(most for most, _ in looks),
        "over_assigned": max(n for _, n in looks),
        "tasks_with_too_few": sum(by_task[task.id] < overlap for task in store.tasks()),
        "double_answers": len(records) - len({(each.judgement.task_id, each.judgement.annotator) for each in records}),
        "states": dict(states),
        "fewest_answers_of_a_rater": min(by_rater[f"rater {i}"] for i in range(n_clients)),
        "most_answers_of_a_rater": max(by_rater.values()),
        "next_ms": _quantiles(next_s),
        "submit_ms": _quantiles(submit_s),
        "problems": [problem.what for problem in store.verify()],
        "machine": machine(),
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    found = {f"p{q}": round(1000 * float(np.quantile(seconds, q / 100)), 1) for q in (50, 95, 99)}
    return found | {"longest": round(1000 * max(seconds), 1)}


def main() -> None:
    """Run the study and print its row; exit 1 where something was over-assigned or left over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="the URL of an empty store; a new SQLite file where it is left out")
    for name, size in (("clients", 64), ("items", 1000), ("overlap", 3), ("workers", 3)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--quick", action="store_true", help="12 clients, 60 items")
    given = parser.parse_args()
    n_clients, n_items = (12, 60) if given.quick else (given.clients, given.items)
    with tempfile.TemporaryDirectory() as place:
        address = given.url or str(Path(place) / "store.db")
        row = study(address, n_clients=n_clients, n_items=n_items, overlap=given.overlap, n_workers=given.workers)
    print(json.dumps(row), flush=True)
    if row["over_assigned"] or row["tasks_with_too_few"] or row["double_answers"] or row["problems"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
