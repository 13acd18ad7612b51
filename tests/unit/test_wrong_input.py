"""Wrong options and files of the commands that keep people and stores: one line, and nothing is changed by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedback_cases import small_store
from karat import cli
from karat.feedback.record.backup import rows_hash
from karat.feedback.store import open_store

NOWHERE = "http://127.0.0.1:9/v1"
"""Where no server is: nobody gets so far as to ask it."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def check(words: str, *arguments: object) -> None:
        assert cli.main([str(one) for one in arguments]) == 2
        shown = capsys.readouterr()
        assert words in shown.err
        assert (shown.err.count("\n"), shown.out) == (1, "")

    return check


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--days", "0"), "link: found a life of 0 days"),
        (("--days", "nan"), "link: found a life of nan days"),
        (("--url", "nonsense"), "url: found 'nonsense'; expected an address that links begin with"),
        (("--url", "javascript:alert(1)"), "url: found 'javascript:alert(1)'"),
        (("--url", "http://[::1"), "url: found 'http://[::1'"),
        (("--url", "https://a.example/?q"), "url: found 'https://a.example/?q'"),
    ],
)
def test_an_account_is_not_made_for_a_link_that_cannot_be(place: Path, refused, options, words):
    refused(words, "people", "add", "new.db", *options)
    assert not list(place.iterdir())


@pytest.mark.usefixtures("place")
def test_a_study_begins_with_an_address(refused):
    refused("url: found 'nonsense'", "people", "study", "new.db", "pilot", "--url", "nonsense")


READERS = {
    "verify": ("verify",),
    "seal": ("seal",),
    "quality": ("quality",),
    "export": ("export", "--format", "votes", "--out", "out.jsonl"),
    "backup": ("backup", "--out", "out"),
}


@pytest.mark.parametrize("command", READERS)
def test_an_empty_file_stays_empty(place: Path, refused, command: str):
    name, *rest = READERS[command]
    Path("mine.jsonl").touch()
    refused("mine.jsonl: found an empty database; expected a store", name, "mine.jsonl", *rest)
    assert Path("mine.jsonl").stat().st_size == 0
    assert [one.name for one in place.iterdir()] == ["mine.jsonl"]


def test_tables_that_are_none(place: Path, refused):
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    (place / "empty").mkdir()
    command = ("import", "--store", "votes.db", "--format")
    refused("empty: found a directory; expected a Parquet file", *command, "parquet", "empty")
    refused("none: found no such file; expected a Parquet file", *command, "parquet", "none")
    refused("none: found no such directory; expected one of datasets", *command, "datasets", "none")


@pytest.mark.usefixtures("place")
def test_the_number_of_a_record_may_be_anything(refused):
    open_store("votes.db").close()
    for number in (0, 2**63, 10**30):
        refused(f"judgement {number}: is not in the store", "disclose", "votes.db", number, "--out", "out.jsonl")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "m", "p", "--out", "o", "--samples"),
        ("best-of-n", "m", "p", "--score", "s", "--out", "o", "--n"),
        ("collect", "--model", "m", "--prompts", "p", "--tasks"),
        ("people", "add", "new.db", "--n"),
    ],
)
def test_a_count_that_would_fill_the_memory(refused, command):
    refused("should be less than or equal to 1000000", *command, 10**20)


@pytest.mark.usefixtures("place")
def test_a_file_of_nothing_to_say(refused):
    Path("turns.txt").write_text("\n \n")
    refused("turns.txt: found no text; expected one entry a line", "chat", "no-model", "--turns", "turns.txt")


@pytest.fixture
def people_store(place: Path) -> Path:
    """A store with a rater of a person, an account and a gold item."""
    from karat.feedback.people.accounts import make_account

    with small_store(place / "s.db") as store:
        make_account(store, "admin", now=1.0, login="boss")
    (place / "gold.jsonl").write_text(
        '{"prompt": "Why?", "responses": ["Because.", "No."], "expected": "a"}\n', encoding="utf-8"
    )
    assert cli.main(["checks", "gold", "s.db", "gold.jsonl", "--version", "1"]) == 0
    return place


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (r"--contact: found 'a\udcffb', bytes that are not UTF-8", ("people", "add", "s.db", "--contact", "a\udcffb")),
        (r"--reason: found '\udcff', bytes that are not UTF-8", ("erase", "s.db", "r0", "--yes", "--reason", "\udcff")),
        (r"found 's\udcff', bytes that are not UTF-8", ("experiment", "s.db", "s\udcff", "--arm", "a", "--arm", "b")),
        ("account: the login 'boss' is taken", ("people", "add", "s.db", "--login", "boss")),
        ("people token: found --hours 0; expected more than 0", ("people", "token", "s.db", "boss", "--hours", "0")),
        ("people token: found --hours -1; expected more", ("people", "token", "s.db", "boss", "--hours", "-1")),
        ("'task:nope' is no gold item", ("checks", "retire", "s.db", "task:nope")),
        ("no gold items of version '9'; found 1", ("checks", "retire", "s.db", "--version", "9")),
        ("found --arm and --end", ("experiment", "s.db", "x", "--arm", "a", "--arm", "b", "--end")),
        ("judge: found the model ' '", ("judge", "s.db", " ", "--endpoint", NOWHERE)),
        ("judge: found the name ' '", ("judge", "s.db", "m", "--name", " ", "--endpoint", NOWHERE)),
        ("r0: found a rater of origin person", ("judge", "s.db", "m", "--name", "r0", "--endpoint", NOWHERE)),
        ("no question of batch 'nope'", ("judge", "s.db", "m", "--batch", "nope", "--endpoint", NOWHERE)),
        ("temperature=nan", ("judge", "s.db", "m", "--temperature", "nan", "--endpoint", NOWHERE)),
        ("max_new_tokens=0; expected ≥ 1", ("judge", "s.db", "m", "--max-new-tokens", "0", "--endpoint", NOWHERE)),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(people_store: Path, refused, capsys, words, arguments):
    capsys.readouterr()
    with open_store(people_store / "s.db") as store:
        before = rows_hash(store)
    refused(words, *arguments)
    with open_store(people_store / "s.db") as store:
        assert rows_hash(store) == before


def test_a_backup_is_restored_to_a_named_place(people_store: Path, refused, capsys):
    assert cli.main(["backup", "s.db", "--out", "copy"]) == 0
    capsys.readouterr()
    refused("restore: found no place for the store", "restore", "copy", "")
    assert sorted(one.name for one in people_store.glob("*.db")) == ["s.db"]
