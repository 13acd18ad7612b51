"""`--json` of the commands that keep a record: one document on standard output, one line of it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feedback_cases import small_store, vote
from karat import cli

COMMANDS = {
    "seal": (("seal", "s.db"), {"new", "seal"}),
    "bundle": (("bundle", "s.db", "--out", "bundle"), {"path", "n_judgements", "n_raters"}),
    "backup": (("backup", "s.db", "--out", "copy"), {"path", "rows", "seal"}),
    "restore": (("restore", "copy", "back.db"), {"address", "rows", "problems"}),
    "disclose": (("disclose", "s.db", "1", "2", "--out", "opened.jsonl"), {"out", "n_records"}),
    "verify of opened records": (("verify", "bundle", "--opened", "opened.jsonl"), {"ok", "problems"}),
    "verify against": (("verify", "s.db", "--against", "bundle"), {"ok", "problems"}),
    "experiment, made": (("experiment", "s.db", "x", "--arm", "a", "--arm", "b: levels = 2"), {"experiment", "done"}),
    "experiments": (("experiment", "s.db"), {"experiments"}),
    "experiment, ended": (("experiment", "s.db", "x", "--end"), {"experiment", "done"}),
    "arena": (("arena", "s.db"), {"arenas"}),
    "people add": (("people", "add", "s.db", "--n", "2"), {"accounts"}),
    "people list": (("people", "list", "s.db"), {"accounts"}),
    "people participants": (("people", "participants", "s.db"), {"participants"}),
    "checks": (("checks", "list", "s.db"), {"gold", "qualification"}),
    "erase, asked": (("erase", "s.db", "r0", "--reason", "by mail"), {"done", "n_judgements", "artefacts"}),
    "erase": (("erase", "s.db", "r0", "--reason", "by mail", "--yes"), {"done", "n_erased", "removed", "rewritten"}),
}
"""What is typed, in this order, and names that the document has."""


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_every_command_of_the_record_writes_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with small_store(tmp_path / "s.db", overlap=1) as store:
        store.submit_many([vote(task, "r0", reason="so") for task in store.tasks()[:3]])
    for name, (arguments, names) in COMMANDS.items():
        assert cli.main([*arguments, "--json"]) == 0, name
        said = capsys.readouterr().out
        assert (said.count("\n"), said[-1:]) == (1, "\n"), name
        assert names <= json.loads(said, parse_constant=no_constant).keys(), name


def test_an_erasure_says_what_else_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["people", "add", "s.db", "--json"]) == 0
    who = json.loads(capsys.readouterr().out)["accounts"][0]["annotator"]
    assert cli.main(["erase", "s.db", who, "--reason", "by mail", "--yes"]) == 0
    assert "what led to the person is gone: invites 1, accounts 1" in capsys.readouterr().out
    assert cli.main(["erase", "s.db", who, "--reason", "by mail", "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to erase: no words in 0 judgements, and nothing that leads to a person\n"


def test_what_is_erased_already_is_not_announced_again_and_an_admin_is_erased_by_her_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with small_store(tmp_path / "s.db", overlap=1) as store:
        store.submit_many([vote(task, "r0", reason="so" * (i < 2) or None) for i, task in enumerate(store.tasks()[:3])])
    erase = ("erase", "s.db", "r0", "--reason", "by mail")
    assert cli.main([*erase]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 of 3 judgements with words", "nothing else leads to the person", "repeat with --yes to erase it for good",
    ]  # fmt: skip
    assert cli.main([*erase, "--yes"]) == 0
    assert capsys.readouterr().out.startswith("2 of 3 judgements had words; they are gone\n")
    for yes in ([], ["--yes"]):
        assert cli.main([*erase, *yes]) == 0
        assert capsys.readouterr().out.startswith("nothing to erase: no words in 3 judgements")
    for login in ("boss", "second"):
        assert (
            cli.main(["people", "add", "s.db", "--role", "admin", "--login", login, "--contact", f"{login}@mail"]) == 0
        )
    capsys.readouterr()
    assert cli.main(["erase", "s.db", "boss", "--reason", "by mail", "--yes"]) == 0
    assert capsys.readouterr().out == "what led to the person is gone: invites 1, accounts 1, admin_log 1\n"
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"boss" not in on_disk
    assert cli.main(["erase", "s.db", "second", "--reason", "by mail", "--yes"]) == 2
    assert "this is the last active admin; make another account an admin first" in capsys.readouterr().err
    assert b"second@mail" in b"".join(path.read_bytes() for path in tmp_path.iterdir())
