"""Statements that go straight to the driver say and do what SQLAlchemy's execution would, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import bindparam, select

from feedback_cases import small_store, vote
from karat.errors import StoreError
from karat.feedback import schema as tables
from karat.feedback.prepared import Prepared
from karat.feedback.store import Store


@pytest.fixture
def store(new_address) -> Store:
    store = small_store(new_address("prepared"))
    for task in store.tasks()[:3]:
        store.submit(vote(task, "r0"))
    return store


def test_rows_are_those_of_an_execution(store: Store):
    here = tables.judgements.c
    question = (
        select(tables.judgements)
        .where(here.annotator == bindparam("who"), here.kind.in_(("comparison", "rating")))
        .order_by(here.seq)
        .limit(2)
    )
    prepared = Prepared(question)
    with store.connection() as connection:
        wanted = connection.execute(question, {"who": "r0"}).all()
        found = prepared.all(connection, who="r0")
        assert [tuple(row) for row in found] == [tuple(row) for row in wanted]
        assert found[0]._fields == tuple(wanted[0]._fields)
        assert found[0].late is False  # SQLite keeps 0
        assert prepared.first(connection, who="r0") == found[0]
        assert prepared.scalar(connection, who="r0") == wanted[0].seq
        assert prepared.first(connection, who="nobody") is None
        assert prepared.scalar(connection, who="nobody") is None


def test_a_change_says_how_many_rows_and_is_undone_with_its_transaction(store: Store):
    change = Prepared(tables.tasks.update().where(tables.tasks.c.n_answers == bindparam("n")).values(state="pulled"))

    def write(connection: sa.Connection) -> None:
        assert change.run(connection, n=0) == len(store.tasks()) - 3
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.write(write)
    with store.connection() as connection:
        assert Prepared(select(tables.tasks).where(tables.tasks.c.state == "pulled")).all(connection) == []


def test_what_the_database_refuses_is_one_line(store: Store):
    row = Prepared(tables.annotators.insert(), "id", "origin", "done_to")
    with store.connection(write=True) as connection:
        assert row.run(connection, id="new", origin="person", done_to=0) == 1
    with (
        pytest.raises(StoreError, match="nothing was stored") as found,
        store.connection(write=True) as connection,
    ):
        row.run(connection, id="new", origin="person", done_to=0)
    assert isinstance(found.value.__cause__, sa.exc.IntegrityError)
    assert "\n" not in str(found.value)
    assert "new" in store.annotators()


def test_values_are_named_and_types_are_those_that_drivers_give_back(store: Store):
    question = Prepared(select(tables.tasks).where(tables.tasks.c.id == bindparam("task")))
    dates = Prepared(select(sa.literal(None, sa.Date).label("day")))
    with store.connection() as connection:
        with pytest.raises(TypeError, match=r"found values for \['other'\]; expected those of \['task'\]"):
            question.first(connection, other="x")
        with pytest.raises(TypeError, match="expected text, numbers or truth values"):
            dates.first(connection)
