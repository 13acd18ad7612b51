"""Stores whose file or rows were damaged: one line that names the store and says what to do, and `verify` finds it."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from feedback_cases import small_store, vote
from karat import cli
from karat.errors import StoreError
from karat.feedback.store import open_store


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with small_store("k.db") as store:
        store.submit_many([vote(task, f"r{i}", level=i) for task in store.tasks() for i in range(3)])
    return tmp_path


def alter(*statements: str) -> None:
    """Change a store behind its back."""
    with sqlite3.connect("k.db", isolation_level=None) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


ROWS = {
    "value cut": ("UPDATE judgements SET value = '{' WHERE seq = 3", "is not readable"),
    "value a list": ("UPDATE judgements SET value = '[]' WHERE seq = 3", "is not readable"),
    "responses of nothing": ("UPDATE judgements SET response_ids = 'x' WHERE seq = 3", "is not readable"),
    "prompts cut": ("UPDATE prompts SET turns = '{'", "is not readable"),
    "prompts of nothing": ("UPDATE prompts SET turns = '[]'", "is not readable"),
    "tasks of text": ("UPDATE tasks SET overlap = 'x'", "is not readable"),
    "no prompts": ("DELETE FROM prompts", "found no prompt 'prompt:"),
    "no responses": ("DELETE FROM responses", "found no response 'response:"),
    "no raters": ("DELETE FROM annotators", "found no rater 'r"),
    "no tasks": ("DELETE FROM tasks", "found no task 'task:"),
    "another rater": ("UPDATE judgements SET annotator = 'nobody' WHERE seq = 3", "found no rater 'nobody'"),
    "no version": ("DELETE FROM alembic_version", "found the tables of a store without its version"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["votes", "judgements"])
@pytest.mark.parametrize("case", ROWS)
def test_damaged_rows_are_one_line_and_verify_finds_them(case: str, kind: str, capsys: pytest.CaptureFixture[str]):
    statement, words = ROWS[case]
    alter(statement)
    assert cli.main(["export", "k.db", "--format", kind, "--out", "out.jsonl"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("karat: k.db: ")
    assert words in shown.err
    assert "`karat verify` says where, `karat restore` makes one from a backup" in shown.err
    assert (shown.err.count("\n"), shown.out, Path("out.jsonl").exists()) == (1, "", False)
    assert cli.main(["verify", "k.db"]) == (2 if case == "no version" else 1)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("part", range(4))
def test_random_bytes_anywhere_in_the_file_are_found(part: int, capsys: pytest.CaptureFixture[str]):
    whole = bytearray(Path("k.db").read_bytes())
    draw = random.Random(part)
    for page in range(part, len(whole) // 4096, 4):  # the heads of a quarter of the pages
        at = page * 4096 + (100 if page == 0 else 0)
        whole[at : at + 8] = bytes(draw.randrange(256) for _ in range(8))
    Path("k.db").write_bytes(whole)
    assert cli.main(["verify", "k.db"]) in (1, 2)
    shown = capsys.readouterr()
    assert "k.db: " in shown.err or "damaged" in shown.out
    assert "nothing was stored" not in shown.err
    assert Path("k.db").read_bytes() == whole  # what can still be read stays


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("left", [0.02, 0.1, 0.5])
def test_a_file_that_was_cut_says_what_to_do(left: float):
    whole = Path("k.db").read_bytes()
    Path("k.db").write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(StoreError, match=r"k\.db: the file is damaged.*`karat restore`"), open_store("k.db") as store:
        store.verify()
