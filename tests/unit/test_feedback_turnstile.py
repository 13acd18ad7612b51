"""The writers' lock: one at a time, nobody for ever, and a timeout that says so."""

import threading
from concurrent.futures import ThreadPoolExecutor

from karat.feedback.turnstile import Turnstile


def waiting(lock, n):
    while len(lock._waiting) < n:
        threading.Event().wait(0.001)


def test_one_at_a_time():
    lock, inside, most = Turnstile(), [0], [0]

    def work(_):
        for _ in range(50):
            assert lock.acquire(30.0)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            lock.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most == [1]
    assert lock.acquire(0.0)


def test_who_has_lost_patience_is_served_before_one_who_comes_running():
    lock, order = Turnstile(patience_s=0.0), []

    def work(name):
        assert lock.acquire(30.0)
        order.append(name)
        lock.release()

    assert lock.acquire(0.0)
    with ThreadPoolExecutor(3) as pool:
        for i, name in enumerate(("first", "second", "third")):
            pool.submit(work, name)
            waiting(lock, i + 1)
        lock.release()
        assert lock.acquire(30.0)  # at once, and yet after all of them
        order.append("hasty")
        lock.release()
    assert order == ["first", "second", "third", "hasty"]


def test_a_patient_thread_can_be_passed_but_is_called_when_the_lock_is_free():
    lock, got = Turnstile(patience_s=1e9), []
    assert lock.acquire(0.0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: got.append(lock.acquire(30.0)))
        waiting(lock, 1)
        lock.release()
    assert got == [True]


def test_a_timeout_leaves_no_trace():
    lock = Turnstile(patience_s=0.0)
    assert lock.acquire(0.0)
    assert not lock.acquire(0.01)
    assert not lock._waiting
    lock.release()
    assert lock.acquire(0.0)
