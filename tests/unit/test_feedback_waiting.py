"""What is left for a rater: the count before every hand-out is what she still gets, in stores of every sort."""

import dataclasses
import random
from collections import Counter
from datetime import UTC, datetime

import pytest

from feedback_cases import small_store, vote
from karat.errors import LeaseError
from karat.feedback.documents import Budget, ProjectSettings, add_questions, project_settings, put_settings
from karat.feedback.openings import asked_of
from karat.feedback.people import standing
from karat.feedback.schema import task_row
from karat.feedback.waiting import _line_question, n_waiting
from karat.feedback.work import assignment, checks, requeue
from karat.feedback.work.sitting import beside, own_progress
from karat.questions import Question

NOW = 1_800_000_000.0
TODAY = datetime.fromtimestamp(NOW, UTC).isoformat()
A = {"level": 2, "n_levels": 3}
WARNED = Question(content_warning="violence", n_levels=3)
PLAIN = {"gold_rate": 0.0, "repeat_rate": 0.0}


def left(store, who="r0"):
    return own_progress(store, who, now=NOW).n_left


def busy_store(address, rng):
    """A queue with everything that keeps a task from a rater, after raters of every sort were at it."""
    store = small_store(address, n_prompts=3, n_tasks=12, overlap=rng.choice((1, 2)), n_raters=4)
    add_questions(store, [WARNED])
    base = store.tasks()
    for i in range(14):
        more = {
            "overlap": rng.choice((1, 1, 2, 3)),
            "stop_after": rng.choice((0, 0, 2)),
            "reserved_for": rng.choice((None, None, None, "r0", "r1")),
            "audience": rng.choice(("annotator",) * 4 + ("expert",)),
            "question": rng.choice(("", "", WARNED.id)),
        }
        store.add_tasks([dataclasses.replace(rng.choice(base), batch=f"more {i}", **more)])
    put_settings(store, ProjectSettings(**PLAIN), now=0.0)
    work_around(store, rng)
    gold = checks.add_gold(store, [(task, A) for task in rng.sample(base, 2)], version="1")
    if rng.random() < 0.6:  # what she had as gold never comes as work
        store.submit(vote(gold[0], "r0"), now=NOW)
    requeue.pull(store, [rng.choice(base).id], by="admin", reason="odd", now=NOW)
    limits = {
        "exposure_cap_per_day": rng.choice((None, None, 0, 1, 2, 4)),
        "budget": Budget(judgements=rng.choice((None, None, store.n_judgements() + rng.randrange(9)))),
    }
    put_settings(store, ProjectSettings(**PLAIN, **limits), now=1.0)
    return store


def work_around(store, rng):
    """Everybody, the rater too, takes, answers, keeps, leaves and gives back tasks until now."""
    held = []
    for moment in sorted(NOW - 2400 * rng.random() for _ in range(40)):
        who = f"r{rng.randrange(4)}"
        what = rng.choice(("take", "take", "take", "answer", "answer", "skip", "keep"))
        if what == "take" and (lease := assignment.next_task(store, who, now=moment)):
            held.append(lease)
        elif what != "take" and held:
            lease = rng.choice(held)
            try:
                if what == "answer":
                    key = f"{lease.annotator} {moment}"
                    given = vote(lease.task, lease.annotator, level=rng.randrange(3), created_at=TODAY, key=key)
                    held.remove(lease)
                    store.submit(given, now=moment)
                elif what == "skip":
                    held.remove(lease)
                    assignment.skip(store, lease.id, lease.annotator, reason="unclear", now=moment)
                else:
                    assignment.heartbeat(store, lease.id, lease.annotator, now=moment)
            except LeaseError:  # answered, or another has its place
                pass


def drain(store, rng, right=0.8, skips=0.2):
    """The batches of what a rater is handed one after another, and the count before each of them and at the end."""
    batches, counts = [], []
    while True:
        counts.append(left(store))
        offer = assignment.next_work(store, "r0", now=NOW)
        if offer.lease is None:
            assert beside(store, "r0", None, now=NOW).reason == offer.reason
            return batches, counts, offer.reason
        assert left(store) == counts[-1]  # in her hands it is still one of them
        task = offer.lease.task
        batches.append(task.batch)
        if rng.random() < skips:
            assignment.skip(store, offer.lease.id, "r0", reason="unclear", now=NOW)
        else:
            level = 2 if rng.random() < right else 0
            store.submit(vote(task, "r0", level=level, created_at=TODAY, key=f"drain {task.id}"), now=NOW)


