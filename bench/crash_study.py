"""The study "no acknowledged judgement is ever lost": SIGKILLs of the server at random moments, under load.

    python bench/crash_study.py [--kills 500] [--migrations 50] [--seed 0]

A kill takes the whole process group at once: two workers of the real server on one socket, and a process that seals
all the time, while six raters in two other processes lease, answer, keep drafts and heartbeats through the API. What
they were told is stored (the receipt of a 2xx answer) is written down outside the server. Then the store is opened as
it lies, and held against that. After the restart every rater first sends again, with the same key, what she had no
answer to. A second series kills processes while they bring a store of version 0001 up to date.

Resumable: the result file is rewritten after every store, and a store is used for KILLS_PER_STORE kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import sqlalchemy as sa
from alembic import command
from bench.rows import machine
from bench.turns import ROOT

from karat.errors import KaratError
from karat.feedback import engine, people_tables, schema
from karat.feedback.client import RaterClient
from karat.feedback.people.accounts import make_account, open_session
from karat.feedback.record.seals import seal
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import random_pairs
from karat.feedback.web import serve as serving
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings
from karat.records import Annotator, Judgement, Response, user_prompt

WORK = ROOT / "bench" / "work" / "crash"
RESULT = ROOT / "bench" / "results" / "crash_study.json"
KILLS_PER_STORE = 10
N_WORKERS, N_RATERS, N_CLIENTS = 2, 6, 2
LONGEST_S = 0.8
"""A kill comes at a moment drawn from (0, LONGEST_S) after the first answer of a round."""
PATIENCE_S = 120.0
"""A round in which nobody is answered for so long has failed, and says so."""


class Failure(Exception):
    """The promise was broken, or the study could not be carried out."""


def populate(path: Path) -> dict[str, str]:
    """A store with more work than a series of kills can do, and a token for every rater."""
    now = time.time()
    with open_store(path) as store:
        prompts = [user_prompt(f"question {i}") for i in range(60)]
        responses = [
            Response(prompt.id, f"answer {k} to {i}", "made", k) for i, prompt in enumerate(prompts) for k in range(3)
        ]
        by_prompt = {prompt.id: [one.id for one in responses if one.prompt_id == prompt.id] for prompt in prompts}
        tasks = random_pairs(by_prompt, 170, np.random.default_rng(0), overlap=N_RATERS)
        names = [f"r{i}" for i in range(N_RATERS)]
        store.ingest(prompts=prompts, responses=responses, annotators=map(Annotator, names), new_tasks=tasks, now=now)
        accounts = {name: make_account(store, "annotator", now=now, annotator=name) for name in names}
        return {
            name: open_session(store, account.id, now=now, kind="api", hours=24.0) for name, account in accounts.items()
        }


def warm_up(work: Path) -> None:
    """Make the app once, so that a worker that is forked later starts in milliseconds."""
    work.mkdir(parents=True, exist_ok=True)
    with open_store(work / "warm.db") as store:
        create_app(store, ServerSettings())


# Processes; each is forked from this one, which has everything imported and no thread


def forked(work: Callable[[], None], *, group: int | None = None) -> int:
    """A process that does `work` and ends; its id. group: 0 = it leads a new process group."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if group is not None:
            os.setpgid(0, group)
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"crash_study: a process ended with {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def serve_workers(path: Path, listener: socket.socket) -> None:
    """The worker that `karat serve` starts, several times, and a process that seals; all in one process group."""
    job = serving._Job(str(path), ServerSettings(port=listener.getsockname()[1]), None)
    for _ in range(N_WORKERS - 1):
        forked(lambda: serving._work(job, listener))
    forked(lambda: seal_all_the_time(path))
    serving._work(job, listener)


def seal_all_the_time(path: Path) -> None:
    """Seal whatever has come in, every 30 ms."""
    with open_store(path) as store:
        while True:
            seal(store, now=time.time())
            time.sleep(0.03)


