"""The order in which raters see responses: balanced over the raters of a task, with the same chance for every order."""

import dataclasses
import random
from collections import Counter
from itertools import permutations

import pytest

from feedback_cases import small_store, vote
from karat.feedback import schema as tables
from karat.feedback.documents import ProjectSettings, put_settings
from karat.feedback.schema import task_row
from karat.feedback.work import assignment, checks
from karat.feedback.work.answering import Given, submit_work, work_of
from karat.feedback.work.orders import balanced_order, draw_order, order_alone, order_propensity
from karat.records import Task

PLAIN = ProjectSettings(gold_rate=0.0, repeat_rate=0.0)
LEVEL = {"level": 1, "n_levels": 3}


def spread(orders):
    """The largest difference between how often two responses stood in one place."""
    n = len(orders[0])
    counts = [Counter(order[place] for order in orders) for place in range(n)]
    return max(max(count[i] for i in range(n)) - min(count[i] for i in range(n)) for count in counts)


def row_of(task, state="open"):
    return type("Row", (), task_row(task) | {"state": state})


def draws(task, n, key=b"key"):
    shown = []
    for i in range(n):
        shown.append(draw_order(key, None, row_of(task), f"r{i}", shown))
    return shown


def queue(address, **kwargs):
    store = small_store(address, **kwargs)
    put_settings(store, PLAIN, now=0.0)
    return store


def answer(store, who, *, now):
    lease = assignment.next_task(store, who, now=now)
    work = work_of(store, lease.id, who)
    return submit_work(store, work, Given(LEVEL, key=f"{who} {lease.id}"), now=now).judgement


@pytest.mark.parametrize("n_responses", [2, 3, 4, 5])
def test_places_are_as_even_as_the_number_of_raters_allows(n_responses):
    kind = "comparison" if n_responses == 2 else "ranking"
    ids = tuple(f"response:{i}" for i in range(n_responses))
    for i in range(30):
        shown = draws(Task(f"prompt:{i}", ids, kind=kind), 11)
        assert all(spread(shown[:n]) <= 1 for n in range(1, 12))
        assert spread(shown[:n_responses]) == 0


def test_whoever_comes_when_has_every_order_with_the_same_chance():
    for n_responses, most in ((2, 75), (3, 75)):
        ids = tuple(f"response:{i}" for i in range(n_responses))
        shown = [draws(Task(f"prompt:{i}", ids, kind="ranking"), 4) for i in range(1200)]
        expected = 1200 * order_propensity(n_responses)
        for turn in range(4):  # standard deviation at most 17.3
            counts = Counter(orders[turn] for orders in shown)
            assert set(counts) == set(permutations(range(n_responses)))
            assert all(abs(n - expected) < most for n in counts.values()), (turn, counts)


def test_orders_of_another_design_are_balanced_as_far_as_that_goes():
    assert balanced_order((0, 1), [(0, 1), (0, 1), (0, 1)]) == (1, 0)
    # 0 stood first twice; of the two rotations that put something else there, both repeat one place
    assert balanced_order((0, 1, 2), [(0, 2, 1), (0, 1, 2)]) == (1, 2, 0)
    assert balanced_order((), []) == ()
    assert balanced_order((0,), [(0,)]) == (0,)


@pytest.mark.parametrize("overlap", [1, 2, 3, 4, 5])
def test_the_sides_of_a_task_that_is_answered_in_order_are_even(tmp_path, overlap):
    store = queue(tmp_path / "k.db", n_tasks=10, overlap=overlap, n_raters=5)
    shown = {}
    for who in (f"r{i}" for i in range(overlap)):
        for _ in range(10):
            judgement = answer(store, who, now=1.0)
            assert judgement.shown["order_propensity"] == 0.5
            shown.setdefault(judgement.task_id, []).append(judgement.shown_order)
    assert len(shown) == 10
    assert {len(orders) for orders in shown.values()} == {overlap}
    assert max(map(spread, shown.values())) == overlap % 2
    assert {orders[0] for orders in shown.values()} == {(0, 1), (1, 0)}


def test_places_given_up_are_taken_by_others(new_address):
    """Skips, leases that run out and come back, and raters in any order: the last to come even out what they can."""
    store = queue(new_address("k"), n_tasks=1, overlap=4, n_raters=6)
    first = assignment.next_work(store, "r0", now=0.0)
    second = assignment.next_work(store, "r1", now=0.0)
    third = assignment.next_work(store, "r2", now=0.0)
    assert (second.shown_order, third.shown_order) == (first.shown_order[::-1], first.shown_order)
    assignment.skip(store, first.lease.id, "r0", reason="unclear", now=1.0)
    answer(store, "r2", now=1.0)
    # r1's lease runs out, so that one answer, on the side of r0, is all that counts
    assert assignment.next_work(store, "r3", now=10_000.0).shown_order == second.shown_order
    assert assignment.next_work(store, "r4", now=10_000.0).shown_order in permutations(range(2))
    # hers is what she had: its page may still be open
    again = assignment.next_work(store, "r1", now=10_001.0)
    assert (again.lease.id != second.lease.id, again.shown_order) == (True, second.shown_order)
    assert work_of(store, second.lease.id, "r1").order == second.shown_order


