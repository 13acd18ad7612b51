"""Backups: a drill on both databases, a move from one to the other, and damage that is named."""

import contextlib
import json
import shutil
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import postgresql_server
from feedback_cases import OLD_ROWS, old_store, small_store, tamper, vote
from karat.errors import StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.record.backup import LEFT_OUT, backup, read_backup, restore, rows_hash
from karat.feedback.record.seals import seal, seals
from karat.feedback.store import Store, open_store


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request, tmp_path) -> str:
    """The address of a database without a table, to restore into."""
    if request.param == "sqlite":
        return str(tmp_path / "restored.db")
    return postgresql_server.empty_database(request.getfixturevalue("postgresql"))


def lived_in(address) -> Store:
    """A store with votes, words of any script, an erasure, a lease, a seal, and somebody who is signed in."""
    store = small_store(address)
    task = store.tasks()[0]
    store.submit_many(
        [vote(each, "r0", reason='näher 🙂 \u202e\n"x"', active_s=0.1 + i) for i, each in enumerate(store.tasks())]
    )
    store.erase_words([store.records()[1].id], reason="asked", by="admin", now=3.0)
    seal(store, now=4.0)
    store.submit(vote(task, "r1"))
    store.lease_next("r2", now=0.0)
    account = {
        "id": "account:1",
        "login": "anna",
        "role": "annotator",
        "annotator": "r0",
        "state": "active",
        "created_at": 0.1,
    }
    session = {
        "token_hash": "h",
        "account": "account:1",
        "kind": "browser",
        "created_at": 1.0,
        "expires_at": 9.0,
        "seen_at": 1.0,
    }
    with store.connection(write=True) as connection:
        connection.execute(people.accounts.insert().values(**account))
        connection.execute(people.sessions.insert().values(**session))
        connection.execute(people.keys.insert().values(name="signing", value="abc"))
    return store


def contents(store: Store) -> dict[str, list]:
    """Every row of every table that a backup keeps."""
    with store.connection() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in tables.metadata.sorted_tables
            if table.name not in LEFT_OUT
        }


def test_a_drill_gives_the_same_store_on_either_database(new_address, target, tmp_path):
    store = lived_in(new_address("k"))
    made = backup(store, tmp_path / "backup", now=10.0)
    assert read_backup(tmp_path / "backup") == made
    assert made.seal == seals(store)[0].line
    done = restore(tmp_path / "backup", target)
    assert done.problems == ()
    assert done.rows == made.rows
    with open_store(target) as other:
        assert contents(other) == contents(store)
        assert other.records() == store.records()
        assert other.verify([made.seal]) == []
        assert other.assignments() == store.assignments()
        # and work goes on where it stopped
        assert other.submit(vote(other.tasks()[1], "r3")).seq == 12
        assert seal(other, now=20.0).seq == 2
        assert other.verify([made.seal]) == []
        with pytest.raises(StoreError, match="append-only"), other.connection(write=True) as connection:
            connection.execute(sa.text("DELETE FROM judgements"))


def test_nobody_stays_signed_in_and_only_the_owner_may_look(tmp_path):
    store = lived_in(tmp_path / "k.db")
    backup(store, tmp_path / "backup", now=10.0)
    backup(store, tmp_path / "copy.db", now=10.0)
    for path in (tmp_path / "backup", tmp_path / "backup" / "words.jsonl", tmp_path / "copy.db"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    for i, path in enumerate(("backup", "copy.db")):
        restore(tmp_path / path, tmp_path / f"{i}.db")
        with open_store(tmp_path / f"{i}.db") as other, other.connection() as connection:
            assert connection.execute(sa.select(people.sessions)).all() == []


def test_two_stores_of_one_hash_hold_the_same_rows(tmp_path):
    store = lived_in(tmp_path / "k.db")
    before = rows_hash(store)
    backup(store, tmp_path / "copy.db", now=10.0)
    with open_store(tmp_path / "copy.db") as copy:
        assert rows_hash(copy) == before
        assert contents(copy) == contents(store)
        with copy.connection(write=True) as connection:  # signing in is no part of the record
            connection.execute(people.limits.insert().values(key="k", n=1, started_at=0.0))
        assert rows_hash(copy) == before
        copy.submit(vote(copy.tasks()[1], "r3"))
        assert rows_hash(copy) != before
    assert rows_hash(store) == before


def test_a_file_is_copied_while_people_work(tmp_path, target):
    store = lived_in(tmp_path / "k.db")
    work = [vote(task, f"r{i}", key=f"{i}/{n}") for i in range(1, 5) for n, task in enumerate(store.tasks())]
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(store.submit, each) for each in work]
        made = backup(store, tmp_path / "copy.db", now=10.0)
    assert len([each.result() for each in sent]) == 40
    assert sorted(path.name for path in tmp_path.glob("*copy*")) == ["copy.db"]
    assert read_backup(tmp_path / "copy.db") == made
    done = restore(tmp_path / "copy.db", target)
    assert done.problems == ()
    with open_store(target) as other:
        assert other.records() == store.records()[: made.rows["judgements"]]


