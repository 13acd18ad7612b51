"""Stores whose file or rows were damaged: one line that names the store and says what to do, and `verify` finds it."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from feedback_cases import small_store, tamper, vote
from karat import cli
from karat.errors import StoreError
from karat.feedback.people.door import keep_door
from karat.feedback.store import open_store
from karat.records import Annotator
from web_app import served


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
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE assignments SET task_id = 'task:x' WHERE annotator = 'r9'", "file  a row of assignments names one of tasks "),
        ("UPDATE judgements SET has_words = 0", "it has words, and its record says that it has none: it was altered"),
    ],
)  # fmt: skip
def test_what_names_nothing_or_denies_its_words_is_found(statement: str, said: str, capsys: pytest.CaptureFixture[str]):
    with open_store("k.db") as store:
        store.add_annotators([Annotator("r9")])
        store.submit(vote(store.tasks()[0], "r9", reason="so"))
    assert cli.main(["verify", "k.db"]) == 0
    alter(statement)
    capsys.readouterr()
    assert cli.main(["verify", "k.db"]) == 1
    assert said in capsys.readouterr().out


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


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("table", ["consents", "invites", "standing", "words"])
def test_a_table_that_is_gone_is_named_by_every_command(table: str, capsys: pytest.CaptureFixture[str]):
    alter(f"DROP TABLE {table}")
    for command in (
        ["verify"],
        ["trial"],
        ["backup", "--out", "made"],
        ["backup", "--out", "made.db"],
        ["people", "add"],
    ):
        assert cli.main([*command, "k.db"]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(f"karat: k.db: found no table {table!r}; the store was damaged or altered")
        assert (shown.err.count("\n"), shown.out, [*Path().glob("*made*")]) == (1, "", [])


@pytest.mark.usefixtures("place")
def test_a_damaged_file_is_not_copied_as_a_backup(capsys: pytest.CaptureFixture[str]):
    whole = bytearray(Path("k.db").read_bytes())
    with sqlite3.connect("k.db") as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'judgements_by_task'").fetchone()
    connection.close()
    whole[(page - 1) * 4096 : page * 4096] = bytes(4096)
    Path("k.db").write_bytes(whole)
    assert cli.main(["backup", "k.db", "--out", "b.db"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("karat: k.db: ")
    assert "nothing was copied, the store was damaged or altered: `karat verify` says where" in shown.err
    assert not [*Path().glob("*b.db*")]
    assert cli.main(["backup", "k.db", "--out", "b"]) == 0  # the rows can be read, and are kept
    assert cli.main(["verify", "b"]) == 0


@pytest.mark.usefixtures("place")
def test_bytes_that_are_no_text_are_one_line_where_rows_come_straight_from_the_driver(
    capsys: pytest.CaptureFixture[str],
):
    with open_store("k.db") as store:
        keep_door(store, "https://example.org", now=0.0)
    alter("UPDATE documents SET body = CAST(x'ff' AS TEXT)")
    assert cli.main(["people", "add", "k.db"]) == 2
    assert "k.db: found bytes that are no text; the store was damaged or altered" in capsys.readouterr().err


def test_pages_of_a_damaged_store_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = served(tmp_path)
    browser = made.browser("admin")
    assert browser.get("/admin").status_code == 200
    tamper(made.store, "UPDATE tasks SET response_ids = '{'")
    found = [browser.get(path) for path in ("/admin", "/admin/tasks", "/admin/queue", "/api/v1/tasks")]
    damaged = [one for one in found if one.status_code == 500]
    assert damaged
    for one in damaged:
        assert "The store is damaged" in one.text
        assert "karat verify" not in one.text
    assert "is not readable" in caplog.text
