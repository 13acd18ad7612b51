"""What leaves a store in any format comes back as the same events, and what other tools wrote is read for what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from every_kind import TEXTS, store_of_every_kind
from feedback_cases import vote
from karat.errors import InputError
from karat.feedback.exchange import foreign, tabular
from karat.feedback.exchange.events import event_rows, import_event_rows
from karat.feedback.exchange.foreign import FieldNames
from karat.feedback.store import Store, open_store
from karat.records import Annotator, Judgement, Response, Task, user_prompt
from karat.rowfiles import read_rows, write_rows


def export_jsonl(store: Store, path: Path) -> int:
    return write_rows(path, event_rows(store))


def import_jsonl(store: Store, path: Path):
    return import_event_rows(store, read_rows(path))


FORMATS = {
    "jsonl": (export_jsonl, import_jsonl),
    "parquet": (tabular.export_parquet, tabular.import_parquet),
    "datasets": (tabular.export_dataset, tabular.import_dataset),
    "argilla": (foreign.export_argilla, foreign.import_argilla),
    "label-studio": (foreign.export_label_studio, foreign.import_label_studio),
}


@pytest.fixture
def store(tmp_path: Path):
    with store_of_every_kind(tmp_path / "from.db") as opened:
        yield opened


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_a_round_trip_keeps_every_event_with_order_rater_timing_and_guideline(store, tmp_path, name, capsys):
    write, read = FORMATS[name]
    path = tmp_path / f"out.{name}"
    assert write(store, path) > 0
    assert (path.stat().st_mode & 0o077) == 0  # people's words: for whoever wrote the file
    with open_store(tmp_path / "to.db") as other:
        done = read(other, path)
        assert done.n_new == done.n_rows == store.n_judgements() == 13
        assert sorted(record.id for record in other.records()) == sorted(record.id for record in store.records())
        events = {record.judgement.submission: record.judgement for record in other.records()}
        assert events == {record.judgement.submission: record.judgement for record in store.records()}
        assert {task.id: task for task in other.tasks()} == {task.id: task for task in store.tasks()}
        assert other.annotators() == store.annotators()
        assert other.responses() == store.responses()
        assert other.verify() == []
        assert read(other, path).n_new == 0
    assert capsys.readouterr().err == ""  # no bars of a library's own


def test_a_row_whose_content_was_altered_is_refused_and_nothing_is_stored(store, tmp_path):
    rows = list(event_rows(store))
    rows[0]["judgement"] |= {"value": {"level": 0, "n_levels": 7}}
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    with open_store(tmp_path / "to.db") as other:
        with pytest.raises(InputError, match=r"rows.jsonl:1: found the identity .* it was altered"):
            import_jsonl(other, path)
        assert other.n_judgements() == 0


def test_erased_words_are_counted_and_left_out(store, tmp_path):
    gone = next(record.id for record in store.records() if record.judgement.kind == "critique")
    store.erase_words([gone])
    export_jsonl(store, tmp_path / "rows.jsonl")
    assert "Too long" not in (tmp_path / "rows.jsonl").read_text()
    with open_store(tmp_path / "to.db") as other:
        done = import_jsonl(other, tmp_path / "rows.jsonl")
        assert (done.n_rows, done.n_new, done.n_erased) == (13, 12, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected 'karat-judgement-1'"),
        ({"task": {"kind": "comparison"}}, "an object of kind, overlap"),
        ({"question": {"kind": "comparison", "n_levels": 5}}, "with another content"),
        ({"responses": [{"text": "x"}]}, "an object of text, source, sample"),
    ],
)
def test_a_row_that_is_not_one_says_what_is_wrong(store, tmp_path, change, message):
    rows = list(event_rows(store))
    rows[0] |= change
    write_rows(tmp_path / "rows.jsonl", rows)
    with open_store(tmp_path / "to.db") as other, pytest.raises(InputError, match=message):
        import_jsonl(other, tmp_path / "rows.jsonl")


def test_argillas_own_records_are_read_for_what_they_say(tmp_path):
    a, b = TEXTS[:2]
    record = {
        "id": "r1",
        "fields": {"instruction": "Why?", "response_1": a, "response_2": b},
        "metadata": {},
        "suggestions": {},
        "responses": {
            "preference": [
                {"value": [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}], "user_id": "u1"},
                {"value": "tie", "user_id": "u2"},
                {"value": "response_1", "user_id": "u3", "status": "draft"},
            ],
            "quality": [{"value": 4, "user_id": "u1"}],
            "comment": [{"value": "Both are fine.", "user_id": "u2"}],
        },
    }
    path = tmp_path / "records.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    with open_store(tmp_path / "k.db") as store:
        done = foreign.import_argilla(store, path, FieldNames(low=1, high=7))
        assert (done.n_rows, done.n_new, done.n_annotators) == (4, 4, 2)
        said = {(j.annotator, j.kind): dict(j.value) for j in store.judgements()}
        assert said == {
            ("argilla:u1", "comparison"): {"level": 0, "n_levels": 3},
            ("argilla:u2", "comparison"): {"level": 1, "n_levels": 3},
            ("argilla:u1", "rating"): {"score": 4, "low": 1, "high": 7},
            ("argilla:u2", "critique"): {"text": "Both are fine."},
        }
        first = next(j for j in store.judgements() if j.kind == "comparison")
        assert [store.responses()[one].text for one in first.response_ids] == [a, b]


def test_label_studios_own_tasks_are_read_for_what_they_say(tmp_path):
    task = {
        "id": 3,
        "data": {"prompt": "Why?", "answer1": TEXTS[0], "answer2": TEXTS[1]},
        "annotations": [
            {
                "completed_by": {"id": 7, "email": "ann@example.org"},
                "created_at": "2026-01-02T03:04:05.000Z",
                "lead_time": 21.5,
                "result": [
                    {"from_name": "pw", "type": "pairwise", "value": {"selected": "left"}},
                    {"from_name": "stars", "type": "rating", "value": {"rating": 3}},
                    {"from_name": "flags", "type": "choices", "value": {"choices": ["spam"]}},
                    {"from_name": "why", "type": "textarea", "value": {"text": ["It", "is."]}},
                ],
            },
            {"completed_by": 8, "was_cancelled": True, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
        ],
    }
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task]), encoding="utf-8")
    with open_store(tmp_path / "k.db") as store:
        assert foreign.import_label_studio(store, path).n_new == 4
        said = {j.kind: (j.annotator, dict(j.value), dict(j.shown)) for j in store.judgements()}
        who, lead = "label-studio:ann@example.org", {"lead_s": 21.5}
        assert said == {
            "comparison": (who, {"level": 2, "n_levels": 3}, lead),
            "rating": (who, {"score": 3, "low": 1, "high": 5}, lead),
            "label": (who, {"flags": ["spam"]}, lead),
            "critique": (who, {"text": "It\nis."}, lead),
        }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no complete JSON value"),
        ("{}", "expected a list of records"),
        ("[1]", "record 1: found '1'; expected an object"),
        ('[{"fields": {"a": "b"}, "responses": {}}]', "found no prompt among a; name its field"),
        ('[{"fields": {"prompt": "b"}, "responses": {}}]', "found no response texts among prompt"),
        ('[{"fields": {"prompt": "b", "text": "c"}, "responses": {}}]', "nothing to import"),
        (
            '[{"fields": {"prompt": "b", "text": "c"}, "responses": {"q": [{"value": 9}]}}]',
            "expected low ≤ score ≤ high",
        ),
        (
            '[{"fields": {"prompt": "b", "response_1": "c", "response_2": "c"}, "responses": {"q": [{"value": "tie"}]}}]',
            "the same response twice",
        ),
    ],
)
def test_bad_records_are_one_line_that_names_them(tmp_path, content, message):
    path = tmp_path / "records.json"
    path.write_text(content, encoding="utf-8")
    with open_store(tmp_path / "k.db") as store:
        with pytest.raises(InputError, match=message) as caught:
            foreign.import_argilla(store, path)
        assert "\n" not in str(caught.value)
        assert store.n_judgements() == 0


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("words")
    with open_store(tmp_path / "k.db") as store:
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            tabular.import_parquet(store, tmp_path / "x.parquet")
        with pytest.raises(InputError, match="found no such directory"):
            tabular.import_dataset(store, tmp_path / "nothing")


def test_events_with_a_rater_in_two_groups_are_one_line(store, tmp_path):
    path = tmp_path / "e.jsonl"
    export_jsonl(store, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    mine = [row for row in rows if row["annotator"]["id"] == rows[0]["annotator"]["id"]]
    assert len(mine) > 1
    for number, row in enumerate(mine):
        row["annotator"]["group"] = "right" if number else "left"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_store(tmp_path / "other.db") as other:
        with pytest.raises(InputError, match=r"e\.jsonl:\d+: rater '.*': found in two groups, 'left' and 'right'"):
            import_jsonl(other, path)
        assert other.annotators() == {}


def test_what_was_changed_or_added_in_argilla_comes_in_beside_the_original(tmp_path):
    with open_store(tmp_path / "k.db") as store:
        judged_pair(store)
        foreign.export_argilla(store, tmp_path / "out.json")
        n_before = len(store.judgements())
    records = json.loads((tmp_path / "out.json").read_text())
    given = next(one["responses"]["comparison"] for one in records if "comparison" in one["responses"])
    given[0]["value"] = "both bad"
    given.append({"value": "response_1", "user_id": "somebody-new"})
    (tmp_path / "out.json").write_text(json.dumps(records))
    with open_store(tmp_path / "again.db") as again:
        assert foreign.import_argilla(again, tmp_path / "out.json").n_new == n_before + 2
        added = {one.annotator: one.value for one in again.judgements() if one.annotator.startswith("argilla:")}
    assert added == {
        "argilla:r1": {"level": 1, "n_levels": 3, "both": "bad"},
        "argilla:somebody-new": {"level": 2, "n_levels": 3},
    }


def test_what_was_changed_or_added_in_label_studio_comes_in_beside_the_original(tmp_path):
    with open_store(tmp_path / "k.db") as store:
        judged_pair(store)
        foreign.export_label_studio(store, tmp_path / "out.json")
        n_before = len(store.judgements())
    tasks = json.loads((tmp_path / "out.json").read_text())
    pairs = next(one["annotations"] for one in tasks if one["annotations"][0]["result"][0]["type"] == "pairwise")
    for one in pairs:
        one["result"][0] |= {"id": "x1", "origin": "manual"}  # as Label Studio gives it back
    changed = {"from_name": "comparison", "to_name": "answer1", "type": "pairwise", "value": {"selected": "right"}}
    pairs.append(pairs[0] | {"result": [changed], "completed_by": {"email": "somebody-new"}, "meta": {}})
    pairs[0] = pairs[0] | {"result": [changed]}
    (tmp_path / "out.json").write_text(json.dumps(tasks))
    with open_store(tmp_path / "again.db") as again:
        assert foreign.import_label_studio(again, tmp_path / "out.json").n_new == n_before + 2
        added = {one.annotator: one.value for one in again.judgements() if one.annotator.startswith("label-studio:")}
    second = {"level": 0, "n_levels": 3}
    assert added == {"label-studio:r1": second, "label-studio:somebody-new": second}


def judged_pair(store: Store) -> None:
    """One comparison in which a won, and a correction of somebody else."""
    prompt = user_prompt("Why?")
    responses = [Response(prompt.id, text, "made") for text in ("Because.", "No idea.")]
    task = Task(prompt.id, tuple(one.id for one in responses))
    store.add_prompts([prompt])
    store.add_responses(responses)
    store.add_annotators([Annotator("r1"), Annotator("r2")])
    store.add_tasks([task])
    asked = dataclasses.replace(task, kind="correction", response_ids=task.response_ids[:1])
    store.add_tasks([asked])
    store.submit(dataclasses.replace(vote(task, "r1"), value={"level": 2, "n_levels": 3}))
    store.submit(
        Judgement(
            asked.id, "correction", asked.prompt_id, asked.response_ids, {"text": "better"}, "r2", (0,), "v1", "2026"
        )
    )
