"""What judgements of every kind say, and what cannot be said: each named, none left out."""

import dataclasses

import pytest

from karat.edits import edited_spans
from karat.errors import InputError
from karat.reading import statements_of
from karat.records import Judgement, Response, user_prompt, vote_of
from karat.statements import Best, Labelled, Preferred, Ranked, Rated

PROMPT = user_prompt("Why?")
RESPONSES = [Response(PROMPT.id, text, "policy", i) for i, text in enumerate(("one is here", "two", "three", "four"))]
BY_ID = {response.id: response for response in RESPONSES}


def judged(kind, value, n=1, *, annotator="ann", question="q", **rest) -> Judgement:
    ids = tuple(response.id for response in RESPONSES[:n])
    return Judgement(
        f"task-{kind}", kind, PROMPT.id, ids, value, annotator, tuple(range(n)), "v1", "2026-01-01T00:00:00Z",
        shown={"question": question}, **rest,
    )  # fmt: skip


def said(*judgements, **options):
    return statements_of([], judgements, BY_ID, **options)


def test_a_ranking_is_dense_and_two_ranked_are_a_vote_on_the_scale_that_its_ties_need():
    (one,) = said(judged("ranking", {"ranks": [3, 1, 3]}, 3)).statements
    assert isinstance(one, Ranked)
    assert one.ranks == (2, 1, 2)
    first, tied = judged("ranking", {"ranks": [1, 2]}, 2), judged("ranking", {"ranks": [1, 1]}, 2, annotator="bob")
    assert [(v.level, v.n_levels, v.side) for v in said(first).statements] == [(1, 2, 1)]
    assert [(v.level, v.n_levels) for v in said(first, tied).statements] == [(2, 3), (1, 3)]


def test_the_better_of_two_is_a_vote_and_the_best_of_three_a_choice():
    (vote,) = said(judged("best_of", {"best": 1}, 2)).statements
    assert (vote.level, vote.n_levels) == (0, 2)
    (choice,) = said(judged("best_of", {"best": 1}, 3)).statements
    assert isinstance(choice, Best)
    assert choice.best == 1


def test_attributes_are_objectives_and_names_can_be_mapped():
    value = {"scores": {"helpful": 4, "honest": 2}, "low": 1, "high": 5}
    statements = said(judged("rating", value), objective_of={"helpful": "preference"}).statements
    assert [(one.objective, one.value, one.low, one.high) for one in statements] == [
        ("preference", 4.0, 1.0, 5.0),
        ("honest", 2.0, 1.0, 5.0),
    ]
    assert all(isinstance(one, Rated) for one in statements)
    with pytest.raises(InputError, match="map to one objective twice"):
        said(judged("rating", value), objective_of={"helpful": "x", "honest": "x"})


def test_flags_and_aspects_that_others_named_under_the_same_question_are_good_where_they_were_not():
    raised = judged("label", {"good": False, "flags": ["spam"]})
    clean = judged("label", {"good": True, "flags": []}, annotator="bob")
    elsewhere = judged("label", {"good": True, "flags": []}, annotator="cat", question="other")
    found = {(one.annotator, one.objective): one.good for one in said(raised, clean, elsewhere).statements}
    assert found == {
        ("ann", "preference"): False,
        ("ann", "not_spam"): False,
        ("bob", "preference"): True,
        ("bob", "not_spam"): True,
        ("cat", "preference"): True,
    }
    critiques = [
        judged("critique", {"text": "too long", "aspects": ["length"]}),
        judged("critique", {"text": "rude", "aspects": ["tone"]}, annotator="bob"),
    ]
    found = {(one.annotator, one.objective): one.good for one in said(*critiques).statements}
    assert found == {("ann", "length"): False, ("ann", "tone"): True, ("bob", "length"): True, ("bob", "tone"): False}


def test_both_bad_is_a_tie_and_two_labels():
    judgement = judged("comparison", {"level": 1, "n_levels": 3, "both": "bad"}, 2)
    vote = vote_of(judgement)
    found = statements_of([vote], [], BY_ID).statements
    assert found[0] == vote
    assert [(one.kind, one.good, one.response_ids[0]) for one in found[1:]] == [
        ("comparison", False, RESPONSES[0].id),
        ("comparison", False, RESPONSES[1].id),
    ]


def test_a_correction_is_preferred_to_its_original_and_its_edited_spans_are_marked():
    result = said(judged("correction", {"text": "one was here"}))
    (one,) = result.statements
    assert isinstance(one, Preferred)
    better, worse = (result.responses[i] for i in one.response_ids)
    assert (better.text, better.source, worse.text) == ("one was here", "correction", "one is here")
    (mark,) = result.marks
    assert [(part.start, part.end, part.name) for part in mark.parts] == [(4, 6, "edited")]
    revision = said(judged("critique", {"text": "wrong", "revision": "one was here"}))
    assert [type(one) for one in revision.statements] == [Preferred]
    assert revision.statements[0].kind == "critique"
    as_it_was = {"text": "wrong", "revision": "one is here"}  # says nothing of its own, and takes nothing back
    both = said(judged("critique", as_it_was | {"aspects": ["truth"]}), judged("critique", as_it_was, annotator="bob"))
    assert [(type(one), one.objective, one.good) for one in both.statements] == [(Labelled, "truth", False)]
    assert both.silent == {"words only": 1}