def test_a_random_crowd_leaves_no_task_lopsided_but_by_who_gave_up(tmp_path):
    rng = random.Random(0)
    store = queue(tmp_path / "k.db", n_tasks=12, overlap=4, n_raters=8)
    given_up, now = set(), 0.0
    for _ in range(200):
        who, now = f"r{rng.randrange(8)}", now + 60.0
        offer = assignment.next_work(store, who, now=now)
        if offer.lease is None:
            continue
        if rng.random() < 0.3:
            given_up.add(offer.lease.task.id)
            if rng.random() < 0.5:
                assignment.skip(store, offer.lease.id, who, reason="unclear", now=now)
        else:
            answer(store, who, now=now)
    shown = {}
    for judgement in store.judgements():
        shown.setdefault(judgement.task_id, []).append(judgement.shown_order)
    assert 4 < len(given_up) < 12
    assert all(spread(orders) <= 1 for task_id, orders in shown.items() if task_id not in given_up)
    assert sum(spread(orders) > 1 for orders in shown.values()) <= 2
    assert max(map(spread, shown.values())) <= 2


def test_answers_that_were_not_handed_out_count_with_the_order_they_say(new_address):
    store = queue(new_address("k"), n_tasks=4, overlap=2, n_raters=2)
    for i, task in enumerate(store.tasks()):
        store.lease_many([(task.id, "r0")], now=0.0)
        store.submit(vote(task, "r0", shown_order=((0, 1), (1, 0))[i % 2]), now=0.0)
    assert [answer(store, "r1", now=1.0).shown_order for _ in range(4)] == [(1, 0), (0, 1), (1, 0), (0, 1)]


def test_silent_checks_are_drawn_for_each_rater_alone(tmp_path):
    store = queue(tmp_path / "k.db", n_tasks=4)
    gold = checks.add_gold(store, [(store.tasks()[0], LEVEL)], version="1")[0]
    shown = Counter(draw_order(b"key", None, row_of(gold, "check"), f"r{i}", []) for i in range(1200))
    assert all(abs(n - 600) < 75 for n in shown.values())
    assert set(shown) == {(0, 1), (1, 0)}


def test_a_repeat_shows_the_opposite_of_what_its_original_showed(new_address):
    store = queue(new_address("k"), n_tasks=6, overlap=2, n_raters=2)
    given = [answer(store, who, now=1.0) for who in ("r0", "r1") for _ in range(6)]
    settings = dataclasses.replace(PLAIN, repeat_rate=0.99, repeat_gap=0)
    store.add_tasks([dataclasses.replace(task, batch="more") for task in store.tasks()])  # work to hide checks in
    for judgement in given:
        checks.plan_repeats(store, judgement.annotator, [judgement.id])
    put_settings(store, settings, now=2.0)
    first = {judgement.id: judgement.shown_order for judgement in given}
    for who in ("r0", "r1"):
        while (lease := assignment.next_task(store, who, now=3.0)) is not None:
            shown, original = answer(store, who, now=3.0).shown_order, lease.task.batch.removeprefix("repeat:")
            assert shown == first.pop(original, shown[::-1])[::-1]
    assert first == {}


def test_what_was_handed_out_without_an_order_keeps_the_one_that_its_page_has(new_address):
    """A store of version 0002 drew each order anew from its key."""
    store = queue(new_address("k"), n_tasks=20, overlap=2)
    lease = assignment.next_task(store, "r0", now=0.0)
    with store.connection(write=True) as connection:
        connection.execute(tables.assignments.update().values(shown_order=None))
    key = assignment.WorkKeys.of(store).order
    expected = order_alone(lease.task, "r0", key)
    assert assignment.next_work(store, "r0", now=1.0).shown_order == expected
    assert assignment.lease_of(store, lease.id, "r0", now=1.0).shown_order == expected
    assert assignment.next_work(store, "r0", now=10_000.0).shown_order == expected  # and so does another lease
    assert answer(store, "r0", now=10_001.0).shown_order == expected
    again = dataclasses.replace(lease.task, batch="repeat:judgement:x", reserved_for="r0")
    assert order_alone(again, "r0", key) == expected[::-1]