def test_a_backup_of_the_first_version_is_brought_up(tmp_path, target):
    old_store(str(tmp_path / "old.db"))
    done = restore(tmp_path / "old.db", target)
    assert done.problems == ()
    with open_store(target) as store:
        assert [record.id for record in store.records()] == [row["id"] for row in OLD_ROWS["judgements"]]


def test_an_altered_record_is_restored_and_named(tmp_path):
    store = lived_in(tmp_path / "k.db")
    wrong = store.records()[3]
    tamper(store, "UPDATE judgements SET annotator = 'r4' WHERE seq = 4")
    backup(store, tmp_path / "backup", now=10.0)
    assert {problem.judgement_id for problem in restore(tmp_path / "backup", tmp_path / "n.db").problems} == {wrong.id}


def test_damage_is_named_and_nothing_is_restored(tmp_path):
    store = lived_in(tmp_path / "k.db")
    backup(store, tmp_path / "backup", now=10.0)
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_text())
    for name, change, message in (
        (
            "judgements.jsonl",
            lambda data: data.replace(b'"level', b'"lever', 1),
            "judgements.jsonl: differs from its hash",
        ),
        ("words.jsonl", lambda data: data[:-9], "words.jsonl: differs from its hash"),
        ("manifest.json", lambda data: data.replace(b"10.0", b"11.0"), "does not give its id"),
        ("manifest.json", lambda data: data[:-9], "not readable as a backup"),
        ("manifest.json", lambda _: json.dumps(manifest | {"format": "x"}).encode(), "found the format 'x'"),
        ("salts.jsonl", None, "salts.jsonl: no such file"),
    ):
        copy = tmp_path / "damaged"
        shutil.copytree(tmp_path / "backup", copy)
        path = copy / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))
        with pytest.raises(StoreError, match=message) as caught:
            restore(copy, tmp_path / "new.db")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new.db").exists()
        shutil.rmtree(copy)


def test_a_damaged_file_of_a_backup_leaves_no_half_restored_store(tmp_path):
    store = lived_in(tmp_path / "k.db")
    backup(store, tmp_path / "copy.db", now=10.0)
    whole = (tmp_path / "copy.db").read_bytes()
    third = len(whole) // 3
    before = {one.name for one in tmp_path.iterdir()}
    for damaged in (whole[:-third], whole[:third] + bytes(third) + whole[2 * third :], whole[:100], b""):
        (tmp_path / "copy.db").write_bytes(damaged)
        with pytest.raises(StoreError) as caught:
            restore(tmp_path / "copy.db", tmp_path / "new.db")
        assert str(tmp_path / "copy.db") in str(caught.value)
        assert {one.name for one in tmp_path.iterdir()} == before


def test_what_is_there_is_never_overwritten(tmp_path, new_address):
    store = lived_in(new_address("k"))
    backup(store, tmp_path / "backup", now=10.0)
    with pytest.raises(StoreError, match="something is there already"):
        backup(store, tmp_path / "backup", now=11.0)
    with pytest.raises(StoreError, match="expected an empty one"):
        restore(tmp_path / "backup", new_address("k"))
    with pytest.raises(StoreError, match="nothing is there; expected a backup"):
        restore(tmp_path / "none", tmp_path / "new.db")
    (tmp_path / "text.db").write_text("words " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        restore(tmp_path / "text.db", tmp_path / "new.db")
    if store.dialect == "postgresql":
        with pytest.raises(StoreError, match=r"found a store on postgresql; expected a path without \.db"):
            backup(store, tmp_path / "copy.db", now=1.0)


def test_a_backup_of_a_newer_version_is_refused(tmp_path):
    store = lived_in(tmp_path / "k.db")
    backup(store, tmp_path / "copy.db", now=1.0)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="found a backup of version '0999', expected '0005' or older"):
        restore(tmp_path / "copy.db", tmp_path / "new.db")