def test_a_demonstration_is_one_judgement_against_all_that_the_policy_wrote():
    shown = judged("demonstration", {"text": "like this"}, 0)
    first = said(shown)
    assert [one.share for one in first.statements] == [0.25] * 4
    newest = [Response(PROMPT.id, "newer", "policy-2")]
    refreshed = said(shown, samples={PROMPT.id: newest})
    assert [one.response_ids[1] for one in refreshed.statements] == [newest[0].id]
    assert refreshed.responses[newest[0].id] == newest[0]
    reached = said(shown, samples={PROMPT.id: [Response(PROMPT.id, "like this", "policy-9")]})
    assert (reached.statements, reached.silent) == ((), {"the policy writes the same": 1})
    with pytest.raises(InputError, match=r"no response of the policy to its prompt.*--set samples=FILE.*reward.kinds"):
        said(shown, samples={})


def test_silence_is_counted_with_its_reason():
    result = said(
        judged("label", {"missing": "cannot judge"}),
        judged("critique", {"text": "hm"}, annotator="bob"),
        judged("rating", {"score": 1, "low": 0, "high": 2}, annotator="cat"),
    )
    assert result.silent == {"missing: cannot judge": 1, "words only": 1}
    assert result.n_judgements == {"rating": 1}


def test_marks_know_what_could_have_been_marked():
    spans = {"spans": [{"response": 0, "start": 0, "end": 3, "class": "wrong"}]}
    other = {"spans": [{"response": 0, "start": 4, "end": 6, "class": "rude"}]}
    steps = {"steps": [{"start": 0, "end": 3, "mark": 1}, {"start": 4, "end": 11, "mark": -1}]}
    result = said(
        judged("span_marks", spans), judged("span_marks", other, annotator="bob"), judged("step_marks", steps)
    )
    assert [mark.names for mark in result.marks] == [("rude", "wrong"), ("rude", "wrong"), ("step",)]
    assert [part.mark for part in result.marks[2].parts] == [1, -1]
    assert not result.statements


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (
            dataclasses.replace(judged("rating", {"score": 1, "low": 0, "high": 2}), response_ids=("x",)),
            "'x' is unknown",
        ),
        (judged("rating", {"score": 1, "low": 0, "high": 2}, 2), "rating .* judges 2 responses; expected 1"),
        (judged("ranking", {"ranks": [1]}, 1), "judges 1 responses; expected at least 2"),
        (judged("correction", {"text": "one is here"}), "equals the original; expected a change"),
        (
            judged("span_marks", {"spans": [{"response": 0, "start": 5, "end": 99, "class": "wrong"}]}),
            "marks 5–99 of a response of 11 characters; expected spans inside the text",
        ),
        (
            judged("step_marks", {"steps": [{"start": 0, "end": 12, "mark": 1}]}),
            "marks 0–12 of a response of 11 characters",
        ),
        (judged("comparison", {"level": 1, "n_levels": 3}, 2), "pass it as a vote"),
    ],
)
def test_what_does_not_fit_is_named(judgement, expected):
    with pytest.raises(InputError, match=expected) as caught:
        said(judgement)
    assert "\n" not in str(caught.value)
    assert judgement.id in str(caught.value)


def test_a_response_to_another_prompt_is_named():
    other = Response("prompt:other", "x", "policy")
    judgement = dataclasses.replace(judged("label", {"good": True}), response_ids=(other.id,))
    with pytest.raises(InputError, match="answers 'prompt:other'"):
        statements_of([], [judgement], {other.id: other})


def test_a_rating_outside_its_scale_is_named():
    with pytest.raises(InputError, match="found 9 on a scale from 1 to 5"):
        Rated("j", "p", ("r",), 9, 1, 5, "ann")


@pytest.mark.parametrize(
    ("before", "after", "removed", "added"),
    [
        ("a b c", "a b c", [], []),
        ("a b c", "a x c", ["b"], ["x"]),
        ("the cat", "the black cat", [], ["black "]),
        ("", "new", [], ["new"]),
        ("wörter, и слова!", "wörter; и слова!", [","], [";"]),
    ],
)
def test_edits_are_whole_words_and_rebuild_the_correction(before, after, removed, added):
    edit = edited_spans(before, after)
    assert [before[start:end] for start, end in edit.removed] == removed
    assert [after[start:end] for start, end in edit.added] == added
    kept_before = "".join(c for i, c in enumerate(before) if not any(s <= i < e for s, e in edit.removed))
    kept_after = "".join(c for i, c in enumerate(after) if not any(s <= i < e for s, e in edit.added))
    assert kept_before == kept_after
    assert (edit.changed_frac(before, after) == 0) == (before == after)
