"""Seals: whatever is altered, added or removed after sealing is named."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

import postgresql_server
from feedback_cases import small_store, tamper, vote
from karat.errors import InputError
from karat.feedback import people_tables as people
from karat.feedback import schema, submission
from karat.feedback.documents import add_questions
from karat.feedback.record import seals
from karat.feedback.record.seals import seal, sealed_through, verify_seals
from karat.feedback.store import Store, open_store
from karat.questions import Question


def sealed_store(address, *, n_seals: int = 2, per_seal: int = 3) -> Store:
    """A store with some sealed votes in two or more seals, and one vote that is not sealed."""
    store = small_store(address)
    tasks = store.tasks()
    for batch in range(n_seals):
        store.submit_many([vote(task, f"r{batch}", reason=f"words {batch}") for task in tasks[:per_seal]])
        seal(store, now=100.0 + batch)
    store.submit(vote(tasks[0], "r4"))
    return store


@pytest.fixture(scope="module")
def sealed_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "k.db"
    sealed_store(path).close()
    return path


@pytest.fixture(scope="module")
def sealed_database(postgresql) -> str:
    address = postgresql_server.new_database(postgresql)
    sealed_store(address).close()
    return address


@pytest.fixture(params=["sqlite", "postgresql"])
def sealed(request, tmp_path) -> Iterator[Store]:
    """A copy of `sealed_store` on either database."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sealed_file"), tmp_path / "k.db")
        address = str(tmp_path / "k.db")
    else:
        address = postgresql_server.copied_database(request.getfixturevalue("sealed_database"))
    with open_store(address) as store:
        yield store


def named(store: Store, **changes) -> list[str]:
    return [problem.judgement_id for problem in store.verify(**changes)]


def test_a_seal_covers_what_came_since_the_one_before(sealed):
    store = sealed
    first, second = seals.seals(store)
    assert (first.first_judgement, first.last_judgement, first.n) == (1, 3, 3)
    assert (second.first_judgement, second.last_judgement, second.n) == (4, 6, 3)
    assert (first.previous, second.previous) == (seals.GENESIS, first.hash)
    assert sealed_through(store) == 6
    assert store.verify([first.line, second.line]) == []
    third = seal(store, now=200.0)
    assert (third.seq, third.n, sealed_through(store)) == (3, 1, 7)
    assert seal(store, now=300.0) is None
    assert store.verify() == []


def test_nothing_is_sealed_in_an_empty_store(new_address):
    store = small_store(new_address("k"))
    assert seal(store, now=0.0) is None
    assert sealed_through(store) == 0
    assert seals.seals(store) == []


def test_a_large_backlog_becomes_several_seals(new_address, monkeypatch):
    monkeypatch.setattr(seals, "LEAVES_PER_SEAL", 4)
    store = small_store(new_address("k"))
    store.submit_many([vote(task, "r0") for task in store.tasks()])
    assert seal(store, now=0.0).seq == 3
    assert [one.n for one in seals.seals(store)] == [4, 4, 2]
    assert store.verify() == []


def test_sealing_while_people_answer_leaves_nobody_out(new_address):
    store = small_store(new_address("k"), n_tasks=6, overlap=4)
    tasks = store.tasks()

    def answer(rater: str) -> None:
        for task in tasks:
            store.submit(vote(task, rater))

    with ThreadPoolExecutor(5) as pool:
        raters = [pool.submit(answer, f"r{i}") for i in range(4)]
        while not all(rater.done() for rater in raters):
            seal(store, now=1.0)
    assert [rater.result() for rater in raters] == [None] * 4
    seal(store, now=2.0)
    assert sum(one.n for one in seals.seals(store)) == 24
    assert store.verify() == []


def test_a_judgement_on_its_way_is_waited_for(postgresql):
    store = small_store(postgresql_server.new_database(postgresql))
    first, second = store.tasks()[:2]
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as pool:
        with store.connection(write=True) as slow:
            submission.submit(slow, [vote(first, "r0")], now=0.0)  # has its number, and is not committed yet
            store.submit(vote(second, "r1"))
            sealing = pool.submit(seal, store, now=1.0)
            while not sealing.done():
                with store.connection() as connection:
                    if connection.execute(waiting).scalar():
                        break
        assert sealing.result().n == 2
    assert store.verify() == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("annotator = 'r3'", "differs from its commitment"),
        ('value = \'{"level":0,"n_levels":3}\'', "differs from its commitment"),
        ("created_at = '2027-01-01T00:00:00Z'", "differs from its commitment"),
        ("shown = '{\"arms\":{}}'", "differs from its commitment"),
        ("value = 'nonsense'", "not readable as a judgement"),
        ("late = NOT late", "altered after sealing"),
        ("commitment = 'commit:00'", "differs from its commitment"),
    ],
)
def test_an_altered_judgement_is_named(sealed, change, what):
    store = sealed
    wrong = store.records()[4]
    tamper(store, f"UPDATE judgements SET {change} WHERE seq = 5")
    problems = store.verify()
    assert {problem.judgement_id for problem in problems} == {wrong.id}
    assert any(what in problem.what for problem in problems)


