"""Exports: what goes out comes back."""

import dataclasses
import json

import pytest

from feedback_cases import small_store, vote
from karat.errors import InputError
from karat.feedback.exchange.answers import import_answers
from karat.feedback.exchange.exporters import export_answers, export_preferences, export_votes
from karat.feedback.exchange.importers import import_preferences, import_votes
from karat.feedback.snapshot import write_snapshot
from karat.feedback.store import open_store


def voted(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.submit_many(
        [
            vote(task, f"r{i}", level=(i + j) % 3, active_s=2.5, reason="so" if i else None)
            for j, task in enumerate(store.tasks())
            for i in range(3)
        ]
    )
    return store


def rows(path):
    return sorted(path.read_text().splitlines())


@pytest.mark.parametrize("style", ["standard", "conversational"])
def test_preferences_survive_a_round_trip(tmp_path, style):
    snapshot = write_snapshot(voted(tmp_path), tmp_path / "snap")
    summary = export_preferences(snapshot, tmp_path / "out.jsonl", style=style)
    assert dataclasses.astuple(summary) == (20, 0, 10, 0)  # each row of this form has a winner
    with open_store(tmp_path / "again.db") as again:
        import_preferences(again, tmp_path / "out.jsonl")
        back = write_snapshot(again, tmp_path / "back")
    export_preferences(back, tmp_path / "back.jsonl", style=style)
    assert rows(tmp_path / "back.jsonl") == rows(tmp_path / "out.jsonl")
    assert {each.id for each in back.responses.values()} <= set(snapshot.responses)


def test_the_winner_is_chosen(tmp_path):
    store = small_store(tmp_path / "k.db", n_tasks=2)
    first, second = store.tasks()
    store.submit_many([vote(first, "r0", level=2), vote(second, "r0", level=0)])
    export_preferences(write_snapshot(store, tmp_path / "snap"), tmp_path / "out.jsonl", style="standard")
    texts = {key: each.text for key, each in store.responses().items()}
    found = {(row["chosen"], row["rejected"]) for row in map(json.loads, rows(tmp_path / "out.jsonl"))}
    assert found == {
        (texts[first.response_ids[0]], texts[first.response_ids[1]]),
        (texts[second.response_ids[1]], texts[second.response_ids[0]]),
    }


def test_conversations_do_not_fit_the_standard_format(tmp_path):
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    row = {"prompt": conversation, "a": "x", "b": "y", "choice": "a"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    with open_store(tmp_path / "k.db") as store:
        import_votes(store, tmp_path / "in.jsonl")
        snapshot = write_snapshot(store, tmp_path / "snap")
    with pytest.raises(InputError, match="has 2 turns; the standard format holds one user turn"):
        export_preferences(snapshot, tmp_path / "out.jsonl", style="standard")
    assert not (tmp_path / "out.jsonl").exists()


def test_all_ties_give_an_empty_file(tmp_path):
    store = small_store(tmp_path / "k.db")
    store.submit(vote(store.tasks()[0], "r0", level=1))
    summary = export_preferences(write_snapshot(store, tmp_path / "snap"), tmp_path / "out.jsonl")
    assert dataclasses.astuple(summary) == (0, 0, 1, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_ties_that_are_written_are_counted(tmp_path):
    store = small_store(tmp_path / "k.db", n_tasks=2)
    first, second = store.tasks()
    store.submit_many([vote(first, "r0", level=2), vote(second, "r0", level=1)])
    store.submit(dataclasses.replace(vote(second, "r1"), value={"missing": "cannot judge"}))
    ranked = {"kind": "ranking", "prompt": "q", "responses": ["x", "y", "z"], "annotator": "r0"}
    lines = [ranked | {"ranks": [1, 2, 2]}, ranked | {"ranks": [1, 2, 3], "annotator": "r1"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_answers(store, tmp_path / "in.jsonl")
    assert dataclasses.astuple(export_votes(store, tmp_path / "votes.jsonl")) == (3, 1, 0, 2)
    answers = export_answers(store, tmp_path / "answers.jsonl")
    assert (answers.n_rows, answers.n_ties, answers.n_others_left_out) == (5, 2, 0)
    store.submit(vote(first, "r0", level=0, key="again"))  # the earlier answer is left out, and counted
    answers = export_answers(store, tmp_path / "answers.jsonl")
    assert (answers.n_rows, answers.n_ties, answers.n_others_left_out) == (5, 2, 1)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_votes_survive_a_round_trip(tmp_path, name):
    store = voted(tmp_path)
    assert export_votes(store, tmp_path / name).n_rows == 30
    with open_store(tmp_path / "again.db") as again:
        assert import_votes(again, tmp_path / name).n_new == 30
        before, after = ({each.submission: each for each in one.judgements()} for one in (store, again))
        assert before.keys() == after.keys()
        for key, first in before.items():
            second = after[key]
            for field in ("prompt_id", "response_ids", "value", "annotator", "shown_order", "created_at", "active_s"):
                assert getattr(first, field) == getattr(second, field)
            for field in ("reason", "propensity", "strategy", "guideline"):
                assert getattr(first, field) == getattr(second, field)
        assert again.prompts() == store.prompts()


def test_what_was_on_the_page_and_both_bad_survive_a_round_trip(tmp_path):
    store = small_store(tmp_path / "k.db")
    shown = {"truncated": [False, True], "arms": {"pay": "high"}}
    plain = vote(store.tasks()[0], "r1", key="one")
    said = dataclasses.replace(
        plain, value={"level": 1, "n_levels": 3, "both": "bad"}, active_s=3.5, idle_s=60.0, shown=shown
    )
    store.submit(said)
    export_votes(store, tmp_path / "v.jsonl")
    with open_store(tmp_path / "again.db") as again:
        import_votes(again, tmp_path / "v.jsonl")
        (found,) = again.judgements()
    assert (found.value, found.idle_s, found.shown) == (said.value, 60.0, shown)


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        export_votes(voted(tmp_path), tmp_path / "none" / "out.jsonl")
