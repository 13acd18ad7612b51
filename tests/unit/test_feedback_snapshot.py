"""Snapshots: the same judgements give the same bytes, and an altered byte is named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from feedback_cases import small_store, vote
from karat.errors import LedgerError, StoreError
from karat.feedback.people import care
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.records import Annotator, vote_of


def test_votes_come_back_as_the_judgements_say(tmp_path):
    store = small_store(tmp_path / "k.db")
    given = [vote(task, f"r{i}", level=(i + j) % 3) for j, task in enumerate(store.tasks()) for i in range(3)]
    store.submit_many(given)
    snapshot = write_snapshot(store, tmp_path / "snap")
    prompts = store.prompts()
    expected = sorted(
        (vote_of(each, topic=prompts[each.prompt_id].topic) for each in given), key=lambda each: each.judgement_id
    )
    assert snapshot.votes == expected
    assert snapshot.prompts.keys() == {each.prompt_id for each in given}
    assert all(store.responses()[key] == response for key, response in snapshot.responses.items())
    assert set(snapshot.annotators) == {"r0", "r1", "r2"}
    assert read_snapshot(tmp_path / "snap") == snapshot


def test_the_same_judgements_give_the_same_bytes_in_any_order(tmp_path):
    for name, step in (("a", 1), ("b", -1)):
        store = small_store(tmp_path / f"{name}.db")
        store.submit_many([vote(task, "r0", origin="simulated") for task in store.tasks()][::step])
        write_snapshot(store, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 8
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_nothing_that_raters_say_about_themselves_is_in_a_snapshot(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.submit(vote(store.tasks()[0], "r0"))
    care.save_demographics(store, "r0", {"gender": "a-word-of-hers"}, consent="v1", now=1.0)
    snapshot = write_snapshot(store, tmp_path / "snap")
    assert snapshot.annotators["r0"].group is None
    assert not [path for path in (tmp_path / "snap").iterdir() if b"a-word-of-hers" in path.read_bytes()]


def test_missing_answers_are_kept_apart_and_counted(tmp_path):
    store = small_store(tmp_path / "k.db")
    first, second = store.tasks()[:2]
    store.submit(vote(first, "r0"))
    cannot = dataclasses.replace(vote(second, "r0"), value={"missing": "cannot judge"}, reason="not my language")
    store.submit(cannot)
    snapshot = write_snapshot(store, tmp_path / "snap")
    assert (len(snapshot.votes), snapshot.n_missing) == (1, 1)
    assert snapshot.judgements == [cannot]


def test_the_newest_judgement_counts(tmp_path):
    store = small_store(tmp_path / "k.db")
    first, second = store.tasks()[:2]
    store.submit(vote(first, "r0", key="2", level=2, created_at="2026-01-02T00:00:00Z"))
    store.submit(vote(first, "r0", key="1", level=0, created_at="2026-01-01T00:00:00Z"))
    wrong = store.submit(vote(second, "r0", key="3", level=0, created_at="2026-01-03T00:00:00Z"))
    store.submit(vote(second, "r0", key="4", level=1, supersedes=wrong.id, created_at="2026-01-03T00:00:00Z"))
    snapshot = write_snapshot(store, tmp_path / "snap")
    assert {each.prompt_id + each.a + each.b: each.level for each in snapshot.votes} == {
        first.prompt_id + "".join(first.response_ids): 2,
        second.prompt_id + "".join(second.response_ids): 1,
    }
    assert snapshot.n_superseded == 2


def test_votes_of_unnamed_raters_do_not_replace_one_another(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.add_annotators([Annotator(UNKNOWN_ANNOTATOR)])
    task = store.tasks()[0]
    store.submit_many([vote(task, UNKNOWN_ANNOTATOR, key=str(i)) for i in range(3)])
    assert len(write_snapshot(store, tmp_path / "snap").votes) == 3


def test_late_votes_and_unknown_times_are_in_the_columns(tmp_path):
    store = small_store(tmp_path / "k.db", n_tasks=2)
    first = store.lease_next("r0", now=0.0, lease_s=1.0).task
    store.submit(vote(first, "r0", active_s=4.0), now=2.0)
    store.submit(vote(store.tasks()[1], "r0", shown_order=()), now=2.0)
    snapshot = write_snapshot(store, tmp_path / "snap")
    assert snapshot.n_late == 1
    assert sorted(each.side for each in snapshot.votes) == [-1, 0]
    with np.load(tmp_path / "snap" / "votes.npz", allow_pickle=False) as columns:
        assert columns["late"].sum() == 1
        assert np.isnan(columns["active_s"]).sum() == 1


def test_writing_twice_is_harmless_and_never_changes_a_snapshot(tmp_path):
    store = small_store(tmp_path / "k.db")
    with pytest.raises(StoreError, match="found no judgements in the store"):
        write_snapshot(store, tmp_path / "snap")
    store.submit(vote(store.tasks()[0], "r0"))
    first = write_snapshot(store, tmp_path / "snap")
    assert write_snapshot(store, tmp_path / "snap") == first
    store.submit(vote(store.tasks()[1], "r0"))
    with pytest.raises(StoreError, match="a snapshot is never changed: give a new path"):
        write_snapshot(store, tmp_path / "snap")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["snap"]


def test_altered_and_missing_files_are_named(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.submit_many([vote(task, "r0") for task in store.tasks()])
    write_snapshot(store, tmp_path / "snap")
    for name, old, new, expected in (
        ("commitments.jsonl", b"commit:", b"commot:", "altered"),
        ("votes.npz", None, b"\0", "votes.npz: differs"),
        ("responses.jsonl", b"word", b"w0rd", "response .* was altered"),
        ("prompts.jsonl", b"question", b"quest1on", "prompt .* was altered"),
        ("snapshot.json", b'"format":2', b'"format":3', "format 3; expected 2"),
        ("snapshot.json", b"{", b"", "not readable as the head of a snapshot"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "snap", copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data + new if old is None else data.replace(old, new, 1))
        with pytest.raises(LedgerError, match=expected):
            read_snapshot(copy)
        shutil.rmtree(copy)
    with pytest.raises(LedgerError, match="no such file"):
        read_snapshot(tmp_path / "none")


def test_an_erased_text_leaves_the_root_whole(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.submit_many([vote(task, "r0") for task in store.tasks()])
    before = write_snapshot(store, tmp_path / "snap")
    path = tmp_path / "snap" / "responses.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"] = None
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    after = read_snapshot(tmp_path / "snap")
    assert after.root == before.root
    assert after.responses[lines[0]["id"]].text == ""
    assert after.votes == before.votes
