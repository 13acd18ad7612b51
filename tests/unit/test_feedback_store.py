"""The store: nothing acknowledged is lost, nothing is stored twice, nothing is changed."""

import dataclasses
import os
import random
import signal
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from feedback_cases import small_store, vote
from karat.errors import StoreError
from karat.feedback import engine, people_tables, schema
from karat.feedback.engine import MIGRATIONS
from karat.feedback.store import open_store
from karat.records import Annotator, Judgement, Response, Task, user_prompt


def test_what_is_stored_comes_back_with_the_same_identity(new_address):
    store = small_store(new_address("k"))
    task = store.tasks()[0]
    given = vote(task, "r0", active_s=12, reason="näher an der Frage", origin="person")
    stored = store.submit(given)
    assert stored.judgement == given
    assert stored.id == stored.judgement.id == store.records()[0].id
    assert type(stored.judgement.active_s) is float
    assert store.prompts()[task.prompt_id].id == task.prompt_id
    assert all(response.id == key for key, response in store.responses().items())
    assert store.verify() == []


def test_the_short_way_to_an_identity_is_the_long_way(new_address):
    store = small_store(new_address("k"))
    for reason in (None, "plain", "nai\u0308ve \u212b"):
        given = vote(store.tasks()[0], "r0", reason=reason, active_s=1.5, key=f"{reason}")
        assert schema.judgement_rows(given, salt="00", late=False).judgement["id"] == given.id


def test_texts_are_stored_once(new_address):
    store = open_store(new_address("k"))
    prompt = user_prompt("hi")
    assert store.add_prompts([prompt, prompt]) == 1
    assert store.add_prompts([prompt]) == 0
    assert store.add_responses([Response(prompt.id, "x", "one"), Response(prompt.id, "x", "two")]) == 1


def test_the_same_submission_is_one_row(new_address):
    store = small_store(new_address("k"))
    given = vote(store.tasks()[0], "r0", key="k")
    first = store.submit(given)
    assert store.submit(dataclasses.replace(given, created_at="2026-01-01T00:00:07Z")) == first
    assert [each.id for each in store.submit_many([given, given])] == [first.id, first.id]
    assert store.n_judgements() == 1


def test_a_key_used_for_another_content_is_refused(new_address):
    store = small_store(new_address("k"))
    task = store.tasks()[0]
    store.submit(vote(task, "r0", key="k"))
    with pytest.raises(StoreError, match="submission 'k' was used for another judgement"):
        store.submit(vote(task, "r0", key="k", level=0))
    with pytest.raises(StoreError, match="submission 'new' was used"):
        store.submit_many([vote(task, "r1", key="new"), vote(task, "r1", key="new", level=1)])
    assert store.n_judgements() == 1


def test_without_a_key_the_content_is_the_key(new_address):
    store = small_store(new_address("k"))
    given = vote(store.tasks()[0], "r0", key="")
    assert store.submit(given).judgement.submission == ""
    store.submit(given)
    assert store.n_judgements() == 1


def test_all_of_a_batch_or_nothing(new_address):
    store = small_store(new_address("k"))
    good, other = store.tasks()[:2]
    with pytest.raises(StoreError, match="the rater 'nobody', which is not in the store; add_annotators first"):
        store.submit_many([vote(good, "r0"), vote(other, "nobody")])
    assert store.n_judgements() == 0
    assert store.assignments() == {}


def test_a_judgement_must_fit_its_task(new_address):
    store = small_store(new_address("k"))
    task = store.tasks()[0]
    swapped = dataclasses.replace(vote(task, "r0"), response_ids=task.response_ids[::-1])
    with pytest.raises(StoreError, match="expected those of the task"):
        store.submit(swapped)
    with pytest.raises(StoreError, match=r"the task 'task:none', .*add_tasks first"):
        store.submit(dataclasses.replace(vote(task, "r0"), task_id="task:none"))
    with pytest.raises(StoreError, match=r"the response .*add_responses first"):
        store.add_tasks([Task(task.prompt_id, ("response:x", "response:y"))])
    with pytest.raises(StoreError, match=r"the prompt .*add_prompts first"):
        store.add_responses([Response("prompt:x", "text", "made")])


