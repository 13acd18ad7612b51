"""Leases: nobody is kept waiting, nobody gets the same task twice, no task gets more answers than it asked for."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback_cases import small_store, vote
from karat.errors import LeaseError, StoreError


def test_a_task_is_never_held_by_more_raters_than_it_needs(new_address):
    store = small_store(new_address("k"), n_tasks=1, overlap=2)
    held = [store.lease_next(f"r{i}", now=0.0, lease_s=60.0) for i in range(4)]
    assert [lease is not None for lease in held] == [True, True, False, False]
    assert len({lease.id for lease in held[:2]}) == 2


def test_asking_again_gives_the_same_lease(new_address):
    store = small_store(new_address("k"))
    first = store.lease_next("r0", now=0.0, lease_s=60.0)
    again = store.lease_next("r0", now=30.0, lease_s=60.0)
    assert (again.id, again.task) == (first.id, first.task)
    assert again.expires_at == 90.0


def test_a_rater_goes_through_every_task_once(new_address):
    store = small_store(new_address("k"), n_tasks=6, overlap=1)
    seen = []
    while lease := store.lease_next("r0", now=0.0):
        seen.append(lease.task.id)
        store.submit(vote(lease.task, "r0"), now=1.0)
    assert seen == [task.id for task in store.tasks()]
    assert store.lease_next("r1", now=0.0) is None


def test_an_expired_lease_is_offered_to_others_and_the_late_answer_is_kept(new_address):
    store = small_store(new_address("k"), n_tasks=1, overlap=1)
    first = store.lease_next("r0", now=0.0, lease_s=60.0)
    assert store.lease_next("r1", now=59.0) is None
    second = store.lease_next("r1", now=60.0)
    assert second.task == first.task
    late = store.submit(vote(first.task, "r0"), now=61.0)
    in_time = store.submit(vote(second.task, "r1"), now=62.0)
    assert (late.late, in_time.late) == (True, False)
    assert store.n_judgements() == 2


def test_the_first_rater_may_take_an_expired_task_up_again(new_address):
    store = small_store(new_address("k"), n_tasks=1, overlap=1)
    first = store.lease_next("r0", now=0.0, lease_s=60.0)
    again = store.lease_next("r0", now=100.0, lease_s=60.0)
    assert again.task == first.task
    assert again.id != first.id
    assert not store.submit(vote(again.task, "r0"), now=120.0).late


def test_a_heartbeat_extends_only_ones_own_live_lease(new_address):
    store = small_store(new_address("k"), n_tasks=1, overlap=1)
    lease = store.lease_next("r0", now=0.0, lease_s=60.0)
    assert store.heartbeat(lease.id, "r0", now=50.0, lease_s=60.0) == 110.0
    assert store.lease_next("r1", now=100.0) is None
    with pytest.raises(LeaseError, match="no live lease of 'r1'"):
        store.heartbeat(lease.id, "r1", now=100.0)
    with pytest.raises(LeaseError, match="ask for the next task"):
        store.heartbeat(lease.id, "r0", now=111.0)


def test_a_skipped_task_goes_to_others_and_does_not_come_back(new_address):
    store = small_store(new_address("k"), n_tasks=2, overlap=1)
    lease = store.lease_next("r0", now=0.0)
    store.skip(lease.id, "r0", "I know the author")
    assert store.lease_next("r0", now=1.0).task != lease.task
    assert store.lease_next("r1", now=1.0).task == lease.task
    assert store.skips() == [(lease.task.id, "r0", "I know the author")]
    with pytest.raises(LeaseError, match="nothing was skipped"):
        store.skip(lease.id, "r0", "again")


def test_a_correction_does_not_count_as_a_second_answer(new_address):
    store = small_store(new_address("k"), n_tasks=1, overlap=2)
    lease = store.lease_next("r0", now=0.0)
    store.submit(vote(lease.task, "r0", key="1"), now=1.0)
    store.submit(vote(lease.task, "r0", key="2", level=0), now=2.0)
    assert store.lease_next("r1", now=3.0) is not None


def test_named_pairs_follow_the_same_rules(new_address):
    store = small_store(new_address("k"), n_tasks=2, overlap=1)
    first, second = (task.id for task in store.tasks())
    leases = store.lease_many([(first, "r0"), (first, "r1"), (second, "r1")], now=0.0, lease_s=60.0)
    assert [lease is not None for lease in leases] == [True, False, True]
    store.submit(vote(leases[0].task, "r0"), now=1.0)
    assert store.lease_many([(first, "r0"), (second, "r1")], now=1.0)[0] is None
    assert store.lease_many([(second, "r1")], now=2.0)[0].id == leases[2].id
    with pytest.raises(StoreError, match="unknown task task:none"):
        store.lease_many([("task:none", "r0")], now=0.0)
    with pytest.raises(StoreError, match="the rater 'nobody'"):
        store.lease_next("nobody", now=0.0)


def test_batches_are_leased_apart(new_address):
    store = small_store(new_address("k"))
    assert store.lease_next("r0", now=0.0, batch="other") is None
    assert store.lease_next("r0", now=0.0, batch="main") is not None


def test_many_threads_never_over_assign(new_address):
    store = small_store(new_address("k"), n_prompts=4, n_tasks=15, overlap=3, n_raters=8)

    def work(rater: str) -> list[str]:
        done = []
        while lease := store.lease_next(rater, now=0.0):
            store.submit(vote(lease.task, rater), now=0.0)
            done.append(lease.task.id)
        return done

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, [f"r{i}" for i in range(8)]))
    assert all(len(set(each)) == len(each) for each in done)
    assert Counter(task for each in done for task in each) == {task.id: 3 for task in store.tasks()}