def rate(url: str, tokens: dict[str, str], log: Path) -> None:
    """Raters at work in threads, until the server does not answer any more."""
    threads = [
        threading.Thread(target=one_rater, args=(url, name, token, log / name)) for name, token in tokens.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def one_rater(url: str, name: str, token: str, log: Path) -> None:
    """One rater: first what she had no answer to, then task after task; every receipt is written down at once."""
    rng = np.random.default_rng(abs(hash((name, os.getpid()))))
    with RaterClient(url, token, n_tries=1, timeout_s=PATIENCE_S) as client, log.open("ab", buffering=0) as file:

        def send(sent: dict[str, Any]) -> None:
            receipt = client.submit(sent["lease"], sent["value"], key=sent["key"], reason=sent["reason"])
            file.write(json.dumps({"receipt": receipt.commitment, "key": sent["key"]}).encode() + b"\n")

        with contextlib.suppress(KaratError):
            if (open_ := in_doubt(log)) is not None:
                send(open_)
            while (task := client.next_task()) is not None:
                client.save_draft(task.lease, {"level": 1})
                client.heartbeat(task.lease)
                level = int(rng.integers(task.question.n_levels))
                value = {"level": level, "n_levels": task.question.n_levels}
                words = "words " * int(rng.integers(1, 60)) if rng.random() < 0.5 else None
                sent = {"lease": task.lease, "key": f"{name}-{task.lease}", "value": value, "reason": words}
                file.write(json.dumps(sent).encode() + b"\n")
                send(sent)


def in_doubt(log: Path) -> dict[str, Any] | None:
    """What was sent last, if no receipt came."""
    lines = log.read_bytes().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    return None if "receipt" in last or not last else last


# One round, and what must hold after it


def one_round(path: Path, tokens: dict[str, str], log: Path, delay_s: float) -> None:
    """Start the server and its raters, kill the server's whole process group, wait for the raters to notice."""
    before = n_receipts(log)
    names = sorted(tokens)
    shares = [{name: tokens[name] for name in names[i::N_CLIENTS]} for i in range(N_CLIENTS)]
    # nobody but the server may hold its socket, or a rater would wait for an answer that cannot come
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = forked(lambda: serve_workers(path, listener), group=0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(server, server)
        raters = [forked(lambda share=share: (listener.close(), rate(url, share, log))) for share in shares]
    try:
        until = time.monotonic() + PATIENCE_S
        while n_receipts(log) == before:
            if os.waitpid(server, os.WNOHANG)[0]:
                raise Failure("the server ended by itself")
            if time.monotonic() > until:
                raise Failure(f"nobody was answered within {PATIENCE_S:.0f} s of a restart")
            time.sleep(0.01)
        time.sleep(delay_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(server, 0)
        for rater in raters:
            os.waitpid(rater, 0)


def n_receipts(log: Path) -> int:
    """How many receipts the raters have written down."""
    return sum(file.read_bytes().count(b'"receipt"') for file in log.iterdir())


def receipts(log: Path) -> dict[str, str]:
    """Every receipt by the key of its submission."""
    lines = [json.loads(line) for file in log.iterdir() for line in file.read_bytes().splitlines()]
    return {line["key"]: line["receipt"] for line in lines if "receipt" in line}


def examine(path: Path, log: Path) -> Counter[str]:
    """What is wrong with a store that was killed, counted by kind; every count is 0 or the promise is broken."""
    found: Counter[str] = Counter()
    with open_store(path) as store:
        with store.connection() as connection:
            stored = dict(
                map(
                    tuple, connection.execute(sa.select(schema.judgements.c.submission, schema.judgements.c.commitment))
                )
            )
            if connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok":
                found["damaged files"] += 1
            found["orphans"] += len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())
        noted = {name.partition("/")[2] or name: commitment for name, commitment in stored.items()}
        by_commitment = set(stored.values())
        for key, receipt in receipts(log).items():
            found["lost"] += receipt not in by_commitment
            found["changed"] += noted.get(key, receipt) != receipt
        found["half rows"] += half_rows(store)
        found["problems of verify"] += len(store.verify())
    return found


def half_rows(store: Store) -> int:
    """Judgements without all that belongs to them, and counts that do not fit what is there."""
    given, asked, held = schema.judgements.c, schema.tasks.c, schema.assignments.c
    pairs = sa.select(given.task_id, given.annotator).distinct().subquery()
    counted = sa.select(pairs.c.task_id, sa.func.count().label("n")).group_by(pairs.c.task_id).subquery()
    questions = (
        sa.select(given.id).outerjoin(schema.salts, schema.salts.c.judgement_id == given.id).where(schema.salts.c.salt.is_(None)),
        sa.select(given.id)
        .outerjoin(schema.words, schema.words.c.judgement_id == given.id)
        .where(given.has_words != schema.words.c.words.is_not(None)),
        sa.select(pairs.c.task_id)
        .outerjoin(schema.assignments, sa.and_(held.task_id == pairs.c.task_id, held.annotator == pairs.c.annotator))
        .where(sa.func.coalesce(held.state, "none") != "submitted"),
        sa.select(asked.id)
        .outerjoin(counted, counted.c.task_id == asked.id)
        .where(sa.or_(asked.n_answers != sa.func.coalesce(counted.c.n, 0), asked.n_answers > asked.overlap)),
        sa.select(given.commitment).group_by(given.commitment).having(sa.func.count() > 1),
    )  # fmt: skip
    with store.connection() as connection:
        return sum(len(connection.execute(question).all()) for question in questions)


# The series


def kill_servers(work: Path, n: int, seed: int, number: int) -> dict[str, int]:
    """Up to KILLS_PER_STORE kills of the server on one new store; counts of what happened and what was wrong."""
    directory = work / f"server-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    log = directory / "receipts"
    log.mkdir(parents=True)
    path = directory / "k.db"
    tokens = populate(path)
    for name in tokens:
        (log / name).touch()
    counts: Counter[str] = Counter()
    for i in range(n):
        delay_s = float(np.random.default_rng([seed, number, i]).uniform(0.0, LONGEST_S))
        open_before = {key for name in tokens if (key := (in_doubt(log / name) or {}).get("key"))}
        one_round(path, tokens, log, delay_s)
        counts["kills"] += 1
        counts["sent again after a restart"] += len(open_before & set(receipts(log)))
        counts.update(examine(path, log))
    with open_store(path) as store:
        counts["judgements"] += store.n_judgements()
        with store.connection() as connection:
            counts["seals"] += connection.execute(
                sa.select(sa.func.count()).select_from(people_tables.seals)
            ).scalar_one()
    counts["acknowledged"] += len(receipts(log))
    if not any(counts[kind] for kind in WRONG):
        shutil.rmtree(directory)  # what went wrong is kept to look at
    return dict(counts)


def kill_migrations(work: Path, n: int, seed: int, number: int) -> dict[str, int]:
    """Kills of a process while it brings a store of version 0001 up to date; every judgement must be there after."""
    directory = work / f"migration-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    old = directory / "old.db"
    kept = first_version(old)
    started = time.monotonic()
    migrate_copy(old, directory / "timed.db", None)
    longest_s = time.monotonic() - started
    counts: Counter[str] = Counter()
    for i in range(n):
        path = directory / f"{i}.db"
        delay_s = float(np.random.default_rng([seed, number, i, 1]).uniform(0.0, longest_s))
        counts["kills"] += 1
        counts["in the middle"] += migrate_copy(old, path, delay_s)
        with open_store(path) as store:
            ids = {record.id for record in store.records()}
            counts["lost"] += len(kept - ids)
            counts["half rows"] += len(ids - kept) + half_rows(store)
            counts["problems of verify"] += len(store.verify())
        path.unlink()
    shutil.rmtree(directory)
    return dict(counts)


def first_version(path: Path) -> set[str]:
    """A store of version 0001 with judgements in it; their ids."""
    populate(path)
    with open_store(path) as store:
        tasks = store.tasks()
        store.submit_many([
            Judgement(task.id, task.kind, task.prompt_id, task.response_ids, {"level": i % 3, "n_levels": 3}, f"r{k}", (0, 1),
                      task.guideline, "2026-01-01T00:00:00Z", reason="words" * (i % 2) or None, submission=f"{i}-{k}")
            for i, task in enumerate(tasks) for k in range(N_RATERS)
        ])  # fmt: skip
        ids = {record.id for record in store.records()}
    opened = engine.open_engine(str(path), 30.0)
    with engine.transaction(opened, str(path), write=True) as connection:
        command.downgrade(engine.alembic_config(connection), "0001")
    with opened.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    opened.dispose()
    return ids


def migrate_copy(old: Path, path: Path, delay_s: float | None) -> bool:
    """Copy an old store and open it in another process, which is killed after a while. Returns: it had not finished."""
    shutil.copy(old, path)
    child = forked(lambda: open_store(path).close())
    if delay_s is not None:
        time.sleep(delay_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


WRONG = ("lost", "changed", "half rows", "orphans", "damaged files", "problems of verify")
SERIES: dict[str, Callable[[Path, int, int, int], dict[str, int]]] = {
    "server": kill_servers,
    "migration": kill_migrations,
}


def study(n_kills: int, n_migrations: int, *, seed: int, result: Path, work: Path = WORK) -> dict[str, Any]:
    """Kill until there are as many kills as asked for, going on from an earlier result of the same seed."""
    warm_up(work)
    done = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    if done.get("seed") != seed:
        done = {"work": "crash", "seed": seed, "machine": machine(), "server": {}, "migration": {}}
    for name, wanted in (("server", n_kills), ("migration", n_migrations)):
        counts = Counter(done[name])
        while counts["kills"] < wanted:
            n = min(KILLS_PER_STORE, wanted - counts["kills"])
            counts.update(SERIES[name](work, n, seed, counts["kills"]))
            done[name] = dict(counts)
            done["broken"] = {kind: Counter(done["server"])[kind] + Counter(done["migration"])[kind] for kind in WRONG}
            done["kept"] = not any(done["broken"].values())
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(f"crash: {name} {counts['kills']} of {wanted} kills, {done['broken']}", file=sys.stderr, flush=True)
    return done


def main() -> None:
    """Carry the study out and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="kills of the server")
    parser.add_argument("--migrations", type=int, default=50, help="kills of a migration")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the result is kept and gone on from")
    parser.add_argument("--work", type=Path, default=WORK, help="where the stores are made")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server outlives the study
    found = study(options.kills, options.migrations, seed=options.seed, result=options.result, work=options.work)
    print(json.dumps(found, ensure_ascii=False))
    if not found["kept"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