def test_one_corrects_only_ones_own(new_address):
    store = small_store(new_address("k"))
    task = store.tasks()[0]
    first = store.submit(vote(task, "r0", key="1"))
    store.submit(vote(task, "r0", key="2", level=0, supersedes=first.id))
    with pytest.raises(StoreError, match="not an earlier judgement of hers"):
        store.submit(vote(task, "r1", key="3", supersedes=first.id))
    assert store.n_judgements() == 2


@pytest.mark.parametrize("change", ["UPDATE judgements SET value = '{}'", "DELETE FROM judgements"])
def test_the_database_refuses_to_change_a_judgement(tmp_path, change):
    store = small_store(tmp_path / "k.db")
    store.submit(vote(store.tasks()[0], "r0"))
    connection = sqlite3.connect(tmp_path / "k.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(change)
    connection.close()


def test_an_altered_judgement_is_named(tmp_path):
    store = small_store(tmp_path / "k.db")
    records = store.submit_many([vote(task, "r0") for task in store.tasks()[:3]])
    connection = sqlite3.connect(tmp_path / "k.db")
    connection.execute("DROP TRIGGER judgements_refuse_update")
    connection.execute("UPDATE judgements SET annotator = 'r1' WHERE id = ?", (records[1].id,))
    connection.commit()
    connection.close()
    assert [problem.judgement_id for problem in store.verify()] == [records[1].id]


def test_an_altered_text_is_named(tmp_path):
    store = small_store(tmp_path / "k.db")
    connection = sqlite3.connect(tmp_path / "k.db")
    key = next(iter(store.responses()))
    connection.execute("UPDATE responses SET text = 'other' WHERE id = ?", (key,))
    connection.commit()
    connection.close()
    assert [problem.judgement_id for problem in store.verify()] == [key]


def test_erased_words_leave_the_record_whole(tmp_path):
    store = small_store(tmp_path / "k.db")
    task = store.tasks()[0]
    kept = store.submit(vote(task, "r0", reason="secret words"))
    written = store.submit(_critique(store, task))
    assert written.judgement.value == {"text": "a written answer"}
    assert store.erase_words([kept.id, written.id]) == 2
    erased = store.records()
    assert [(each.id, each.commitment) for each in erased] == [
        (kept.id, kept.commitment),
        (written.id, written.commitment),
    ]
    assert erased[0].erased
    assert erased[0].judgement.reason is None
    assert erased[0].judgement.value == kept.judgement.value
    assert erased[1].judgement.value == {"missing": "erased"}
    assert store.verify() == []
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in on_disk
    assert b"a written answer" not in on_disk
    with pytest.raises(StoreError, match="the judgement 'judgement:none'"):
        store.erase_words(["judgement:none"])


def test_the_same_words_have_different_commitments(new_address):
    stores = [small_store(new_address(name)) for name in ("a.db", "b.db")]
    found = {store.submit(vote(store.tasks()[0], "r0")).commitment for store in stores}
    assert len(found) == 2
    simulated = {store.submit(vote(store.tasks()[1], "r0", origin="simulated")).commitment for store in stores}
    assert len(simulated) == 1


def _critique(store, task) -> Judgement:
    asked = dataclasses.replace(task, kind="critique", response_ids=task.response_ids[:1])
    store.add_tasks([asked])
    return Judgement(
        asked.id, "critique", asked.prompt_id, asked.response_ids, {"text": "a written answer"}, "r1", (), "v1",
        "2026-01-01T00:00:00Z",
    )  # fmt: skip


def test_opening_again_finds_everything(tmp_path):
    with small_store(tmp_path / "k.db") as store:
        store.submit(vote(store.tasks()[0], "r0"))
        before = store.records(), store.tasks(), store.prompts(), store.annotators()
    with open_store(f"sqlite:///{tmp_path / 'k.db'}") as store:
        assert (store.records(), store.tasks(), store.prompts(), store.annotators()) == before
        assert store.annotators()["r0"] == Annotator("r0")


def test_the_migrations_make_the_tables_of_the_code_and_unmake_them(new_address):
    store = open_store(new_address("k"))
    with store.connection() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, people_tables.metadata) == []
    with store.connection(write=True) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    open_store(tmp_path / "k.db").close()
    connection = sqlite3.connect(tmp_path / "k.db")
    connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="found a store of version '0999', expected '0005' or older") as caught:
        open_store(tmp_path / "k.db")
    assert "\n" not in str(caught.value)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("these are words, not a database, and quite a few of them\n" * 50)
    with pytest.raises(StoreError, match="not a database; expected a karat store"):
        open_store(tmp_path / "text.db")
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    with pytest.raises(StoreError, match="a database with the table 'recipes'; expected a karat store"):
        open_store(tmp_path / "other.db")
    with pytest.raises(StoreError, match="cannot be opened; expected a file in a directory that exists"):
        open_store(tmp_path / "nowhere" / "k.db")