def test_an_alteration_that_fits_its_own_commitment_is_named_all_the_same(sealed):
    store = sealed
    wrong = store.records()[4]
    forged = dataclasses.replace(wrong.judgement, value={"level": 0, "n_levels": 3})
    row = schema.judgement_rows(forged, salt="00" * 16, late=False).judgement
    tamper(
        store,
        f"UPDATE judgements SET value = '{row['value']}', commitment = '{row['commitment']}', id = '{row['id']}' WHERE seq = 5",
        f"UPDATE words SET judgement_id = '{row['id']}' WHERE judgement_id = '{wrong.id}'",
        f"UPDATE salts SET judgement_id = '{row['id']}', salt = '{'00' * 16}' WHERE judgement_id = '{wrong.id}'",
    )
    assert store.records()[4].judgement == forged
    (problem,) = store.verify()
    assert problem.judgement_id == row["id"]
    assert problem.what == "differs from what seal 2 covers: it was altered after sealing"


@pytest.mark.parametrize("seq", [-3, 0, 6])
def test_an_added_judgement_is_named(sealed, seq):
    store = sealed
    late = store.records()[6]
    tamper(
        store,
        "UPDATE judgements SET seq = 60 WHERE seq = 6",
        f"UPDATE judgements SET seq = {seq} WHERE id = '{late.id}'",
    )
    what = "altered after sealing" if seq == 6 else "was not sealed: it was added later"
    assert [problem.what for problem in store.verify() if problem.judgement_id == late.id and what in problem.what]


def test_a_removed_judgement_is_named(sealed):
    store = sealed
    gone = store.records()[1]
    tamper(store, *(f"DELETE FROM {table} WHERE judgement_id = '{gone.id}'" for table in ("words", "salts")))
    assert [problem.what.split(",")[0] for problem in store.verify()] == ["its words are gone"]
    tamper(store, f"DELETE FROM judgements WHERE id = '{gone.id}'")
    (problem,) = store.verify()
    assert problem.judgement_id == gone.commitment
    assert problem.what == "seal 1 covers number 2, which is not there any more: it was removed"


def test_words_that_come_back_after_an_erasure_are_named(sealed):
    store = sealed
    erased = store.records()[1]
    store.erase_words([erased.id], reason="asked for it", by="admin", now=5.0)
    assert store.verify() == []
    tamper(
        store, f'INSERT INTO words (judgement_id, words) VALUES (\'{erased.id}\', \'{{"reason":"x","value":null}}\')'
    )
    assert [(p.judgement_id, p.what) for p in store.verify()] == [
        (erased.id, "its words were erased on request and are there again")
    ]


def test_an_erased_judgement_is_still_guarded(sealed):
    store = sealed
    erased = store.records()[1]
    store.erase_words([erased.id])
    tamper(store, 'UPDATE judgements SET value = \'{"level":0,"n_levels":3}\' WHERE seq = 2')
    assert named(store) == [erased.id]


@pytest.mark.parametrize("column", ["text", "turns"])
def test_a_replaced_text_is_named(sealed, column):
    store = sealed
    table, key = (
        ("responses", next(iter(store.responses()))) if column == "text" else ("prompts", next(iter(store.prompts())))
    )
    new = "other" if column == "text" else '[["user","other"]]'
    tamper(store, f"UPDATE {table} SET {column} = '{new}' WHERE id = '{key}'")
    assert named(store) == [key]


def test_a_task_that_asks_something_else_is_named(sealed):
    store = sealed
    task = store.tasks()[0]
    tamper(store, f"UPDATE tasks SET guideline = 'v9' WHERE id = '{task.id}'")
    assert named(store) == [task.id]


def test_a_question_that_was_put_otherwise_is_named(sealed):
    store = sealed
    asked = Question("comparison", instruction="Which is better?")
    add_questions(store, [asked])
    assert named(store) == []
    tamper(store, f"UPDATE questions SET body = replace(body, 'better', 'worse') WHERE id = '{asked.id}'")
    assert named(store) == [asked.id]
    tamper(store, f"UPDATE questions SET body = 'no JSON' WHERE id = '{asked.id}'")
    assert named(store) == [asked.id]


