"""Answers of every kind from hand-written files: lines of JSON and tables, misfits by file and line, round trips."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from every_kind import store_of_every_kind
from karat import cli
from karat.errors import InputError, StoreError
from karat.feedback.exchange.answers import import_answers
from karat.feedback.exchange.exporters import export_answers
from karat.feedback.store import open_store
from karat.records import KINDS

DOCS = Path(__file__).parents[2] / "docs" / "votes-format.md"
ABOUT = {"prompt": "why?", "annotator": "ann"}
RESPONSES = {"responses": ["one", "two", "three"]}
EVERY = [
    {"kind": "comparison", "a": "one", "b": "two", "choice": "a"},
    {"kind": "ranking", **RESPONSES, "ranks": [1, 2, 2]},
    {"kind": "best_of", **RESPONSES, "best": 1},
    {"kind": "rating", "response": "one", "score": 4.5, "low": 1, "high": 5},
    {"kind": "rating", "response": "one", "scores": {"helpful": 4}, "low": 1, "high": 5},
    {"kind": "label", "response": "one", "good": False, "flags": ["spam", "rude"]},
    {"kind": "correction", "response": "one", "text": "eins"},
    {"kind": "demonstration", "text": "because, of\ncourse"},
    {"kind": "critique", "response": "one", "text": "short", "aspects": ["length"], "revision": "one and all"},
    {"kind": "span_marks", "response": "one two", "spans": [{"quote": "two", "class": "wrong"}]},
    {
        "kind": "step_marks",
        "response": "a. b.",
        "steps": [{"start": 0, "end": 2, "mark": 1}, {"quote": " b.", "mark": -1}],
    },
    {"kind": "rating", "response": "two", "missing": "cannot judge"},
]


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(ABOUT | row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(path: Path) -> list[tuple]:
    with open_store(path) as store:
        texts = {key: one.text for key, one in store.responses().items()}
        return [
            (one.kind, [texts[key] for key in one.response_ids], dict(one.value), one.annotator, one.origin)
            for one in store.judgements()
        ]


def brought(store: Path, path: Path) -> list[tuple]:
    with open_store(store) as opened:
        import_answers(opened, path)
    return said(store)


def test_every_kind_comes_in_from_lines(tmp_path):
    found = brought(tmp_path / "k.db", written(tmp_path / "a.jsonl", *EVERY))
    assert {kind for kind, *_ in found} == set(KINDS)
    assert found[1] == ("ranking", ["one", "two", "three"], {"ranks": [1, 2, 2]}, "ann", "imported")
    assert found[9][2] == {"spans": [{"response": 0, "start": 4, "end": 7, "class": "wrong"}]}
    assert found[10][2] == {"steps": [{"start": 0, "end": 2, "mark": 1}, {"start": 2, "end": 5, "mark": -1}]}
    assert found[11][2] == {"missing": "cannot judge"}
    with open_store(tmp_path / "k.db") as store:  # the same file again adds nothing
        assert import_answers(store, tmp_path / "a.jsonl").n_new == 0


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_a_table_says_the_same(tmp_path, name, comma):
    columns = list(dict.fromkeys(name for row in EVERY for name in row if name != "responses"))
    head = ["prompt", "annotator", *columns, "response_1", "response_2", "response_3"]
    with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, head, delimiter=comma)
        table.writeheader()
        for row in EVERY:
            cells = {key: as_written(value) for key, value in (ABOUT | row).items() if key != "responses"}
            cells |= {f"response_{i}": text for i, text in enumerate(row.get("responses", ()), 1)}
            table.writerow(cells)
    lines = brought(tmp_path / "lines.db", written(tmp_path / "a.jsonl", *EVERY))
    assert brought(tmp_path / "table.db", tmp_path / name) == lines


def as_written(value: object) -> object:
    """A cell as people write it."""
    if isinstance(value, list) and not isinstance(value[0], dict):
        return "; ".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | dict) else str(value).upper() if value is False else value


def test_the_documented_rows_are_answers(tmp_path):
    text = DOCS.read_text(encoding="utf-8").partition("## Answers of every kind")[2]
    lines, table = (re.search(rf"```{name}\n(.*?)```", text, re.S)[1] for name in ("json", "csv"))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    assert {kind for kind, *_ in brought(tmp_path / "k.db", tmp_path / "a.jsonl")} == {*KINDS} - {"comparison"}
    assert len(brought(tmp_path / "t.db", tmp_path / "a.csv")) == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"kind": "raking", **RESPONSES}, "found the kind 'raking'; expected one of comparison, ranking"),
        ({"kind": "ranking", **RESPONSES, "ranks": [1, 2]}, "ranking of 3 responses"),
        ({"kind": "ranking", **RESPONSES, "rank": [1, 2, 3]}, "found the unknown field 'rank'; did you mean 'ranks'?"),
        ({"kind": "ranking", "responses": ["one", "one"], "ranks": [1, 2]}, "the same response occurs twice"),
        ({"kind": "ranking", "responses": ["one"], "ranks": [1]}, "judges 1 responses; expected at least 2"),
        ({"kind": "ranking", "ranks": [1]}, "found none of 'responses' and 'response'"),
        ({"kind": "best_of", **RESPONSES, "best": 3}, "expected an index below 3"),
        ({"kind": "rating", "response": "one", "score": 6, "low": 1, "high": 5}, "expected low ≤ score ≤ high"),
        ({"kind": "rating", "response": "one", "score": "4", "low": 1, "high": 5}, "expected numbers for score"),
        ({"kind": "rating", "score": 4, "low": 1, "high": 5}, "found none of 'response'; expected one"),
        ({"kind": "rating", "response": "one", "score": 4, "scores": {"tone": 1}, "low": 1, "high": 5}, "found both"),
        ({"kind": "demonstration", "who": "ann", "text": "x"}, "strategy, submission, submitted_at, task, text, topic"),
        ({"kind": "label", "response": "one", "good": "no"}, "expected good: true or false, or flags"),
        ({"kind": "correction", "response": "one", "text": " "}, "expected something written"),
        ({"kind": "demonstration", "response": "one", "text": "x"}, "found the unknown field 'response'"),
        ({"kind": "critique", "response": "one", "text": "x", "missing": "y"}, "found text beside 'missing'"),
        (
            {"kind": "critique", "response": "one", "text": "x", "revision": "one"},
            "a revision that equals the response",
        ),
        ({"kind": "span_marks", "response": "one", "spans": [{"quote": "two", "class": "w"}]}, "found 'two' 0 times"),
        ({"kind": "span_marks", "response": "one", "spans": [{"start": 1, "end": 9, "class": "w"}]}, "marks 1–9 of a"),
        (
            {"kind": "span_marks", "response": "one", "spans": [{"start": -1, "end": 2, "class": "w"}]},
            "0 ≤ start < end",
        ),
        (
            {"kind": "step_marks", "response": "one", "steps": [{"start": 0, "end": 2, "mark": 2}]},
            "expected −1, 0 or 1",
        ),
        ({"kind": "step_marks", "response": "one", "steps": "none"}, "expected 1 response and its steps"),
    ],
)
def test_a_misfit_is_one_line_with_its_place_and_nothing_is_stored(tmp_path, row, says):
    path = written(tmp_path / "a.jsonl", EVERY[0], row)
    with open_store(tmp_path / "k.db") as store:
        with pytest.raises((InputError, StoreError)) as wrong:
            import_answers(store, path)
        assert str(wrong.value).startswith(f"{path}:2: ")
        assert says in str(wrong.value)
        assert "\n" not in str(wrong.value)
        assert store.n_judgements() == 0


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("kind,kind\nrating,rating\n", "a.csv:1: found the columns 'kind', 'kind'"),
        ("kind,prompt\n", "a.csv: found no rows"),
        ("kind|prompt\nrating|x\n", 'a.csv:1: found one column, "kind|prompt"; expected commas, semicolons or tabs'),
        ("kind,text,prompt\ndemonstration,x,y,z\n", "a.csv:2: found 4 cells in a row of 3 columns"),
        ('kind,text,prompt\n\ndemonstration,"x\ny",why\nlabel,x,y\n', "a.csv:5: found the unknown field 'text'"),
        ('kind,text,prompt\ndemonstration,"x,y\n', "a.csv:2: found no complete row"),
        ("kind,prompt,response_1,response_3,ranks\nranking,y,a,b,1;2\n", "without a gap"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, table, says):
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    with open_store(tmp_path / "k.db") as store, pytest.raises(InputError) as wrong:
        import_answers(store, tmp_path / "a.csv")
    assert says in str(wrong.value)


def test_a_table_holds_long_texts_and_lists_of_numbers_with_commas(tmp_path):
    long = "x" * 200_000
    table = f"kind;prompt;response_1;response_2;response_3;ranks\nranking;why?;a;b;{long};1, 3, 2\n"
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    ((kind, responses, value, _, _),) = brought(tmp_path / "k.db", tmp_path / "a.csv")
    assert (kind, responses, value) == ("ranking", ["a", "b", long], {"ranks": [1, 3, 2]})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_may_end_its_lines_in_any_way_and_hold_them_in_cells(tmp_path, end):
    table = (
        f'kind,prompt,text{end}demonstration,why?,"two{end}lines\u2028"{end}{end}demonstration,when?,x{end}rating,y,z'
    )
    (tmp_path / "a.csv").write_bytes(table.encode())
    with (
        open_store(tmp_path / "k.db") as store,
        pytest.raises(InputError, match=r"a\.csv:6: found the unknown field 'text'"),
    ):
        import_answers(store, tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(table.rpartition(end)[0].encode())
    assert [value["text"] for _, _, value, *_ in brought(tmp_path / "k.db", tmp_path / "a.csv")] == [
        f"two{end}lines\u2028",
        "x",
    ]


def test_responses_may_be_named_by_id(tmp_path):
    texts = [{"id": str(i), "prompt": "why?", "text": f"text {i}"} for i in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    row = {"kind": "ranking", "responses": ["2", "0"], "ranks": [2, 1], "annotator": "ann"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with open_store(tmp_path / "k.db") as store:
        import_answers(store, tmp_path / "a.jsonl", tmp_path / "t.jsonl")
    assert said(tmp_path / "k.db")[0][1] == ["text 2", "text 0"]
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"responses": ["2", "7"]}) + "\n")
    with open_store(tmp_path / "k.db") as store, pytest.raises(InputError, match=r"a.jsonl:1: found the id '7'"):
        import_answers(store, tmp_path / "a.jsonl", tmp_path / "t.jsonl")


def test_what_is_exported_comes_back(tmp_path, capsys):
    store_of_every_kind(tmp_path / "k.db").close()
    out, again = str(tmp_path / "a.jsonl"), str(tmp_path / "again.db")
    assert cli.main(["export", str(tmp_path / "k.db"), "--format", "answers", "--out", out]) == 0
    assert cli.main(["import", out, "--format", "answers", "--store", again]) == 0
    capsys.readouterr()
    with open_store(tmp_path / "k.db") as store, open_store(again) as other:
        before = {one.submission: one for one in store.judgements()}
        after = {one.submission: one for one in other.judgements()}
        assert before.keys() - after.keys() == {"b-1"}  # corrected by b-2
        for key, second in after.items():
            for name in (
                "kind", "prompt_id", "response_ids", "value", "annotator", "shown_order", "guideline", "created_at", "active_s",
                "idle_s", "reason", "propensity", "strategy", "shown",
            ):  # fmt: skip
                assert getattr(before[key], name) == getattr(second, name), (key, name)
        assert other.prompts() == store.prompts()
        export_answers(other, tmp_path / "b.jsonl")
    assert sorted((tmp_path / "b.jsonl").read_text().splitlines()) == sorted(Path(out).read_text().splitlines())
