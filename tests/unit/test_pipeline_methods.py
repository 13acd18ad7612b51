"""What a run hands its method: KTO's labels from votes, labels and ratings."""

import pytest

from karat.feedback.snapshot import Snapshot
from karat.pipeline.data import Texts
from karat.pipeline.methods import Material, labels_in, preferences_in
from karat.records import Judgement, Response, Vote, user_prompt

PROMPTS = [user_prompt(text) for text in ("first", "second", "third")]
NOTHING = Texts((), (), (), ())


def responses_to(prompt, *texts):
    return [Response(prompt.id, text, "policy", number) for number, text in enumerate(texts)]


def judged(number, kind, response, value):
    rest = ("ann", (0,), "v1", "2026-01-01T00:00:00Z")
    return Judgement(f"t{number}", kind, response.prompt_id, (response.id,), value, *rest)


def snapshot_of(votes, judgements, responses):
    known = {prompt.id: prompt for prompt in PROMPTS}
    return Snapshot(votes, judgements, known, {one.id: one for one in responses}, {}, "root", 0, 0, 0)


def test_labels_come_from_votes_of_both_from_labels_and_from_ratings_off_the_middle():
    own = [*responses_to(PROMPTS[0], "a", "b"), *responses_to(PROMPTS[2], "e", "f")]
    votes = [
        Vote(f"v{i}", one.prompt_id, one.id, other.id, 1, 3, 0, "ann", both="bad")
        for i, (one, other) in enumerate((own[:2], own[2:]))
    ]
    more = responses_to(PROMPTS[1], "c", "d", "g", "h", "i")
    values = [{"good": True}, {"good": False}]
    values += [{"score": score, "low": 1, "high": 5} for score in (4, 3, 2)]
    given = [judged(i, "label" if "good" in value else "rating", one, value)
             for i, (one, value) in enumerate(zip(more, values, strict=True))]  # fmt: skip
    given.append(judged(9, "label", responses_to(PROMPTS[2], "held out")[0], {"good": True}))
    given.append(judged(10, "rating", more[0], {"scores": {"tone": 5}, "low": 1, "high": 5}))  # another objective
    elsewhere = snapshot_of([], given, [*more, *responses_to(PROMPTS[2], "held out")])
    material = Material(
        PROMPTS[:1], lambda _, texts: [0.0] * len(texts), snapshot_of(votes, [], own), NOTHING, labels=elsewhere,
        measuring=frozenset({PROMPTS[2].id}),
    )  # fmt: skip
    found = [(one.prompt.text, one.text, one.good) for one in labels_in(material)]
    assert found == [
        ("first", "a", False), ("first", "b", False),  # the votes on "third" are not on prompts to practise on
        ("second", "c", True), ("second", "d", False), ("second", "g", True), ("second", "i", False),
    ]  # fmt: skip
    assert preferences_in(material, least=False) == []
    with pytest.raises(Exception, match="found no decided comparison"):
        preferences_in(material)