def test_an_altered_document_is_named(new_address):
    store = small_store(new_address("k"))
    with store.connection(write=True) as connection:
        row = {
            "name": "guideline",
            "version": "v1",
            "hash": "document:1",
            "body": '{"text":"be fair"}',
            "created_at": 1.0,
        }
        connection.execute(people.documents.insert().values(**row))
    assert seal(store, now=2.0).n == 0
    assert store.verify() == []
    tamper(store, 'UPDATE documents SET body = \'{"text":"prefer the long one"}\'')
    assert named(store) == ["document guideline v1"]
    tamper(store, "DELETE FROM documents")
    assert named(store) == ["documents 1"]


@pytest.mark.parametrize(
    ("statement", "who", "what"),
    [
        ("UPDATE seals SET sealed_at = 1 WHERE seq = 1", "seal 1", "it was altered"),
        ("UPDATE seals SET leaves = '[]' WHERE seq = 1", "seal 1", "its leaves were altered"),
        ("DELETE FROM seals WHERE seq = 1", "seal 1", "it was removed"),
        ("UPDATE seals SET previous = 'seal:0' WHERE seq = 2", "seal 2", "as the seal before it"),
        ("UPDATE seals SET nonce = '00' WHERE seq = 2", None, "altered after sealing"),
        ("UPDATE seals SET nonce = 'no' WHERE seq = 2", None, "altered after sealing"),
        ("UPDATE seals SET heads = '{}' WHERE seq = 1", "seal 1", "it was altered"),
        ("UPDATE seals SET heads = 'no' WHERE seq = 2", "seals", "not readable: it was altered"),
        ("UPDATE salts SET salt = 'no'", None, "not readable as a judgement"),
    ],
)
def test_an_altered_seal_is_named(sealed, statement, who, what):
    store = sealed
    tamper(store, statement)
    problems = [problem for problem in store.verify() if what in problem.what]
    assert problems
    assert who is None or {problem.judgement_id for problem in problems} == {who}


def test_a_record_rewritten_as_a_whole_is_not_the_published_one(sealed):
    store = sealed
    published = [one.line for one in seals.seals(store)]
    wrong = store.records()[4]
    forged = dataclasses.replace(wrong.judgement, value={"level": 0, "n_levels": 3})
    row = schema.judgement_rows(forged, salt="00" * 16, late=False).judgement
    tamper(
        store,
        f"UPDATE judgements SET value = '{row['value']}', commitment = '{row['commitment']}', id = '{row['id']}' WHERE seq = 5",
        f"UPDATE words SET judgement_id = '{row['id']}' WHERE judgement_id = '{wrong.id}'",
        f"UPDATE salts SET judgement_id = '{row['id']}', salt = '{'00' * 16}' WHERE judgement_id = '{wrong.id}'",
        "DELETE FROM seals",
    )
    seal(store, now=100.0)
    assert store.verify() == []  # the store alone cannot tell …
    assert named(store, published=published) == ["seal 1", "seal 2"]  # … what was noted elsewhere can


def test_any_byte_of_a_sealed_row_that_is_flipped_is_named(tmp_path):
    store = sealed_store(tmp_path / "k.db", n_seals=1, per_seal=2)
    target = store.records()[0].id
    with store.connection() as connection:
        row = connection.execute(sa.select(schema.judgements).where(schema.judgements.c.id == target)).one()
    store.close()
    data = (tmp_path / "k.db").read_bytes()
    at = data.index("".join(row[1:7]).encode())  # the text columns of a row of SQLite lie one behind the other
    for value in row[1:12]:
        for place in {at, at + len(value) // 2, at + len(value) - 1}:
            flipped = bytearray(data)
            flipped[place] ^= 1
            (tmp_path / "flipped.db").write_bytes(flipped)
            with open_store(tmp_path / "flipped.db") as other:
                assert other.verify(), (value, place)
        at += len(value)


def test_leaves_give_nothing_away_that_could_be_guessed(new_address):
    store = small_store(new_address("k"))
    store.submit(vote(store.tasks()[0], "r0", reason="words"))
    one = seal(store, now=0.0, nonce="ab" * 16)
    with store.connection() as connection:
        row = connection.execute(sa.select(people.seals)).one()
    record = store.records()[0]
    assert json.loads(row.leaves)[:4] == ["judgements", 1, record.commitment, False]
    assert record.id not in row.leaves
    assert json.loads(row.leaves)[4] != seals.blinded("cd" * 16, [record.id])
    assert one.root == seals.leaves_root([row.leaves])


def test_a_published_line_is_checked():
    with pytest.raises(InputError, match="expected `karat-seal NUMBER seal:…`"):
        verify_seals([], {}, ["seal 3"])
    with pytest.raises(InputError, match="karat-seal ² seal:00'; expected"):
        verify_seals([], {}, ["karat-seal ² seal:00"])
    assert verify_seals([], {}, ["karat-seal 1 seal:00"])[0].what == (
        "found no such seal, published was seal:00: the record was rewritten"
    )
