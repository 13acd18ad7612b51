"""Erasing a person: nothing leads to her any more, the chain holds, and what fed on her votes is listed."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

import postgresql_server
from feedback_cases import small_store, vote
from karat.errors import LedgerError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.record.erasure import (
    erase_account,
    erase_annotator,
    erase_from_snapshots,
    erase_judgements,
    fed_artefacts,
)
from karat.feedback.record.seals import seal
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.feedback.store import Store, open_store
from karat.ledger.artifacts import ref_of, write_json
from karat.ledger.lineage import ErasedWords, Manifest
from karat.ledger.manifest import note_erased, verify_run, write_manifest
from karat.records import Judgement

SECRETS = ("secret-reason", "secret-answer", "secret-draft", "secret-age", "secret@mail", "PROLIFIC-7", "secret-skip",
           "secret-plea", "secret-flag", "secret-note", "anna-login", "secret-sitting")  # fmt: skip


def person_store(address) -> Store:
    """A store in which rater r0 left something in every table that holds anything about a person."""
    store = small_store(address)
    first, second, third = store.tasks()[:3]
    asked = dataclasses.replace(second, kind="critique", response_ids=second.response_ids[:1])
    store.add_tasks([asked])
    store.submit(vote(first, "r0", reason="secret-reason"))
    store.submit(
        Judgement(asked.id, "critique", asked.prompt_id, asked.response_ids, {"text": "secret-answer"}, "r0", (), "v1",
                  "2026-01-01T00:00:00Z")
    )  # fmt: skip
    store.submit_many([vote(task, "r0") for task in store.tasks()[3:6]])
    store.submit_many([vote(task, "r1", reason="somebody else's words") for task in store.tasks()[:4]])
    lease = store.lease_many([(third.id, "r0")], now=0.0)[0]
    store.skip(lease.id, "r0", "secret-skip")
    rows = (
        (people.accounts, {"id": "account:1", "login": "anna-login", "role": "annotator", "annotator": "r0", "state": "active",
                           "password": "hash", "contact": "secret@mail", "outside": '{"prolific":"PROLIFIC-7"}', "created_at": 1.0}),
        (people.accounts, {"id": "account:2", "login": "bea", "role": "admin", "state": "active", "contact": "bea@mail", "created_at": 1.0}),
        (people.invites, {"token_hash": "h", "account": "account:1", "created_at": 1.0, "expires_at": 9.0}),
        (people.sessions, {"token_hash": "h", "account": "account:1", "kind": "browser", "created_at": 1.0, "expires_at": 9.0, "seen_at": 1.0}),
        (people.drafts, {"task_id": third.id, "annotator": "r0", "body": "secret-draft", "saved_at": 1.0}),
        (people.demographics, {"annotator": "r0", "body": '{"age":"secret-age"}', "consent": "v1", "saved_at": 1.0}),
        (people.queue_log, {"task_id": third.id, "by": "r0", "action": "skipped", "reason": "secret-skip", "at": 1.0}),
        (people.standing, {"annotator": "r0", "action": "answered", "reason": "secret-plea", "by": "r0", "at": 1.0}),
        (people.flags, {"annotator": "r0", "detector": "side", "statistic": 3.0, "p_value": 0.01, "n_votes": 40, "detail": "secret-flag", "at": 1.0}),
        (people.admin_log, {"account": "account:2", "action": "quarantine", "subject": "r0", "detail": "secret-note", "at": 1.0}),
        (people.admin_log, {"account": "account:2", "action": "publish", "subject": "guideline", "detail": "v2", "at": 1.0}),
        (tables.provenance, {"judgement_id": store.records()[0].id, "file": "votes.jsonl", "line": 1, "session": "secret-sitting"}),
    )  # fmt: skip
    with store.connection(write=True) as connection:
        for table, row in rows:
            connection.execute(table.insert().values(**row))
    seal(store, now=2.0)
    return store


def everything(store: Store) -> str:
    """Every value of every table as text."""
    with store.connection() as connection:
        rows = (row for table in tables.metadata.sorted_tables for row in connection.execute(sa.select(table)))
        return "\n".join(sorted(repr(tuple(row)) for row in rows))


def test_nothing_leads_to_an_erased_person_and_the_chain_holds(new_address):
    store = person_store(new_address("k"))
    before = store.records()
    assert all(secret in everything(store) for secret in SECRETS)
    done = erase_annotator(store, "r0", reason="asked by mail", by="account:2", now=50.0)
    left = everything(store)
    assert [secret for secret in SECRETS if secret in left] == []
    assert store.verify() == []
    after = store.records()
    assert [(each.id, each.commitment) for each in after] == [(each.id, each.commitment) for each in before]
    assert len(done.judgement_ids) == 5
    assert done.n_erased == 2
    assert [each.erased for each in after] == [
        each.judgement.annotator == "r0" and i < 2 for i, each in enumerate(after)
    ]
    assert done.removed == dict.fromkeys(
        ["drafts", "demographics", "invites", "sessions", "accounts", "assignments", "provenance", "queue_log", "standing",
         "flags", "admin_log"], 1
    )  # fmt: skip
    assert "bea@mail" in left
    assert "somebody else" in left
    assert seal(store, now=60.0).n == 0  # the erasure itself is an event that is sealed
    assert store.verify() == []


def test_the_files_of_the_store_do_not_hold_the_words_any_more(tmp_path):
    store = person_store(tmp_path / "k.db")
    erase_annotator(store, "r0", reason="asked", by="account:2", now=50.0)
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [secret for secret in SECRETS if secret.encode() in on_disk] == []


def test_the_files_of_a_postgresql_store_do_not_hold_the_words_any_more(postgresql):
    store = person_store(postgresql_server.new_database(postgresql))
    with store.connection() as connection:
        files = Path(connection.execute(sa.text("SHOW data_directory")).scalar()) / "base"
    if not files.is_dir():
        pytest.skip("the server keeps its files elsewhere")

    def legible() -> list[str]:
        with store.connection(write=True) as connection:
            connection.execute(sa.text("CHECKPOINT"))
        on_disk = b"".join(path.read_bytes() for path in files.rglob("*") if path.is_file())
        return [secret for secret in SECRETS if secret.encode() in on_disk]

    assert legible() == list(SECRETS)
    erase_annotator(store, "r0", reason="asked", by="account:2", now=50.0)
    assert legible() == []


def test_erasing_twice_changes_nothing_and_asks_for_a_known_rater(new_address):
    store = person_store(new_address("k"))
    before = everything(store)
    tried = erase_annotator(store, "r0", reason="asked", by="account:2", now=50.0, trial=True)
    assert everything(store) == before
    done = erase_annotator(store, "r0", reason="asked", by="account:2", now=50.0)
    assert (tried.n_erased, tried.removed) == (done.n_erased, done.removed)
    once = everything(store)
    assert "'rater erased', 'r0', 'asked; words of 2 judgements', 50.0" in once
    again = erase_annotator(store, "r0", reason="asked", by="account:2", now=51.0)
    assert (again.n_erased, again.removed) == (0, {})
    assert everything(store) == once
    with pytest.raises(StoreError, match="the rater 'nobody'"):
        erase_annotator(store, "nobody", reason="asked", by="account:2", now=50.0)
    with pytest.raises(StoreError, match="the judgement 'judgement:none'"):
        erase_judgements(store, ["judgement:none"], reason="asked", by="account:2", now=50.0)


def test_an_account_without_a_pseudonym_is_erased_and_somebody_stays_in_charge(new_address):
    store = person_store(new_address("k"))
    with pytest.raises(StoreError, match="the last active admin"):
        erase_account(store, "account:2", reason="asked", by="account:2", now=50.0)
    with store.connection(write=True) as connection:
        row = {"id": "account:3", "login": "cleo", "role": "admin", "state": "active", "created_at": 1.0}
        connection.execute(people.accounts.insert().values(**row))
        entry = {"account": "account:3", "action": "account made", "subject": "account:2", "detail": "Bea", "at": 1.0}
        connection.execute(people.admin_log.insert().values(**entry))
    before = everything(store)
    removed = erase_account(store, "account:2", reason="asked", by="account:3", now=50.0, trial=True)
    assert everything(store) == before
    assert erase_account(store, "account:2", reason="asked", by="account:3", now=50.0) == removed
    assert removed == {"accounts": 1, "admin_log": 1}
    left = everything(store)
    assert [name for name in ("bea@mail", "'bea'", "Bea") if name in left] == []
    assert "secret-note" in left  # what she decided about others stays
    assert erase_account(store, "account:2", reason="asked", by="account:3", now=51.0) == {}
    assert store.verify() == []
    with pytest.raises(StoreError, match="found the pseudonym 'r0' for 'account:1'"):
        erase_account(store, "account:1", reason="asked", by="account:3", now=50.0)
    with pytest.raises(StoreError, match="found no account for 'nobody'"):
        erase_account(store, "nobody", reason="asked", by="account:3", now=50.0)


def test_an_erasure_says_who_when_and_why(new_address):
    store = person_store(new_address("k"))
    first = store.records()[0]
    done = erase_judgements(store, [first.id, first.id], reason="asked", by="account:2", now=50.0)
    assert (done.judgement_ids, done.n_erased) == ((first.id,), 1)
    with store.connection() as connection:
        (row,) = connection.execute(sa.select(people.erasures))
    assert tuple(row)[1:] == (first.id, "asked", "account:2", 50.0)


def stage(run: Path, name: str, inputs: list[Path], outputs: list[tuple[Path, str]]) -> None:
    """A finished stage with its manifest."""
    made = tuple(ref_of(run, path, kind) for path, kind in outputs)
    read = tuple(ref_of(run, path) for path in inputs)
    write_manifest(run, Manifest(run.name, name, read, made, {}, {}, {}, None, f"2026-01-0{len(name)}", "", 0.0))


def test_what_fed_on_a_judgement_is_listed_across_runs(tmp_path):
    store = person_store(tmp_path / "k.db")
    one, two, runs = tmp_path / "runs" / "one", tmp_path / "runs" / "two", tmp_path / "runs"
    write_snapshot(store, one / "snapshots" / "main")
    for run, names in ((one, ("prompts", "reward", "policy")), (two, ("student", "other"))):
        for name in names:
            write_json(run / "models" / name, {"made": name})
    stage(one, "sft", [], [(one / "models" / "prompts", "model")])
    stage(one, "votes", [], [(one / "snapshots" / "main", "snapshot")])
    stage(one, "reward", [one / "snapshots" / "main"], [(one / "models" / "reward", "model")])
    stage(one, "finetune", [one / "models" / "reward"], [(one / "models" / "policy", "model")])
    stage(two, "distil", [one / "models" / "policy"], [(two / "models" / "student", "model")])
    stage(two, "nothing", [], [(two / "models" / "other", "model")])
    ids = [record.id for record in store.records() if record.judgement.annotator == "r0"]
    fed = fed_artefacts([runs], ids)
    assert [(each.run.name, each.path) for each in fed] == [
        ("one", "snapshots/main"), ("one", "models/reward"), ("one", "models/policy"), ("two", "models/student"),
    ]  # fmt: skip
    assert [(each.n_judgements, each.has_words) for each in fed] == [
        (5, True),
        (None, False),
        (None, False),
        (None, False),
    ]
    assert fed_artefacts([one, two], ["judgement:none"]) == ()
    assert len(fed_artefacts([tmp_path], ids)) == len(fed)  # runs lie deeper than one folder, as those of a sweep
    shutil.copytree(one, two / "models" / "within")
    assert len(fed_artefacts([two], ids)) == len(fed)  # and within one another
    shutil.rmtree(two / "models" / "within")
    done = erase_annotator(store, "r0", reason="asked", by="admin", now=50.0, runs=[runs])
    assert done.artefacts == fed
    shutil.rmtree(one / "snapshots")
    assert fed_artefacts([one], ids) == ()
    with pytest.raises(StoreError, match="found no run; expected the directory of a run"):
        fed_artefacts([tmp_path / "nowhere"], ids)


def test_words_taken_out_of_a_snapshot_are_erased_and_not_altered(tmp_path):
    store = person_store(tmp_path / "k.db")
    run = tmp_path / "run"
    before = write_snapshot(store, run / "snapshots" / "main")
    stage(run, "votes", [], [(run / "snapshots" / "main", "snapshot")])
    done = erase_annotator(store, "r0", reason="asked", by="admin", now=50.0, runs=[run])
    words = run / "snapshots" / "main" / "words.jsonl"
    assert "secret-answer" in words.read_text()
    assert erase_from_snapshots(done.artefacts, done.judgement_ids, reason="asked", now=51.0) == (words,)
    assert "secret-answer" not in words.read_text()
    (problem,) = verify_run(run)
    assert (problem.path, problem.kind, problem.fatal) == ("snapshots/main/words.jsonl", "erased", False)
    assert problem.detail == "words were taken out on request (asked)"
    after = read_snapshot(run / "snapshots" / "main")
    assert (after.root, after.votes) == (before.root, before.votes)
    assert [each.value for each in after.judgements] == [{"missing": "erased"}]
    assert erase_from_snapshots(done.artefacts, done.judgement_ids, reason="asked", now=52.0) == ()
    words.write_text("{}")
    assert [problem.kind for problem in verify_run(run)] == ["altered"]
    votes = ErasedWords("snapshots/main/votes.npz", "sha256:1", "sha256:2", "asked", 1.0)
    with pytest.raises(LedgerError, match=r"found another file than words.jsonl"):
        note_erased(run, votes)
    (run / "erased.jsonl").write_text("{}")
    with pytest.raises(LedgerError, match="not readable as a list of erasures"):
        verify_run(run)


def test_words_with_any_line_end_are_taken_out_and_a_damaged_snapshot_ends_it_before(tmp_path):
    store = small_store(tmp_path / "k.db")
    breaks = "a\u2028b\x85c\x0cd"
    tasks = store.tasks()[:2]
    given = [dataclasses.replace(vote(tasks[0], "r0", reason=breaks), value={"missing": "cannot judge"})]
    given.append(dataclasses.replace(vote(tasks[1], "r1", reason=breaks), value={"missing": "cannot judge"}))
    store.submit_many(given)
    run = tmp_path / "run"
    write_snapshot(store, run / "snapshots" / "main")
    stage(run, "votes", [], [(run / "snapshots" / "main", "snapshot")])
    words = run / "snapshots" / "main" / "words.jsonl"
    for name in ("commitments.jsonl", "words.jsonl"):
        whole = words.with_name(name).read_bytes()
        for damage in (lambda file: file.write_bytes(b"[1]"), Path.unlink):
            damage(words.with_name(name))
            with pytest.raises(LedgerError, match=rf"{name}.* restore it, or "):
                erase_annotator(store, "r0", reason="asked", by="admin", now=50.0, runs=[run])
            words.with_name(name).write_bytes(whole)
    assert [one.judgement.reason for one in store.records()] == [breaks, breaks]
    done = erase_annotator(store, "r0", reason="asked", by="admin", now=50.0, runs=[run])
    assert erase_from_snapshots(done.artefacts, done.judgement_ids, reason="asked", now=51.0) == (words,)
    assert [one.reason for one in read_snapshot(run / "snapshots" / "main").judgements if one.reason] == [breaks]


def test_an_erased_store_can_be_opened_again(tmp_path):
    person_store(tmp_path / "k.db").close()
    with open_store(tmp_path / "k.db") as store:
        erase_annotator(store, "r0", reason="asked", by="admin", now=1.0)
    with open_store(tmp_path / "k.db") as store:
        assert store.verify() == []
        assert sum(record.erased for record in store.records()) == 2