class LockedAtFirst:
    """A cursor to which SQLite says "locked" so many times, as when two processes switch a new file to WAL at once."""

    def __init__(self, times: int) -> None:
        self.left, self.asked = times, []

    def execute(self, statement: str) -> None:
        self.asked.append(statement)
        if self.left > 0:
            self.left -= 1
            raise sqlite3.OperationalError("database is locked")


def test_two_that_open_a_new_store_at_once_wait_for_each_other():
    cursor = LockedAtFirst(3)
    engine._switch_to_wal(cursor, patience_s=5.0)
    assert cursor.asked == ["PRAGMA journal_mode = WAL"] * 4
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        engine._switch_to_wal(LockedAtFirst(10**9), patience_s=0.05)


def test_a_new_store_is_its_owners_alone_and_an_older_one_keeps_its_mode(tmp_path):
    path = tmp_path / "k.db"
    before = os.umask(0o022)
    try:
        store = small_store(path)
        modes = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
        assert modes == {"k.db": 0o600, "k.db-wal": 0o600, "k.db-shm": 0o600, "k.db-turn": 0o600}
        store.close()
        path.chmod(0o640)  # shared with a group on purpose
        with open_store(path):
            pass
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_locked_store_is_one_line(tmp_path):
    small_store(tmp_path / "k.db").close()
    other = sqlite3.connect(tmp_path / "k.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with (
        open_store(tmp_path / "k.db", busy_timeout_s=0.01) as store,
        pytest.raises(StoreError, match="another process holds the store"),
    ):
        store.submit(vote(store.tasks()[0], "r0"))
    other.execute("ROLLBACK")
    other.close()


def test_a_write_has_the_store_to_itself_before_its_first_statement_and_a_reading_does_not(tmp_path):
    """Whoever reads first and writes then would fail at once under load, instead of waiting for its turn."""
    store = small_store(tmp_path / "k.db")
    other = sqlite3.connect(tmp_path / "k.db", isolation_level=None, timeout=0.0)
    with store.connection(write=True), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with store.connection() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM tasks").scalar() == 10
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    other.close()


def test_a_full_disk_is_one_line_and_stores_nothing(tmp_path):
    store = small_store(tmp_path / "k.db")
    store._engine.dispose()

    @sa.event.listens_for(store._engine, "connect")
    def _(connection, _record):
        connection.execute("PRAGMA max_page_count = 1")  # no page more than there are

    given = [vote(task, f"r{i}", reason="word " * 5000) for task in store.tasks() for i in range(2)]
    with pytest.raises(StoreError, match="the disk is full; nothing was stored") as caught:
        store.submit_many(given)
    assert "\n" not in str(caught.value)
    assert store.n_judgements() == 0


VOTES_UNTIL_KILLED = """
import sys
from feedback_cases import vote
from karat.feedback.store import open_store
store = open_store(sys.argv[1])
for task in store.tasks():
    for i in range(5):
        print(store.submit(vote(task, f"r{i}")).id, flush=True)
"""


def test_every_acknowledged_vote_survives_a_kill(tmp_path):
    small_store(tmp_path / "k.db", n_prompts=40, n_tasks=200).close()
    python_path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", VOTES_UNTIL_KILLED, str(tmp_path / "k.db")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    n_before = random.Random(0).randrange(20, 60)
    acknowledged = [process.stdout.readline().strip() for _ in range(n_before)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    acknowledged += [line for line in rest.splitlines() if len(line) == len(acknowledged[0])]
    with open_store(tmp_path / "k.db") as store:
        found = {record.id for record in store.records()}
        assert set(acknowledged) <= found
        assert len(found) <= len(acknowledged) + 1
        assert store.verify() == []
