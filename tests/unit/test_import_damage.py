"""Files of judgements from elsewhere in which something is of another kind: one line with file and record, nothing stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from karat import cli
from karat.errors import StoreError
from karat.feedback.store import open_store, store_to_fill

FIELDS = {"prompt": "Which?", "response_1": "this", "response_2": "that"}
ARGILLA = {
    "fields": FIELDS,
    "responses": {"comparison": [{"value": "response_1", "user_id": "ann", "status": "submitted"}]},
}
LABEL_STUDIO = {
    "data": {"prompt": "Which?", "answer1": "this", "answer2": "that"},
    "annotations": [
        {
            "completed_by": {"email": "ann"},
            "result": [
                {"from_name": "comparison", "to_name": "answer1", "type": "pairwise", "value": {"selected": "left"}}
            ],
        }
    ],
}


def at(*path: Any, to: Any) -> Callable[[Any], None]:
    """A change of one value inside nested lists and objects."""

    def spoil(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return spoil


FOREIGN: dict[str, tuple[str, Any, Callable[[Any], None]]] = {
    "responses in a list": ("argilla", ARGILLA, at("responses", to=[1])),
    "responses of a question a number": ("argilla", ARGILLA, at("responses", "comparison", to=3)),
    "a response null": ("argilla", ARGILLA, at("responses", "comparison", to=[None])),
    "a response a text": ("argilla", ARGILLA, at("responses", "comparison", to=["x"])),
    "fields in a list": ("argilla", ARGILLA, at("fields", to=["x"])),
    "metadata a text": ("argilla", ARGILLA, at("metadata", to="x")),
    "carried rows cut": ("argilla", ARGILLA, at("metadata", to={"karat": '[{"a"'})),
    "carried rows foreign": ("argilla", ARGILLA, at("metadata", to={"karat": '[{"a": 1}]'})),
    "half a surrogate pair": ("argilla", ARGILLA, at("fields", "response_1", to="\ud800")),
    "a NUL": ("argilla", ARGILLA, at("fields", "response_1", to="a\0b")),
    "annotations of numbers": ("label-studio", LABEL_STUDIO, at("annotations", to=[3])),
    "annotations a number": ("label-studio", LABEL_STUDIO, at("annotations", to=3)),
    "meta a text": ("label-studio", LABEL_STUDIO, at("annotations", 0, "meta", to="x")),
    "meta of nothing": ("label-studio", LABEL_STUDIO, at("annotations", 0, "meta", to={"karat": {}})),
    "results a number": ("label-studio", LABEL_STUDIO, at("annotations", 0, "result", to=3)),
    "a result a text": ("label-studio", LABEL_STUDIO, at("annotations", 0, "result", to=["x"])),
    "a value a list": ("label-studio", LABEL_STUDIO, at("annotations", 0, "result", 0, "value", to=[1])),
    "data in a list": ("label-studio", LABEL_STUDIO, at("data", to=[1])),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], words: str, kind: str, content: str, name: str = "in.json") -> None:
    Path(name).write_text(content, encoding="utf-8")
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert cli.main(["import", name, "--format", kind, "--store", "new.db"]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert sorted(Path().iterdir()) == before  # no empty store


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_record_of_another_form(case: str, capsys: pytest.CaptureFixture[str]):
    kind, whole, spoil = FOREIGN[case]
    spoiled = json.loads(json.dumps(whole))
    spoil(spoiled)
    refused(capsys, "in.json: record 2: ", kind, json.dumps([whole, spoiled]))


JUDGEMENT: dict[str, Callable[[Any], None]] = {
    "turns of numbers": at("prompt", to=[3]),
    "content null": at("prompt", 0, "content", to=None),
    "a response's text null": at("responses", 0, "text", to=None),
    "a sample a list": at("responses", 0, "sample", to=[]),
    "overlap a text": at("task", "overlap", to="x"),
    "kind null": at("task", "kind", to=None),
    "an annotator of nobody": at("annotator", "id", to=None),
    "a group a list": at("annotator", "group", to=[1]),
    "an origin from nowhere": at("annotator", "origin", to="moon"),
    "shown order null": at("judgement", "shown_order", to=None),
    "shown order of texts": at("judgement", "shown_order", to=["x"]),
    "value a list": at("judgement", "value", to=[1]),
    "created_at a number": at("judgement", "created_at", to=3),
    "propensity a text": at("judgement", "propensity", to="x"),
    "another level": at("judgement", "value", "level", to=99),
    "question a number": at("question", to={"kind": 3}),
    "an identity of nothing": at("id", to="x"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", JUDGEMENT)
def test_an_exported_judgement_that_was_changed(case: str, capsys: pytest.CaptureFixture[str]):
    vote = {"prompt": "Which?", "a": "this", "b": "that", "choice": "a", "annotator": "ann"}
    Path("votes.jsonl").write_text(json.dumps(vote) + "\n" + json.dumps(vote | {"annotator": "bob"}) + "\n")
    assert cli.main(["import", "votes.jsonl", "--format", "votes", "--store", "votes.db"]) == 0
    assert cli.main(["export", "votes.db", "--format", "judgements", "--out", "out.jsonl"]) == 0
    first, second = map(json.loads, Path("out.jsonl").read_text().split("\n")[:2])
    JUDGEMENT[case](second)
    refused(capsys, "in.jsonl:2: ", "judgements", json.dumps(first) + "\n" + json.dumps(second) + "\n", "in.jsonl")


VOTE = {"prompt": "Which?", "a": "this", "b": "that", "choice": "a", "annotator": "ann"}
TWICE = '{"prompt": "Which?", "a": "this", "b": "that", "choice": "a", "annotator": "ann", "choice": "b"}'


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_field_twice_in_a_row(end: str, capsys: pytest.CaptureFixture[str]):
    words = "in.jsonl:2: found the field 'choice' twice; expected it once"
    refused(capsys, words, "votes", json.dumps(VOTE) + "\n" + TWICE + end, "in.jsonl")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["argilla", "label-studio"])
def test_a_field_twice_in_a_record(kind: str, capsys: pytest.CaptureFixture[str]):
    refused(capsys, "in.json: found the field 'a' twice", kind, '[{"a": 1, "b": {"a": 1, "a": 2}}]')


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\x85b", "a\tb"])
def test_a_pseudonym_on_two_lines(name: str, capsys: pytest.CaptureFixture[str]):
    refused(capsys, f"in.jsonl:1: rater {name!r}", "votes", json.dumps(VOTE | {"annotator": name}) + "\n", "in.jsonl")


def test_who_is_in_a_store_stays_whatever_the_name(place: Path):
    from karat.feedback import additions
    from karat.records import Annotator

    with pytest.MonkeyPatch.context() as patch, open_store(place / "old.db") as store:
        patch.setattr(additions, "check_pseudonym", lambda name: name)
        store.add_annotators([Annotator("a\nb")])
    with open_store(place / "old.db") as store:
        assert store.add_annotators([Annotator("a\nb"), Annotator("c")]) == 1


def test_a_store_appears_whole_and_takes_nobodys_place(place: Path):
    with store_to_fill("new.db") as store:
        assert store.address == "new.db"
        assert not Path("new.db").exists()
    assert Path("new.db").stat().st_mode & 0o777 == 0o600
    with (
        pytest.raises(StoreError, match=r"other\.db: was made by another command meanwhile"),
        store_to_fill("other.db"),
    ):
        Path("other.db").write_text("hers")
    assert Path("other.db").read_text() == "hers"
    assert sorted(one.name for one in place.iterdir()) == ["new.db", "other.db"]
