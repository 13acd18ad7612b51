"""The store on both databases: opening, migrating up and down with data in it, and writers that meet."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import postgresql_server
from feedback_cases import OLD_ROWS, at_revision, old_store, small_store, vote
from karat.errors import StoreError
from karat.feedback import engine, schema
from karat.feedback.store import open_store


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_address(request, tmp_path) -> str:
    """The address of a database without a table."""
    if request.param == "sqlite":
        return str(tmp_path / "old.db")
    return postgresql_server.empty_database(request.getfixturevalue("postgresql"))


def test_a_store_of_the_first_version_is_read_and_goes_on(empty_address):
    old_store(empty_address)
    with open_store(empty_address) as store:
        assert store.verify() == []
        records = store.records()
        assert [record.commitment for record in records] == [row["commitment"] for row in OLD_ROWS["judgements"]]
        assert [record.erased for record in records] == [False, False, True, False]
        assert records[3].judgement.value == {"text": "kept words"}
        assert [task.audience for task in store.tasks()] == ["annotator"] * 3
        task = store.tasks()[0]
        assert store.submit(vote(task, "anna", key="again", level=0, supersedes=records[0].id)).seq > 4
        assert store.verify() == []


def test_going_down_keeps_every_judgement_and_going_up_again_too(empty_address):
    old_store(empty_address)
    with open_store(empty_address) as store:
        before = store.records()
    opened = at_revision(empty_address, "0001", up=False)
    with engine.transaction(opened, empty_address) as connection:
        there = sa.inspect(connection)
        assert set(there.get_table_names()) == {*OLD_ROWS, "alembic_version"}
        assert "shown" not in {column["name"] for column in there.get_columns("judgements")}
        found = connection.execute(sa.text("SELECT id, commitment FROM judgements ORDER BY seq")).all()
        assert [tuple(row) for row in found] == [(record.id, record.commitment) for record in before]
    with (
        pytest.raises(StoreError, match="append-only"),
        engine.transaction(opened, empty_address, write=True) as connection,
    ):
        connection.execute(sa.text("DELETE FROM judgements"))
    opened.dispose()
    with open_store(empty_address) as store:
        assert store.records() == before
        assert store.verify() == []


def test_two_processes_may_open_a_new_store_at_once(empty_address):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(empty_address), range(4)))
    assert [store.n_judgements() for store in stores] == [0, 0, 0, 0]


def test_the_same_submission_many_times_at_once_is_one_row(new_address):
    address = new_address("k")
    task = small_store(address).tasks()[0]
    stores = [open_store(address) for _ in range(3)]
    with ThreadPoolExecutor(10) as pool:
        records = list(pool.map(lambda i: stores[i % 3].submit(vote(task, "r0", key="once")), range(10)))
    assert len({record.id for record in records}) == 1
    assert stores[0].n_judgements() == 1


def test_answers_of_one_rater_that_meet_count_once(new_address):
    address = new_address("k")
    store = small_store(address, n_tasks=1, overlap=2)
    task = store.lease_next("r0", now=0.0).task
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.submit(vote(task, "r0", key=str(i)), now=1.0), range(8)))
    with store.connection() as connection:
        assert connection.execute(sa.select(schema.tasks.c.n_answers)).scalars().all() == [1]
    assert store.n_judgements() == 8


def test_texts_that_two_add_at_once_are_stored_once(new_address):
    address = new_address("k")
    store = small_store(address)
    prompts, responses = list(store.prompts().values()), list(store.responses().values())
    other = open_store(new_address("other"))
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda _: other.add_prompts(iter(prompts)), range(6)))
        assert sum(added) == len(prompts)
        assert sum(pool.map(lambda _: other.add_responses(iter(responses)), range(6))) == len(responses)


@pytest.mark.parametrize("statement", ["DELETE FROM {0}", "UPDATE {0} SET seq = seq + 100", "TRUNCATE {0} CASCADE"])
def test_events_are_kept_whatever_one_asks_of_the_database(new_address, statement):
    store = small_store(new_address("k"))
    if store.dialect == "sqlite" and "TRUNCATE" in statement:
        pytest.skip("SQLite knows no TRUNCATE")
    kept = store.submit(vote(store.tasks()[0], "r0", reason="words"))
    store.erase_words([kept.id], reason="asked", by="admin", now=1.0)
    for table in ("judgements", "erasures"):
        with pytest.raises(StoreError, match="append-only"), store.connection(write=True) as connection:
            connection.execute(sa.text(statement.format(table)))


def test_words_in_a_log_can_be_taken_out_and_nothing_else(new_address):
    store = small_store(new_address("k"))
    with store.connection(write=True) as connection:
        connection.execute(sa.text(
            "INSERT INTO standing (annotator, action, reason, \"by\", at) VALUES ('r0', 'answered', 'I was ill', 'r0', 1)"
        ))  # fmt: skip
    for change in ("reason = 'I was well'", "reason = '', action = 'released'", "at = 2"):
        with pytest.raises(StoreError, match="append-only"), store.connection(write=True) as connection:
            connection.execute(sa.text(f"UPDATE standing SET {change}"))
    with store.connection(write=True) as connection:
        connection.execute(sa.text("UPDATE standing SET reason = ''"))
        assert connection.execute(sa.text("SELECT action, reason FROM standing")).one() == ("answered", "")


def test_what_a_column_does_not_hold_is_refused_on_both(new_address):
    store = small_store(new_address("k"))
    with pytest.raises(StoreError, match="found submission of 201 characters; expected at most 200"):
        store.submit(vote(store.tasks()[0], "r0", key="k" * 201))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "postgresql://karat:secret@127.0.0.1:1/none",
            "karat:\\*\\*\\*@.* does not answer; start it, or correct the URL",
        ),
        ("mysql://u:secret@h/d", "mysql://u:\\*\\*\\*@h/d: found mysql; expected sqlite or postgresql"),
        ("no such thing://x", "Could not parse"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_without_a_password(address, message):
    with pytest.raises(StoreError, match=message) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_thread_that_waits_too_long_is_told(tmp_path):
    with open_store(tmp_path / "k.db", busy_timeout_s=0.01) as store, ThreadPoolExecutor(1) as pool:
        with store.connection(write=True), pytest.raises(StoreError, match="another process holds the store"):
            pool.submit(store.add_prompts, []).result()
        assert pool.submit(store.add_prompts, []).result() == 0


def test_the_oldest_store_of_a_user_is_not_a_store_of_nobody(tmp_path):
    connection = sqlite3.connect(tmp_path / "k.db")
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    connection.commit()
    connection.close()
    with open_store(tmp_path / "k.db") as store:
        assert store.n_judgements() == 0
