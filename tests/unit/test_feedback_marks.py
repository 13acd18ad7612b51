"""A rater's mark in the queue: what she has answered costs nothing more, and nothing that waits for her is passed by."""

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from bench.handout_study import Meter, fill

import postgresql_server
from feedback_cases import small_store, vote
from karat.feedback import waiting
from karat.feedback.documents import ProjectSettings, put_settings
from karat.feedback.openings import OPEN
from karat.feedback.schema import annotators, assignments, tasks
from karat.feedback.store import open_store
from karat.feedback.work import assignment, checks, requeue
from karat.feedback.work.answering import Given, submit_work
from karat.feedback.work.sitting import sit_down
from karat.pipeline.people import add_for_later, open_to_people

PLAIN = ProjectSettings(gold_rate=0.0, repeat_rate=0.0)


@pytest.fixture(autouse=True)
def _marks_move_at_once(monkeypatch):
    monkeypatch.setattr(waiting, "STRIDE", 0)
    monkeypatch.setattr(waiting, "MOVED_EVERY", 1)


def queue(address, **kwargs):
    store = small_store(address, **kwargs)
    put_settings(store, PLAIN, now=0.0)
    return store


def mark(store, who="r0"):
    with store.connection() as connection:
        return connection.execute(sa.select(annotators.c.done_to).where(annotators.c.id == who)).scalar()


def answer(store, who, *, now=1.0):
    """The place in the queue of what she is handed and answers; None where there is nothing."""
    lease = assignment.next_task(store, who, now=now)
    if lease is None:
        return None
    store.submit(vote(lease.task, who), now=now)
    return store.tasks().index(lease.task)


def test_her_mark_follows_what_she_has_done(new_address):
    store = queue(new_address("k"), n_tasks=6, overlap=3)
    assert [answer(store, "r0") for _ in range(6)] == list(range(6))
    assert (mark(store), mark(store, "r1")) == (5, 0)
    assert answer(store, "r0") is None
    assert mark(store) == 6  # nothing open waits for her
    assert answer(store, "r1") == 0
    store.add_tasks([dataclasses.replace(store.tasks()[0], batch="new")])
    assert answer(store, "r0") == 6


def test_what_is_given_back_comes_to_who_has_passed_it(new_address):
    """Skipped, left until the lease ran out, pulled and asked again, or answered first by named raters."""
    store = queue(new_address("k"), n_tasks=4, overlap=1)
    ids = [task.id for task in store.tasks()]
    skipped = assignment.next_task(store, "r1", now=0.0)
    left = assignment.next_task(store, "r2", now=0.0)
    requeue.pull(store, [ids[2]], by="admin", reason="look", now=0.0)
    assert [answer(store, "r0"), answer(store, "r0")] == [3, None]
    assert mark(store) >= 3
    assignment.skip(store, skipped.id, "r1", reason="unclear", now=1.0)
    assert answer(store, "r0") == ids.index(skipped.task.id)
    assert answer(store, "r0", now=10_000.0) == ids.index(left.task.id)
    requeue.reissue(store, [ids[2]], by="admin", reason="seen", now=10_000.0)
    assert answer(store, "r0") == 2
    later = [dataclasses.replace(task, batch="later") for task in store.tasks()]
    add_for_later(store, later)
    store.add_tasks([dataclasses.replace(later[0], batch="now")])
    assert [answer(store, "r0"), answer(store, "r0")] == [8, None]
    assert mark(store) >= 8
    open_to_people(store, "later", 2)
    assert [answer(store, "r0") for _ in range(5)] == [4, 5, 6, 7, None]


def test_no_mark_ever_hides_an_open_task_that_waits(tmp_path):
    """A crowd that answers, skips, leaves and comes back: behind each mark no open task lacks this rater's answer."""
    rng, now = random.Random(0), 0.0
    store = queue(tmp_path / "k.db", n_tasks=12, overlap=3, n_raters=5)
    gold = checks.add_gold(store, [(store.tasks()[0], {"level": 2, "n_levels": 3})], version="1")[0]
    store.submit(vote(gold, "r0"), now=0.0)  # its equal is no work for her
    is_gold = {i + 1 for i, task in enumerate(store.tasks()) if task.response_ids == gold.response_ids}
    hidden = sa.select(tasks.c.seq, annotators.c.id).where(
        tasks.c.state == OPEN, tasks.c.seq <= annotators.c.done_to, tasks.c.audience == "annotator",
        ~sa.select(assignments.c.task_id).where(
            assignments.c.task_id == tasks.c.id, assignments.c.annotator == annotators.c.id,
            assignments.c.state.in_(("submitted", "skipped")),
        ).exists(),
    )  # fmt: skip
    moved = 0
    for i in range(150):
        who, now = f"r{rng.randrange(5)}", now + rng.choice((1.0, 1.0, 400.0))
        lease = assignment.next_task(store, who, now=now)
        if lease is not None and rng.random() < 0.7:
            store.submit(vote(lease.task, who), now=now)
        elif lease is not None and rng.random() < 0.5:
            assignment.skip(store, lease.id, who, reason="unclear", now=now)
        if i % 40 == 39:
            more = [dataclasses.replace(task, batch=f"more {i}") for task in store.tasks()[:3]]
            is_gold.add(len(store.tasks()) + 1)
            store.add_tasks(more)
        with store.connection() as connection:
            found = [tuple(row) for row in connection.execute(hidden)]
        assert [row for row in found if row[1] != "r0" or row[0] not in is_gold] == []
        moved = max(moved, mark(store, who))
    assert moved > 10


def test_on_postgresql_what_somebody_else_has_locked_is_not_passed_for_good(postgresql):
    store = queue(postgresql_server.new_database(postgresql), n_tasks=3, overlap=3, n_raters=2)
    with ThreadPoolExecutor(1) as pool, store.connection(write=True) as connection:
        assert waiting.peek_open(connection, "r1", now=0.0).seq == 1
        assert pool.submit(answer, store, "r0").result(timeout=60) == 1
        connection.rollback()
    assert mark(store) == 0
    assert [answer(store, "r0") for _ in range(3)] == [0, 2, None]


def test_a_hand_out_looks_at_no_task_that_she_has_answered(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(waiting, "MOVED_EVERY", 1)  # the mark moves as it does, and now
    steps = []
    for n_answered in (50, 500):
        with open_store(tmp_path / f"{n_answered}.db") as store:
            put_settings(store, PLAIN, now=0.0)
            fill(store, n_answered)
            meter = Meter(store)
            sit_down(store, "rater", now=1.0)  # moves her mark
            lease = assignment.next_task(store, "rater", now=2.0)
            assignment.skip(store, lease.id, "rater", reason="unclear", now=2.0)
            sitting, _, n = meter.cost(lambda store=store: sit_down(store, "rater", now=3.0))
            steps.append(n)
            given = Given({"level": 1, "n_levels": 3}, key="k")
            answering = meter.cost(
                lambda store=store, w=sitting.work, given=given: submit_work(store, w, given, now=4.0)
            )
            assert answering[2] < 800
    # 81 steps for each open task that she had answered; what remains is counting turns and answers in their indexes
    assert steps[0] > 5000
    assert steps[1] - steps[0] < 20 * 450