@pytest.mark.parametrize("seeds", [range(3), range(3, 6)])
def test_what_is_left_is_what_still_comes(new_address, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        store = busy_store(new_address(f"k{seed}"), rng)
        if rng.random() < 0.15:
            standing.quarantine(store, "r0", reason="look", by="admin", now=NOW)
        limited = project_settings(store).budget.judgements is not None
        batches, counts, _ = drain(store, rng, skips=0.0 if limited else 0.2)  # what is skipped uses up no budget
        assert counts == list(range(len(batches), -1, -1)), (seed, batches)
        store.close()


@pytest.mark.parametrize("seed", range(4))
def test_before_she_has_passed_the_items_of_her_attempt_are_left(tmp_path, seed):
    rng = random.Random(seed)
    store = small_store(tmp_path / "k.db", n_tasks=8, n_raters=2)
    put_settings(store, ProjectSettings(**PLAIN), now=0.0)
    items = [(task, A) for task in store.tasks()[:3]]
    checks.add_qualification(store, items, version="1", pass_mark=0.6, attempts=2, now=0.0)
    batches, counts, reason = drain(store, rng, right=0.5)
    # an attempt or the work is a stretch of one batch; what is left is the rest of it
    rest = [sum(other == batch for other in batches[i:]) for i, batch in enumerate(batches)]
    assert counts == [*rest, 0]
    assert reason == ("nothing left" if "main" in batches else "not qualified")


def test_a_silent_check_leaves_the_count_and_what_equals_it_leaves_with_it(tmp_path):
    store = small_store(tmp_path / "k.db", n_tasks=20, n_raters=1)
    work = store.tasks()
    checks.add_gold(store, [(task, A) for task in work[10:14]], version="1")
    put_settings(store, ProjectSettings(gold_rate=0.45, repeat_rate=0.45, repeat_gap=2), now=0.0)
    n_checks = Counter()
    while (offer := assignment.next_work(store, "r0", now=NOW)).lease is not None:
        before, task = left(store), offer.lease.task
        store.submit(vote(task, "r0", created_at=TODAY, shown_order=offer.shown_order), now=NOW)
        kind = task.batch.split(":")[0]
        n_checks[kind] += 1
        # what is in her hands is one of them; the work that equals a gold item will not come any more
        assert before - left(store) == (2 if kind == "gold" else 1), kind
    assert min(n_checks["gold"], n_checks["repeat"]) > 0
    assert left(store) == 0


def test_counting_ends_at_a_limit_and_passes_what_she_met(new_address):
    store = small_store(new_address("k"), n_tasks=10)
    tasks = [asked_of_task(task) for task in store.tasks()]
    with store.connection() as connection:
        count = [n_waiting(connection, "r0", now=NOW, most=most, met=tasks[:2]) for most in (1, 3, 8, 9, 100)]
        assert count == [1, 3, 8, 8, 8]
        assert n_waiting(connection, "r0", now=NOW, most=3) == 3
        assert n_waiting(connection, "r0", now=NOW, most=100, barred=[""], met=tasks[:2]) == 0
        assert n_waiting(connection, "r0", now=NOW, most=100, only=[""], met=tasks[:2]) == 8


def asked_of_task(task):
    row = task_row(task)
    return asked_of(type("Row", (), row))


def test_what_was_taken_in_place_of_an_old_lease_does_not_wait(new_address):
    """Whoever gives back a lease that had run out opens a task that somebody else may hold by now."""
    store = small_store(new_address("k"), n_tasks=1, overlap=1, n_raters=3)
    put_settings(store, ProjectSettings(**PLAIN), now=0.0)
    old = assignment.next_task(store, "r1", now=NOW - 1000)
    assignment.next_task(store, "r2", now=NOW - 100)
    assignment.skip(store, old.id, "r1", reason="too late", now=NOW - 50)
    assert (left(store), left(store, "r2")) == (0, 1)
    assert assignment.next_work(store, "r0", now=NOW).lease is None


def test_what_waits_is_counted_by_the_indexes(tmp_path):
    store = small_store(tmp_path / "k.db")
    with store.connection() as connection:
        for counted in (True, False):
            question = _line_question((), False, counted)
            plain = question.params(who="r", audience="annotator", now=1.0, most=200, done_to=1).compile(
                dialect=connection.dialect, compile_kwargs={"literal_binds": True}
            )
            plan = "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {plain}"))
            assert "USING INDEX tasks_held (audience=? AND free_at<?" in plan, plan
            assert "USING INDEX tasks_open (state=? AND audience=?" in plan, plan
            for line in ("SCAN tasks", "SCAN assignments", "TEMP B-TREE"):
                assert line not in plan, plan
