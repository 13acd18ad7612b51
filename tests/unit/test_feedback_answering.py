"""From a lease to a judgement, on both databases: once, in order, and never over a seal."""

from __future__ import annotations

import concurrent.futures

import pytest

from feedback_cases import small_store
from karat.errors import LeaseError, StoreError
from karat.feedback.documents import ProjectSettings, put_settings
from karat.feedback.people import accounts, drafts
from karat.feedback.record.seals import seal
from karat.feedback.store import Store
from karat.feedback.work.answering import Given, submit_work, work_of
from karat.feedback.work.assignment import next_task

NOW = 1_790_000_000.0
HIGH, LOW = {"level": 6, "n_levels": 7}, {"level": 0, "n_levels": 7}


@pytest.fixture
def store(new_address) -> Store:
    return small_store(new_address("answering"), overlap=2)


def rater(store: Store) -> str:
    return accounts.make_account(store, "annotator", now=NOW).annotator or ""


def taken(store: Store, who: str, now: float = NOW):
    lease = next_task(store, who, now=now)
    assert lease is not None
    return work_of(store, lease.id, who)


def test_ten_at_once_under_one_key_are_one(store):
    who = rater(store)
    work = taken(store, who)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: submit_work(store, work, Given(HIGH, "k"), now=NOW + 1), range(10)))
    assert len({record.id for record in found}) == 1
    assert store.n_judgements() == 1


def test_ten_at_once_with_different_answers_are_a_chain(store):
    who = rater(store)
    work = taken(store, who)

    def send(i: int):
        return submit_work(store, work, Given({"level": i % 7, "n_levels": 7}, f"k{i}"), now=NOW + i)

    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        list(pool.map(send, range(7)))
    records = store.records()
    assert len(records) == 7
    assert [record.judgement.supersedes for record in records] == [None, *(record.id for record in records[:-1])]
    assert len(drafts.history(store, who, 10)) == 1


def test_two_raters_do_not_correct_one_another(store):
    first, second = rater(store), rater(store)
    for who, value in ((first, HIGH), (second, LOW)):
        submit_work(store, taken(store, who), Given(value, "same"), now=NOW)
    assert [record.judgement.supersedes for record in store.records()] == [None, None]
    assert len({record.judgement.task_id for record in store.records()}) == 1


def test_a_sealed_answer_is_not_corrected(store):
    who = rater(store)
    work = taken(store, who)
    stored = submit_work(store, work, Given(HIGH, "k1"), now=NOW)
    assert seal(store, now=NOW) is not None
    assert submit_work(store, work, Given(HIGH, "k1"), now=NOW) == stored
    assert submit_work(store, work, Given(HIGH, "k2"), now=NOW) == stored
    with pytest.raises(StoreError, match="sealed"):
        submit_work(store, work, Given(LOW, "k3"), now=NOW)
    assert store.n_judgements() == 1


def test_a_correction_names_the_newest_answer(store):
    who = rater(store)
    work = taken(store, who)
    first = submit_work(store, work, Given(HIGH, "k1"), now=NOW)
    second = submit_work(store, work, Given(LOW, "k2", supersedes=first.id), now=NOW)
    assert second.judgement.supersedes == first.id
    with pytest.raises(StoreError, match="corrected it already"):
        submit_work(store, work, Given(HIGH, "k3", supersedes=first.id), now=NOW)
    with pytest.raises(StoreError, match="no such answer"):
        submit_work(store, taken(store, who), Given(HIGH, "k4", supersedes=second.id), now=NOW)


def test_what_the_server_knows_is_written_down(store):
    put_settings(store, ProjectSettings(experiments={"pay": {"high": 1.0}}), now=NOW)
    who = rater(store)
    work = taken(store, who)
    again = taken(store, who, NOW + 60)  # looking again does not start the clock anew
    assert again.leased_at == work.leased_at == NOW
    stored = submit_work(store, again, Given(HIGH, "k", reason="so", shown={"page": "p"}), now=NOW + 75.25)
    assert stored.judgement.shown == {
        "page": "p", "arms": {"pay": "high"}, "question": work.question.id, "server_s": 75.25,
        "order_propensity": 0.5,
    }  # fmt: skip
    assert stored.judgement.shown_order == work.order
    assert stored.judgement.reason == "so"


def test_a_lease_of_nobody_and_of_somebody_else_are_the_same(store):
    first, second = rater(store), rater(store)
    lease = taken(store, first).lease_id
    said = []
    for name, who in ((lease, second), ("lease:nothing", second), ("", first)):
        with pytest.raises(LeaseError) as found:
            work_of(store, name, who)
        said.append(str(found.value))
    assert len(set(said)) == 1
