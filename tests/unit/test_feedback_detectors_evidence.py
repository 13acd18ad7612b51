"""The record that detectors read: what it refuses, what does not matter, and the sentence for too few votes."""

import numpy as np
import pytest

from detector_crowds import crowd, replaced
from karat.errors import InputError
from karat.feedback.detect.evidence import too_few, vote_record
from karat.records import Judgement, Response


def judgement(a, b, level, *, who="ann", shown=(0, 1), submission="", **rest):
    return Judgement(
        "task", "comparison", "p", (a, b), {"level": level, "n_levels": 3}, who, shown, "v1", "2026-01-31T16:53:19Z",
        submission=submission, **rest,
    )  # fmt: skip


X, Y = Response("p", "one text", "left"), Response("p", "another text", "right")
KNOWN = {one.id: one for one in (X, Y)}


def test_swapping_a_and_b_changes_nothing_that_detectors_see():
    record = crowd(1, n_raters=10, n_prompts=20)
    swapped = replaced(record, a=record.b, b=record.a, level=2 - record.level, side=-record.side)
    assert np.array_equal(record.direction, swapped.direction)
    assert np.array_equal(record.shown, swapped.shown)
    assert np.array_equal(record.texts_in_order, swapped.texts_in_order)


def test_strength_counts_by_its_direction():
    record = crowd(1, n_raters=10, n_prompts=20)
    strong = replaced(record, level=np.array([0, 3, 6])[record.level], n_levels=np.full(len(record), 7))
    assert np.array_equal(record.direction, strong.direction)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"level": np.full(300, 3)}, "level outside its scale"),
        ({"side": np.full(300, 2)}, "expected +1 (a first)"),
        ({"a": np.zeros(300, dtype=int), "b": np.zeros(300, dtype=int)}, "a text compared with itself"),
        ({"item": np.zeros(300, dtype=int)}, "item 0 compares different texts"),
        ({"annotator": np.full(300, 10)}, "found 10 … 10; expected 0 … 9"),
        ({"seconds": np.ones(2)}, "VoteRecord.seconds: found 2 rows; expected 300"),
        ({"item": np.zeros(300)}, "expected whole numbers"),
        ({"sources": ("x",)}, "VoteRecord.sources: found 1; expected 60 texts"),
    ],
)
def test_a_broken_record_is_refused(columns, words):
    record = crowd(1, n_raters=10, n_prompts=20)
    with pytest.raises(InputError) as caught:
        replaced(record, **columns)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fewer_than_eight_votes_are_named_in_the_sentence():
    assert too_few(8) is None
    assert too_few(7).startswith("fewer than 8 votes: found 7")
    with pytest.raises(InputError, match="found -1 votes"):
        too_few(-1)


def test_judgements_become_columns():
    rows = [
        judgement(X.id, Y.id, 2, who="ann", shown=(1, 0), active_s=3.5, reason="clear", submission="s1"),
        judgement(Y.id, X.id, 2, who="bob", shown=(), submission="s2"),
    ]
    record = vote_record(rows, KNOWN, topics={"p": "water"}, pasted={"s1": True}, devices={"s1": "h", "s2": "h"})
    assert record.annotators == ("ann", "bob")
    assert record.n_items == 1
    assert record.direction.tolist() == [1, -1]
    assert record.shown.tolist() == [-1, 0]
    assert record.pasted.tolist() == [1, -1]
    assert record.device[0] == record.device[1] >= 0
    assert record.seconds[0] == 3.5
    assert np.isnan(record.seconds[1])
    assert (record.rationales, record.topics, record.sources) == (("clear", ""), ("water", "water"), ("left", "right"))


def test_corrected_missing_and_other_judgements_are_left_out():
    first = judgement(X.id, Y.id, 0)
    corrected = judgement(X.id, Y.id, 2, supersedes=first.id)
    missing = Judgement("t", "comparison", "p", (X.id, Y.id), {"missing": "cannot judge"}, "ann", (), "v1", "")
    label = Judgement("t", "label", "p", (X.id,), {"good": True}, "ann", (), "v1", "")
    record = vote_record([first, corrected, missing, label], KNOWN)
    assert record.level.tolist() == [2]


def test_votes_of_nobody_known_are_votes_of_many():
    rows = [judgement(X.id, Y.id, 2, who="unknown", submission=f"s{i}") for i in range(20)]
    assert vote_record(rows, KNOWN).n_votes.tolist() == [1] * 20


def test_an_unknown_response_and_a_broken_time_are_refused():
    with pytest.raises(InputError, match="is not among the 1 given"):
        vote_record([judgement(X.id, Y.id, 2)], {X.id: X})
    broken = Judgement("t", "comparison", "p", (X.id, Y.id), {"level": 0, "n_levels": 2}, "ann", (), "v1", "noon")
    with pytest.raises(InputError, match="found the time 'noon'"):
        vote_record([broken], KNOWN)
