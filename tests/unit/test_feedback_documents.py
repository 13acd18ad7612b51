"""Documents are written once, settings say what is wrong with them, and a question comes back as it was."""

import dataclasses
import sqlite3

import pytest

from karat.errors import InputError, StoreError
from karat.feedback.documents import (
    Budget,
    Pay,
    ProjectSettings,
    add_questions,
    document,
    documents,
    project_settings,
    put_document,
    put_settings,
    question_of,
    questions,
    settings_of,
)
from karat.feedback.store import open_store
from karat.questions import Choice, Question, plain_question
from karat.records import Task


@pytest.fixture
def store(new_address):
    return open_store(new_address("k"))


def test_the_newest_version_counts_and_the_older_ones_stay(store):
    first = put_document(store, "guideline", "v1", {"text": "be fair"}, now=1.0)
    second = put_document(store, "guideline", "v2", {"text": "be fair\nand kind"}, now=2.0)
    assert document(store, "guideline") == second
    assert document(store, "guideline", "v1") == first
    assert first.text == "be fair"
    assert [each.version for each in documents(store, "guideline")] == ["v1", "v2"]
    assert document(store, "consent") is None


def test_a_version_is_never_written_over(store):
    first = put_document(store, "guideline", "v1", {"text": "be fair"}, now=1.0)
    assert put_document(store, "guideline", "v1", {"text": "be fair"}, now=9.0) == first
    with pytest.raises(StoreError, match="version 'v1' is stored with another text; choose a new version"):
        put_document(store, "guideline", "v1", {"text": "be unfair"}, now=2.0)
    assert len(documents(store)) == 1


def test_the_database_refuses_to_change_a_document(tmp_path):
    store = open_store(tmp_path / "k.db")
    put_document(store, "consent", "1", {"text": "we keep your answers"}, now=1.0)
    with pytest.raises(sqlite3.IntegrityError, match="documents are append-only"):
        sqlite3.connect(tmp_path / "k.db").execute("UPDATE documents SET body = '{}'")


def test_versions_are_numbered_where_none_is_named(store):
    put_document(store, "examples", "2", {"text": "a"}, now=1.0)
    numbered = [put_document(store, "examples", "", {"text": text}, now=2.0).version for text in "bc"]
    assert numbered == ["3", "4"]


@pytest.mark.parametrize(("name", "version"), [("", "1"), ("x" * 65, "1"), ("x", "1" * 65)])
def test_names_and_versions_have_a_length(store, name, version):
    with pytest.raises(InputError, match="at most 64 characters"):
        put_document(store, name, version, {}, now=1.0)


def test_a_text_has_a_largest_size(store):
    with pytest.raises(InputError, match=r"found 10000\d\d characters; expected at most 1000000"):
        put_document(store, "guideline", "v1", {"text": "x" * 1_000_000}, now=1.0)


def test_settings_come_back_and_are_stored_once(store):
    assert project_settings(store) == ProjectSettings()
    settings = ProjectSettings(
        title="Hilfreich?", pay=Pay(12.5, "EUR", "hour"), budget=Budget(1000, 50.0), lease_minutes=5,
        experiments={"pay": {"low": 1.0, "high": 2.0}}, overlap={"*": 2, "hard": 5}, exposure_cap_per_day=3,
    )  # fmt: skip
    assert put_settings(store, settings, now=1.0).version == put_settings(store, settings, now=2.0).version == "1"
    assert project_settings(store) == settings
    assert project_settings(store).lease_s == 300.0
    assert put_settings(store, ProjectSettings(), now=3.0).version == "2"
    assert project_settings(store) == ProjectSettings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lease_minutes": 0.0}, "lease_minutes: found 0.0; expected minutes in"),
        ({"gold_rate": 0.6, "repeat_rate": 0.4}, "expected ≥ 0 with a sum below 1"),
        ({"repeat_gap": -1}, "repeat_gap: found -1"),
        ({"experiments": {"pay": {"low": 0.0}}}, "expected arms with weights > 0"),
        ({"experiments": {"pay": {}}}, "expected arms with weights > 0"),
        ({"overlap": {"*": 0}}, "at least 1 answer per stratum"),
        ({"budget": Budget(money=5.0)}, "found money without pay"),
    ],
)
def test_settings_say_what_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        ProjectSettings(**changes)


def test_settings_from_a_form_or_file_are_checked():
    assert settings_of({"title": "x", "pay": {"amount": 1, "currency": "EUR"}}).pay == Pay(1, "EUR")
    with pytest.raises(InputError, match="the unknown key 'titel'"):
        settings_of({"titel": "x"})
    with pytest.raises(InputError, match="wrong form"):
        settings_of({"budget": {"euros": 3}})
    with pytest.raises(InputError, match="expected ≥ 0 per judgement or hour"):
        Pay(1.0, "EUR", "week")


def test_a_question_comes_back_with_its_choices(store):
    asked = Question(
        kind="rating", attributes=(Choice("clear", "Clear?", "easy to follow"), Choice("true")), anchors=("no", "yes"),
        ways_out=("cannot_judge",), content_warning="violence", low=0, high=4,
    )  # fmt: skip
    assert add_questions(store, [asked, asked]) == 1
    assert add_questions(store, [asked, plain_question("label")]) == 1
    assert questions(store)[asked.id] == asked
    task = Task("prompt:x", ("response:x",), kind="rating", question=asked.id)
    assert question_of(store, task) == asked
    assert question_of(store, dataclasses.replace(task, question="")) == plain_question("rating")
    with pytest.raises(StoreError, match="add_questions first"):
        question_of(store, dataclasses.replace(task, question="question:none"))
