"""Standing: a person decides, the rater reads why and can answer, and a release undoes it."""

import pytest

from feedback_cases import small_store, vote
from karat.errors import InputError, LeaseError, StoreError
from karat.feedback.detect.evidence import Flag
from karat.feedback.people import standing
from karat.feedback.work import assignment


@pytest.fixture
def store(new_address):
    return small_store(new_address("k"), n_tasks=3, overlap=1)


def test_a_quarantine_stops_work_and_a_release_undoes_it(store):
    held = assignment.next_task(store, "r0", now=0.0)
    standing.quarantine(store, "r0", reason="the left side 40 times of 40", by="account:a", now=1.0)
    assert standing.standing_of(store, "r0").state == "quarantined"
    assert standing.quarantined(store) == {"r0"}
    assert assignment.next_work(store, "r0", now=2.0).reason == "quarantined"
    assert assignment.next_task(store, "r1", now=2.0).task.id == held.task.id  # back in the queue at once
    with pytest.raises(LeaseError):
        assignment.heartbeat(store, held.id, "r0", now=2.0)
    standing.answer_quarantine(store, "r0", " I broke my right arm. ", by="account:r0", now=3.0)
    assert standing.standing_of(store, "r0").state == "quarantined"
    standing.release(store, "r0", reason="she wrote, and her gold items are right", by="account:a", now=4.0)
    found = standing.standing_of(store, "r0")
    assert found.state == "working"
    assert [event.action for event in found.events] == ["quarantined", "answered", "released"]
    assert found.events[1].reason == "I broke my right arm."
    assert standing.quarantined(store) == frozenset()
    assert assignment.next_task(store, "r0", now=5.0) is not None


def test_an_answer_given_all_the_same_is_kept_and_late(store):
    held = assignment.next_task(store, "r0", now=0.0)
    standing.quarantine(store, "r0", reason="a ring", by="account:a", now=1.0)
    assert store.submit(vote(held.task, "r0"), now=2.0).late


def test_nothing_happens_twice_or_without_words(store):
    for act in (standing.release, standing.quarantine):
        with pytest.raises((InputError, StoreError)):
            act(store, "r0", reason=" ", by="account:a", now=1.0)
    with pytest.raises(StoreError, match="is not quarantined; nothing was released"):
        standing.release(store, "r0", reason="why not", by="account:a", now=1.0)
    with pytest.raises(StoreError, match="nothing to answer"):
        standing.answer_quarantine(store, "r0", "but why?", by="account:r0", now=1.0)
    standing.quarantine(store, "r0", reason="a ring", by="account:a", now=1.0)
    with pytest.raises(StoreError, match="quarantined already"):
        standing.quarantine(store, "r0", reason="again", by="account:a", now=2.0)
    with pytest.raises(InputError, match="answer: found 10001 characters; expected 1 to 10000"):
        standing.answer_quarantine(store, "r0", "x" * 10_001, by="account:r0", now=2.0)
    assert len(standing.standing_of(store, "r0").events) == 1


def test_flags_are_kept_once_and_change_nothing(store):
    ring = Flag(("r0", "r1"), "ring", 4.5, 1e-6, 30, "agree in 30 of 30 where 18 would be usual")
    assert standing.record_flags(store, [ring, ring], now=1.0) == 2
    assert standing.record_flags(store, [ring], now=2.0) == 0
    assert [(each.annotator, each.at) for each in standing.flags(store)] == [("r0", 1.0), ("r1", 1.0)]
    [flag] = standing.flags(store, "r1")
    assert (flag.detector, flag.statistic, flag.p_value, flag.n_votes) == ("ring", 4.5, 1e-6, 30)
    assert standing.standing_of(store, "r0").state == "working"
    assert assignment.next_task(store, "r0", now=3.0) is not None
