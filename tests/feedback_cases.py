"""A small store with texts, raters and tasks, for the tests of the feedback room."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from alembic import command

from karat.feedback import engine
from karat.feedback.store import Store, open_store
from karat.feedback.tasks import answer, random_pairs
from karat.records import Annotator, Judgement, Response, Task, user_prompt


def small_store(
    path: Path | str, *, n_prompts: int = 4, n_tasks: int = 10, overlap: int = 2, n_raters: int = 5
) -> Store:
    """A store with 4 responses to each prompt and random tasks, not yet answered."""
    store = open_store(path)
    prompts = [user_prompt(f"question {i}", topic=f"topic {i % 2}") for i in range(n_prompts)]
    responses = [Response(prompt.id, "word " * (k + 1) + f"end {k}", "made", k) for prompt in prompts for k in range(4)]
    store.add_prompts(prompts)
    store.add_responses(responses)
    store.add_annotators([Annotator(f"r{i}") for i in range(n_raters)])
    by_prompt: dict[str, list[str]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response.id)
    store.add_tasks(random_pairs(by_prompt, n_tasks, np.random.default_rng(0), overlap=overlap))
    return store


def vote(task: Task, annotator: str, *, level: int = 2, key: str | None = None, **rest) -> Judgement:
    """A vote on a three-level scale, b shown first."""
    rest = {"created_at": "2026-01-01T00:00:00Z", "shown_order": (1, 0), **rest}
    submission = f"{annotator}/{task.id}" if key is None else key
    return answer(task, {"level": level, "n_levels": 3}, annotator=annotator, submission=submission, **rest)


def tamper(store: Store, *statements: str) -> None:
    """What somebody with the database's password can do: switch the guards off, then change whatever there is."""
    with store.connection(write=True) as connection:
        if store.dialect == "postgresql":
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        else:
            connection.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
            names = sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            for name in connection.execute(names).scalars().all():
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.exec_driver_sql(statement)


GOLDEN = Path(__file__).parent / "golden" / "store_0001.json"
OLD_ROWS = json.loads(GOLDEN.read_text(encoding="utf-8"))["rows"]
"""Every table of a store that the first version wrote."""


def at_revision(address: str, revision: str, *, up: bool = True) -> sa.Engine:
    opened = engine.open_engine(address, 30.0)
    with engine.transaction(opened, address, write=True) as connection:
        (command.upgrade if up else command.downgrade)(engine.alembic_config(connection), revision)
    return opened


def old_store(address: str) -> None:
    """A store as version 0001 left it: two votes, a critique whose words were erased, and one whose words are there."""
    opened = at_revision(address, "0001")
    with engine.transaction(opened, address, write=True) as connection:
        for table, rows in OLD_ROWS.items():
            for row in rows:
                names = ", ".join(row)
                values = ", ".join(f":{name}" for name in row)
                connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
    opened.dispose()
