"""Drafts: nothing entered is lost, and what was submitted lately can be changed until it is sealed."""

import pytest

from feedback_cases import small_store, vote
from karat.errors import InputError, LeaseError
from karat.feedback.people import drafts
from karat.feedback.record.seals import seal


@pytest.fixture
def store(new_address):
    return small_store(new_address("k"))


def test_the_newest_draft_of_a_rater_and_a_task_is_kept(store):
    task = store.lease_next("r0", now=0.0).task
    drafts.save_draft(store, task.id, "r0", {"reason": "half a"}, now=1.0)
    saved = drafts.save_draft(store, task.id, "r0", {"reason": "half a thought", "level": 4}, now=2.0)
    assert drafts.draft(store, task.id, "r0") == saved
    assert (saved.body["reason"], saved.saved_at) == ("half a thought", 2.0)
    assert drafts.draft(store, task.id, "r1") is None
    drafts.drop_draft(store, task.id, "r0")
    assert drafts.draft(store, task.id, "r0") is None


def test_a_draft_outlives_its_lease_but_needs_to_have_had_one(store):
    task = store.lease_next("r0", now=0.0, lease_s=60.0).task
    drafts.save_draft(store, task.id, "r0", {"reason": "late"}, now=500.0)
    with pytest.raises(LeaseError, match="found no lease of 'r1' on that task"):
        drafts.save_draft(store, task.id, "r1", {}, now=1.0)
    with pytest.raises(LeaseError, match="on that task"):
        drafts.save_draft(store, "task:none", "r0", {}, now=1.0)


def test_a_draft_has_a_largest_size(store):
    task = store.lease_next("r0", now=0.0).task
    drafts.save_draft(store, task.id, "r0", {"reason": "x" * 399_000}, now=1.0)
    with pytest.raises(InputError, match="expected at most 400000"):
        drafts.save_draft(store, task.id, "r0", {"reason": "é" * 200_000}, now=2.0)
    assert len(drafts.draft(store, task.id, "r0").body["reason"]) == 399_000


def submitted(store, n):
    records = []
    for _ in range(n):
        lease = store.lease_next("r0", now=0.0)
        records.append(store.submit(vote(lease.task, "r0"), now=1.0))
    return records


def test_the_last_submissions_come_newest_first_and_without_what_was_corrected(store):
    first, second, third = submitted(store, 3)
    corrected = store.submit(vote(store.tasks()[1], "r0", level=0, key="undo", supersedes=second.id), now=2.0)
    store.submit(vote(store.tasks()[0], "r1"), now=3.0)
    found = drafts.history(store, "r0", 5)
    assert [each.record.id for each in found] == [corrected.id, third.id, first.id]
    assert [each.task.id for each in found] == [store.tasks()[i].id for i in (1, 2, 0)]
    assert [each.record.id for each in drafts.history(store, "r0", 1)] == [corrected.id]
    assert all(each.lease_id and not each.sealed for each in found)


def test_what_is_sealed_is_changed_no_more(store):
    first, second = submitted(store, 2)
    assert seal(store, now=2.0) is not None
    third = submitted(store, 1)[0]
    assert [each.record.id for each in drafts.history(store, "r0", 5)] == [third.id]
    shown = drafts.history(store, "r0", 5, sealed=True)
    assert [(each.record.id, each.sealed) for each in shown] == [(third.id, False), (second.id, True), (first.id, True)]
